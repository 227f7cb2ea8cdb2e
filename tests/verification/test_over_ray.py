"""What is asked of the nodes of a Ray cluster before anything is loaded."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from harness.base.errors import HarnessError
from harness.families.family import Part
from harness.load.ray_cluster import Node
from harness.load.targets.known_targets import target_on
from harness.verification.job import VerifyRequest
from harness.verification.over_ray import NodeFacts, node, require_alike

NODES = [Node(0, "a" * 40, "10.0.0.1"), Node(1, "b" * 40, "10.0.0.2")]
SAME = NodeFacts(versions={"vllm": "0.26.0"}, nbytes=7)


def told(*facts: NodeFacts) -> list[str]:
    return [msgspec.json.encode(fact).decode() for fact in facts]


def request(checkpoint: Path) -> str:
    asked = VerifyRequest(
        checkpoint=str(checkpoint), reference=str(checkpoint), parts=(Part.DECODER,),
        target=target_on("emulated", 8, hosts=2, on="ray"),
    )  # fmt: skip
    return msgspec.json.encode(asked).decode()


def test_nodes_that_are_alike_pass() -> None:
    require_alike(NODES, told(SAME, SAME))


def test_a_node_with_other_versions_is_named() -> None:
    other = NodeFacts(versions={"vllm": "0.32.0", "ray": "3"}, nbytes=7)
    with pytest.raises(HarnessError) as raised:
        require_alike(NODES, told(SAME, other))
    assert raised.value.what == (
        "host 1, Ray node bbbbbbbbbbbb at 10.0.0.2 has other versions than host 0, Ray node "
        "aaaaaaaaaaaa at 10.0.0.1: ray 3, not none, vllm 0.32.0, not 0.26.0"
    )


def test_a_node_without_the_checkpoint_is_named(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    here = node(None, request(tiny_checkpoints["qwen3-vl-moe"]))
    gone = node(None, request(tmp_path / "not-there"))
    with pytest.raises(HarnessError) as raised:
        require_alike(NODES, [here, gone])
    assert raised.value.what.startswith("host 1, Ray node bbbbbbbbbbbb at 10.0.0.2: ")
    assert raised.value.where == str(tmp_path / "not-there")


def test_a_node_with_another_checkpoint_is_named(tiny_checkpoints: dict[str, Path]) -> None:
    here = node(None, request(tiny_checkpoints["qwen3-vl-moe"]))
    other = node(None, request(tiny_checkpoints["qwen3.6-mtp"]))
    with pytest.raises(HarnessError, match=r"host 1, .* has another checkpoint: "):
        require_alike(NODES, [here, other])
