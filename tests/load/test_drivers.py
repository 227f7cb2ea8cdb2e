"""What is a target's own stands in its class: nobody else asks for its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import harness
from harness.load.target import Target
from harness.load.targets.driver import Capability
from harness.load.targets.known_targets import driver_of, target_named, targets
from scenarios.catalogue import __file__ as catalogue

ROOT = Path(harness.__file__).parent
TARGETS = ROOT / "load" / "targets"
SOURCES = [
    path
    for path in [*ROOT.rglob("*.py"), *Path(catalogue).parent.glob("*.py")]
    if not path.is_relative_to(TARGETS)
]


def constants(node: ast.AST) -> set[object]:
    """The constants of a comparison: ``"cpu"``, or each of ``("cpu", "tpu")``."""
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)}


def asked_by_name(text: str) -> Iterator[str]:
    """The comparisons that ask for one target, by its name or what XLA calls its devices."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Compare | ast.Match):
            continue
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else [node.subject]
        of_platform = any(
            "platform" in (getattr(side, "attr", ""), getattr(side, "id", "")) for side in sides
        )
        if constants(node) & set(targets()) or (of_platform and constants(node)):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_nobody_asks_which_target_it_is(path: Path) -> None:
    assert list(asked_by_name(path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    ['target.name == "torch-xla"', 'name in ("emulated", "tpu")', 'target.platform != "cpu"',
     'platform == "gpu"', 'match name:\n    case "tpu":\n        pass'],
)  # fmt: skip
def test_who_asks_is_seen(text: str) -> None:
    assert list(asked_by_name(text))


@pytest.mark.parametrize("capability", Capability)
def test_a_capability_is_asked_for_and_not_everyones(capability: Capability) -> None:
    having = {driver.name for driver in targets().values() if driver.can(capability)}
    assert 0 < len(having) < len(targets())
    text = "".join(path.read_text() for path in ROOT.rglob("*.py"))
    assert f"can(Capability.{capability.name})" in text


@pytest.mark.parametrize("name", targets())
def test_a_target_is_one_file(name: str) -> None:
    """Its known issues, where it has any, name it in the scenarios."""
    module = type(targets()[name]).__module__
    own = [path for path in TARGETS.glob("*.py") if f'name = "{name}"' in path.read_text()]
    assert [f"harness.load.targets.{path.stem}" for path in own] == [module]


def test_what_travels_is_plain_and_finds_its_class() -> None:
    """A request to a loading process holds names and values; the class is looked up there."""
    target = target_named("emulated", 2)
    arrived = msgspec.json.decode(msgspec.json.encode(target), type=Target)
    assert arrived == target
    assert driver_of(arrived) is targets()["emulated"]


def test_they_are_listed_in_the_order_of_their_files() -> None:
    assert list(targets()) == ["emulated", "gpu", "tpu", "torch-xla"]
