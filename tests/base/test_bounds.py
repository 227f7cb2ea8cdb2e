"""Numbers out of bounds are refused where they come in: at once, and before anything is sized."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.app.cli import main
from harness.audit.run import run_audit
from harness.base.bounds import (
    MOST_EMULATED_DEVICES,
    MOST_EMULATED_HOSTS,
    MOST_EXPERTS,
    MOST_EXPERTS_OF_ALL_LAYERS,
    MOST_SECONDS,
    MOST_TPU_HOSTS,
    shown,
)
from harness.base.errors import BadInput
from harness.devices.parameter_layout import sizes_of
from harness.families.experts import reference_parts
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.targets.known_targets import meshed, target_named, target_on, targets
from harness.verification.verify import verify
from tests.support.input_bombs import bombs
from tests.support.spoiling import edit_json

SECONDS = ["inf", "-inf", "nan", "1e300", "86401", "0", "-1"]
DEVICES = [0, -1, MOST_EMULATED_DEVICES + 1, 1_000_000, 10**30]
HOSTS = [0, -1, MOST_EMULATED_HOSTS + 1, 100, 10**30]
MESHES = [
    "", ",", "2d", "2d,2d", "2d,model=2,2d", "data=", "data=100000000000", "data=0", "data=-1",
    "data=2,data=2", "data=2,,model=2", "data=٢", "data=2.0", "data=1e9", "model=16,data=17",
    f"data={'9' * 5000}", "data=999999999,model=999999999,expert=999999999", " data=2",
]  # fmt: skip
OPTIONS = [
    *([f"--timeout={value}"] for value in SECONDS),
    *([f"--devices={value}"] for value in DEVICES),
    *([f"--hosts={value}"] for value in HOSTS),
    *([f"--mesh={value}"] for value in MESHES),
    ["--hosts=3", "--devices=8"],
    ["--hosts=2", "--mesh=data=3"],
    *([f"--num-layers={value}"] for value in (0, -1, 10**9, 10**30)),
    *([f"--sample={value}"] for value in (0, -1)),
    *([f"--max-bytes={value}"] for value in (0, -1)),
    *([f"--{name}={value}"] for name in ("layers", "experts")
      for value in ("9", "-9", "0-999999", "-", "1-0", "٢", "9" * 5000, "0-999999," * 500 + "0")),
]  # fmt: skip


def _short(arguments: list[str]) -> str:
    return " ".join(arguments)[:40]


@pytest.mark.parametrize("arguments", OPTIONS, ids=_short)
def test_an_option_out_of_bounds_is_bad_input(
    tiny_checkpoints: dict[str, Path], arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.load.process.LoadProcesses.of", _no_load)
    result = CliRunner().invoke(main, ["verify", str(tiny_checkpoints["qwen3-vl-moe"]), *arguments])
    assert result.exit_code == 2
    assert result.stderr.lower().count("error: ") == 1
    assert arguments[0].split("=")[0] in result.stderr


def _no_load(*given: object) -> None:
    pytest.fail("a load was begun")


@pytest.mark.parametrize(
    "words",
    [["audit-run", f"--timeout={value}"] for value in SECONDS]
    + [["merge", f"--wait={value}", "JSON", "--output=OUT"] for value in SECONDS if value != "0"],
    ids=_short,
)
def test_seconds_of_other_commands(words: list[str]) -> None:
    value = words[1].split("=")[1]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert f"{value} seconds" in result.stderr.replace(".0 ", " ").replace("1e+300", "1e300")


@pytest.mark.parametrize("words", [
    *(f"--moe-load-timeout={value}" for value in SECONDS),
    *(f"--moe-devices={value}" for value in DEVICES),
    *(f"--moe-hosts={value}" for value in HOSTS),
])  # fmt: skip
def test_an_option_of_the_plugin_out_of_bounds_ends_the_session(
    pytester: pytest.Pytester, words: str
) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    result = pytester.runpytest_inprocess(words, "-p", "no:cacheprovider")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    option = words.split("=")[0]
    result.stderr.fnmatch_lines([f"ERROR: * ({option}). Expected: * Try: {option} *"])


@pytest.mark.parametrize("timeout", [*map(float, SECONDS), True, "60", None])
def test_seconds_of_the_library(tiny_checkpoints: dict[str, Path], timeout: Any) -> None:
    with pytest.raises(BadInput, match="seconds"):
        verify(tiny_checkpoints["qwen3-vl-moe"], timeout=timeout)
    with pytest.raises(BadInput, match="seconds"):
        next(run_audit(target_named("emulated", 2), timeout=timeout))


@pytest.mark.parametrize("name", targets())
@pytest.mark.parametrize("value", [*DEVICES, True, 2.0, "4"])
def test_devices_of_the_library(name: str, value: Any) -> None:
    for make in (target_named, target_on):
        with pytest.raises(BadInput, match="devices"):
            make(name, value if name != "tpu" or make is target_named else value * 10**9)


@pytest.mark.parametrize("value", [*HOSTS, True, 2.0, "2", None])
@pytest.mark.parametrize("name", targets())
def test_hosts_of_the_library(name: str, value: Any) -> None:
    beyond = MOST_TPU_HOSTS + 1 if name == "tpu" and value in (17, 100) else value
    with pytest.raises(BadInput, match="hosts"):
        target_on(name, hosts=beyond)


@pytest.mark.parametrize("mesh", [*MESHES, None, 2, ["data=2"]], ids=lambda mesh: str(mesh)[:20])
def test_a_mesh_of_the_library(mesh: Any) -> None:
    with pytest.raises(BadInput, match=r"not a mesh|devices"):
        meshed("emulated", mesh)


def test_what_is_within_bounds() -> None:
    assert target_named("emulated", MOST_EMULATED_DEVICES).devices == MOST_EMULATED_DEVICES
    assert target_on("emulated", 16, hosts=MOST_EMULATED_HOSTS).hosts == MOST_EMULATED_HOSTS
    assert meshed("emulated", "data=16,model=16").devices == MOST_EMULATED_DEVICES


#: Where config.json has each number, and what makes it absurd besides being no natural number.
NUMBERS: dict[tuple[str, str], list[Any]] = {
    ("text_config", "num_hidden_layers"): [0, 3 * 10**8, 63],
    ("text_config", "mtp_num_hidden_layers"): [3 * 10**8, 100],
    ("text_config", "num_experts"): [0, MOST_EXPERTS + 1, 10**9, None],
    ("text_config", "hidden_size"): [0, 2**31, None],
    ("text_config", "moe_intermediate_size"): [0, 2**31, None],
    ("text_config", "num_attention_heads"): [0, 2**20, None],
    ("text_config", "num_key_value_heads"): [0, 2**20, None],
    ("text_config", "head_dim"): [0, 2**20, None],
    ("text_config", "vocab_size"): [0, 10**12, None],
    ("vision_config", "num_heads"): [0, 2**20, None],
    ("vision_config", "depth"): [10**8, None],
}
ANYWHERE = [2**64, -1, 8.9, 8.0, "8", True, [8], {"8": 8}]
CASES = [
    (place, value) for place, values in NUMBERS.items() for value in [*ANYWHERE, *values]
]  # fmt: skip


def _judge(at: Path) -> None:
    checkpoint = ModelCheckpoint(at)
    reference_parts(checkpoint)
    sizes_of(checkpoint.text, checkpoint.config)


@pytest.fixture
def copy(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "checkpoint"))


@pytest.mark.parametrize(("place", "value"), CASES, ids=lambda each: str(each)[-40:])
def test_a_number_of_config_json_is_one_or_refused(
    copy: Path, place: tuple[str, str], value: Any
) -> None:
    section, key = place
    edit_json(copy / "config.json", lambda c: c[section].update({key: value}))
    with pytest.raises(BadInput, match=key) as raised:
        _judge(copy)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("text", ["1e999", "-1e999", "9" * 400, "9" * 5000])
@pytest.mark.parametrize("key", ["num_experts", "of_no_interest"])
def test_a_number_beyond_64_bits_is_refused_wherever_it_stands(
    copy: Path, text: str, key: str
) -> None:
    config = (
        (copy / "config.json")
        .read_text()
        .replace('"text_config": {', f'"x": {{"{key}": {text}}}, "text_config": {{')
    )
    (copy / "config.json").write_text(config)
    with pytest.raises(BadInput, match=r"holds (a|the) number"):
        _judge(copy)


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("text_config", None, "text_config is a JSON NoneType"),
        ("text_config", "x", "text_config is a JSON str"),
        ("vision_config", [1], "vision_config is a JSON list"),
        ("vision_config", None, "vision_config is a JSON NoneType"),
        ("architectures", {"a": 1}, "unknown architecture"),
        ("architectures", [["Qwen3VLMoeForConditionalGeneration"]], "unknown architecture"),
        ("architectures", ["x" * 10**6], "unknown architecture x"),
        ("quantization_config", {"quant_method": "x" * 10**6}, "an unsupported quantisation"),
        ("tie_word_embeddings", "false", "tie_word_embeddings is 'false'"),
        ("tie_word_embeddings", 1, "tie_word_embeddings is 1"),
    ],
)
def test_a_value_of_another_type(copy: Path, key: str, value: Any, match: str) -> None:
    edit_json(copy / "config.json", lambda c: c.update({key: value}))
    with pytest.raises(BadInput, match=match) as raised:
        _judge(copy)
    first, *details = str(raised.value).splitlines()
    assert len(first) < 1000  # of what config.json says little is repeated
    assert sum(map(len, details)) < 2000  # names, counted by kind


def _set_text(values: dict[str, int], config: dict[str, Any]) -> None:
    config["text_config"].update(values)


def test_experts_of_all_layers_together_are_bounded(copy: Path) -> None:
    """Each number may do alone."""
    layers = len(ModelCheckpoint(copy).entries)
    most = MOST_EXPERTS_OF_ALL_LAYERS // layers
    assert most < MOST_EXPERTS
    for experts, match in ((most, "is BF16"), (most + 1, f"num_experts is {most + 1}")):
        text = {"num_hidden_layers": layers, "num_experts": experts}
        edit_json(copy / "config.json", partial(_set_text, text))
        with pytest.raises(BadInput, match=match):
            _judge(copy)


@pytest.mark.alone
@pytest.mark.parametrize(("name", "write"), [*bombs()], ids=[name for name, _ in bombs()])
def test_a_bomb_is_refused_in_time_and_memory(
    copy: Path, name: str, write: Callable[[Path], None]
) -> None:
    """2 s of processor time, and 512 MiB above the bytes of the files."""
    write(copy)
    held = sum(file.stat().st_size for file in copy.iterdir())
    command = [sys.executable, "-m", "tests.support.input_bombs", str(copy)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    measured = json.loads(ran.stdout)
    if measured["seconds"] >= 2:  # neighbours of a processor's core slow it down
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        measured = json.loads(ran.stdout)
    assert measured["told"] != "accepted"
    assert len(measured["told"]) < 2000
    assert measured["seconds"] < 2
    assert measured["bytes"] < held + 512 * 2**20


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8.9, "8.9"), ("8", "'8'"), (float("inf"), "inf"),
        ("\x1b[31m", "'\\x1b[31m'"), ("é", "'\\xe9'"),
    ],
)  # fmt: skip
def test_a_value_in_a_message(value: object, text: str) -> None:
    assert shown(value) == text


def test_an_integer_that_python_does_not_write_out() -> None:
    assert shown(10**5000) == "a huge integer"


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**6)), {n: n for n in range(10**5)}])
def test_a_value_in_a_message_is_short(value: object) -> None:
    assert len(shown(value)) <= 200


def test_seconds_are_bounded_by_a_day() -> None:
    assert MOST_SECONDS == 24 * 3600
