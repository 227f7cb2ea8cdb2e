"""A failed load is diagnosed from what its ledger holds, and from nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.explain.causes import Cause, Diagnosis
from harness.explain.load_failure import config_lacks, diagnose_failure, never_arrived
from harness.families.family import Storage
from harness.families.known_families import family_named
from harness.families.misread import TRANSPOSED_ROAD, misread_by
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.ledger import Ledger
from tests.support.ledgers import W2, W13, call, whole
from tests.support.spoiling import edit_json


def diagnosed(ledger: Ledger) -> Diagnosis:
    (diagnosis,) = diagnose_failure(ledger, [3], 2)
    return diagnosis


def test_positional_ids_name_the_fix() -> None:
    at = call(W13, "n", "w1", 0)._replace(site="vllm/model_executor/models/qwen3_5.py:261")
    diagnosis = diagnosed(Ledger(calls=[at], failed=True, streamed=["a"]))
    assert diagnosis.cause is Cause.ARGUMENT_CONTRACT
    assert diagnosis.summary.endswith("never arrived: layer 3: experts 0-1")
    assert "qwen3_5.py:261 called weight_loader(param, loaded_weight, 'n', 'w1', 0)" in (
        diagnosis.evidence
    )
    assert diagnosis.next_step.endswith("fixed by vLLM #42521, released with vLLM 0.22.0")


def test_many_layers_are_listed_in_short() -> None:
    at = call(W13, "n", "w1", 0)
    (diagnosis,) = diagnose_failure(Ledger(calls=[at], failed=True), range(48), 128)
    assert diagnosis.summary.endswith("layer 3: experts 0-127; and 44 layers more")


def test_fused_qkv() -> None:
    at = call("attn.qkv.weight")._replace(layer_type="QKVParallelLinear")
    assert diagnosed(Ledger(calls=[at], failed=True)).cause is Cause.FUSED_WITHOUT_SHARD


@pytest.mark.parametrize("layer_type", ["QKVParallelLinear", "RoutedExperts"])
def test_a_copy_that_raised(layer_type: str) -> None:
    """It goes by no hook, which wants nothing of it."""
    parameter = "model.layers.3.mlp.w2_bias"
    shared = "model.layers.3.mlp.experts.w2_bias"
    at = call(parameter)._replace(layer_type=layer_type, operation="copy_")
    diagnosis = diagnosed(Ledger(calls=[at], failed=True, parameters=[parameter, shared]))
    assert diagnosis.cause is Cause.UNEXPLAINED
    assert diagnosis.summary == "a copy into a parameter raised an error"
    assert diagnosis.evidence == f"m.py:1 called param.copy_(loaded_weight) of a {layer_type}"


def test_a_bias_that_experts_share() -> None:
    """The same of a bias that no module of experts has is another failure."""
    bias = "model.layers.3.block_sparse_moe.e_score_correction_bias"
    experts = "model.layers.3.block_sparse_moe.experts.routed_experts.e_score_correction_bias"
    at = call(bias)._replace(layer_type="MiniMaxM2MoE")
    ledger = Ledger(calls=[at], failed=True, streamed=["a"], parameters=[bias, experts, W13])
    diagnosis = diagnosed(ledger)
    assert diagnosis.cause is Cause.HOOKED_AS_EXPERT
    assert diagnosis.summary.endswith("only share; never arrived: layer 3: experts 0-1")
    assert (
        diagnosis.evidence == "m.py:1 called weight_loader(param, loaded_weight) of a MiniMaxM2MoE"
    )
    assert never_arrived(diagnosis, ledger, [3], 2) == {3: (0, 1)}
    for parameters in ([bias, W13], [bias, experts.replace("layers.3", "layers.2")]):
        alone = Ledger(calls=[at], failed=True, streamed=["a"], parameters=parameters)
        assert diagnosed(alone).cause is Cause.UNEXPLAINED


def test_a_tensor_streamed_twice() -> None:
    ledger = Ledger(calls=whole(0), streamed=["a", "b", "a"], processed=[W13])
    diagnosis = diagnosed(ledger)
    assert diagnosis.cause is Cause.DELIVERED_TWICE
    assert diagnosis.evidence == "a came as tensor 1 and again as 3"


def test_processed_before_all_came() -> None:
    ledger = Ledger(calls=whole(0), streamed=["a", "b"], processed=[W13, W2])
    diagnosis = diagnosed(ledger)
    assert diagnosis.cause is Cause.DELIVERED_LATE
    assert diagnosis.summary.endswith("never arrived: expert 1 of layer 3")


def test_the_last_piece_found_its_layer_processed() -> None:
    calls = whole(0) + whole(1)
    late = [*calls[:-1], calls[-1]._replace(late=True)]
    ledger = Ledger(calls=late, streamed=["a", "b"], processed=[W13, W2], failed=True)
    assert diagnosed(ledger).cause is Cause.DELIVERED_LATE


@pytest.mark.parametrize(
    "ledger",
    [
        Ledger(),
        # Every piece came; the last had the layer processed, and that raised.
        Ledger(calls=whole(0) + whole(1), streamed=["a"], processed=[W13, W2], failed=True),
        Ledger(calls=whole(0) + whole(1), streamed=["a", "b"], processed=[W13]),
        Ledger(calls=whole(0), streamed=["a", "b"]),
        Ledger(calls=[call("q_proj.weight", "q")], streamed=["q"], failed=True),
    ],
)
def test_what_a_ledger_does_not_explain(ledger: Ledger) -> None:
    assert diagnosed(ledger).cause is Cause.UNEXPLAINED


class LackingConfig:
    """Of the kind that transformers makes."""


def asked_for(key: str, of: object) -> Exception:
    """The error of a model's class that reads a key of its configuration."""
    try:
        getattr(of, key)
    except AttributeError as error:
        return error
    raise AssertionError


NO_PLACE = "There is no module or parameter named 'layers.1.mlp.gate.e_score_correction_bias' in"


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (asked_for("rotary_dim", LackingConfig()), "rotary_dim"),
        (asked_for("hidden_size", LackingConfig()), ""),  # which config.json has
        (asked_for("rotary_dim", object()), ""),
        (AttributeError("'LackingConfig' object has no attribute 'rotary_dim'"), ""),
        (ValueError(NO_PLACE), "topk_method"),
        (ValueError(NO_PLACE.replace("e_score_", "")), ""),
    ],
)
def test_what_config_json_lacks(
    error: Exception, key: str, tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = shutil.copytree(tiny_checkpoints["deepseek-v3"], tmp_path / "c")
    edit_json(path / "config.json", lambda config: config.pop("topk_method"))
    found = config_lacks(error, ModelCheckpoint(path))
    assert (found is not None) is bool(key)
    if found:
        assert found.cause is Cause.CONFIG_LACKS_KEY
        assert found.summary.startswith(f"config.json has no {key}, ")
        assert found.evidence == str(error)
    whole = ModelCheckpoint(tiny_checkpoints["deepseek-v3"])
    assert key != "topk_method" or config_lacks(error, whole) is None


def lost(ledger: Ledger) -> dict[int, tuple[int, ...]]:
    (diagnosis,) = diagnose_failure(ledger, [3, 4], 2)
    return never_arrived(diagnosis, ledger, [3, 4], 2)


def test_what_the_diagnosis_says_never_arrived() -> None:
    positional = Ledger(calls=[call(W13, "n", "w1", 0)], failed=True)
    assert lost(positional) == {3: (0, 1), 4: (0, 1)}
    early = Ledger(calls=whole(0), streamed=["a", "b"], processed=[W13, W2])
    assert lost(early) == {3: (1,)}  # of layer 4, nothing had come yet
    assert lost(Ledger(calls=whole(0), streamed=["a", "b"])) == {}


def test_a_storage_that_this_release_takes_for_another() -> None:
    """Only where an expert's tensor ended the load, and only if nothing in the ledger explains."""
    (misread,) = TRANSPOSED_ROAD
    at = call(W13)._replace(source="m.mlp.experts.gate_up_proj", keywords={"expert_id": 0})
    (found,) = diagnose_failure(Ledger(calls=[at], failed=True), [3], 2, misread)
    assert found.cause is Cause.STORAGE_MISREAD
    assert found.summary == (
        "the experts are stored fused [E, 2F, D], [E, D, F], and vllm>=0.32 takes them for "
        "fused-transposed [E, D, 2F], [E, F, D]"
    )
    assert found.evidence.startswith("m.mlp.experts.gate_up_proj ended the load; vllm/")
    assert diagnosed(Ledger(calls=[at], failed=True)).cause is Cause.UNEXPLAINED
    elsewhere = at._replace(parameter="model.layers.3.input_layernorm.weight")
    (other,) = diagnose_failure(Ledger(calls=[elsewhere], failed=True), [3], 2, misread)
    assert other.cause is Cause.UNEXPLAINED
    by_position = call(W13, "n", "w1", 0)
    (known,) = diagnose_failure(Ledger(calls=[by_position], failed=True), [3], 2, misread)
    assert known.cause is Cause.ARGUMENT_CONTRACT


@pytest.mark.parametrize(
    ("family", "storage", "version", "taken_for"),
    [
        ("qwen3-vl-moe", Storage.FUSED, "0.32.0", Storage.FUSED_TRANSPOSED),
        ("qwen3-vl-moe", Storage.FUSED, "0.33.0.dev7+g1", Storage.FUSED_TRANSPOSED),
        ("qwen3-vl-moe", Storage.FUSED, "0.26.0", None),
        ("qwen3-vl-moe", Storage.FUSED_TRANSPOSED, "0.32.0", None),
        ("qwen3-vl-moe", Storage.PER_EXPERT, "0.32.0", None),
        ("qwen3.5-moe", Storage.FUSED_TRANSPOSED, "0.32.1", Storage.FUSED),
        ("qwen3.5-moe", Storage.FUSED, "0.32.0", None),
        ("qwen3.5-moe", Storage.FUSED_TRANSPOSED, "a checkout", None),
    ],
)
def test_what_a_release_takes_a_storage_for(
    family: str, storage: Storage, version: str, taken_for: Storage | None
) -> None:
    found = misread_by(family_named(family).misread, storage, {"vllm": version})
    assert (found.taken_for if found else None) is taken_for
