"""Pairs that nobody pinned: what a spelling stands for, how it is resolved, and when it fails."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.pipelines import ROOT, program

VERSIONS = {
    "vllm": ["0.33.0", "0.32.0", "0.29.0", "0.27.1", "0.27.0", "0.22.0", "0.22.0rc1"],
    "tpu-inference": [
        "0.32.0", "0.32.0rc1", "0.32.0.dev20261026", "0.32.0.dev20261024", "0.29.0",
        "0.29.0.dev20260929", "0.27.0", "0.22.1",
    ],
    "runai-model-streamer": ["0.17.0", "0.15.9"],
}  # fmt: skip


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The scripts of a checkout of their own, whose index is :data:`VERSIONS`."""
    (tmp_path / "ci").mkdir()
    for name in ("setup", "pairs"):
        shutil.copy(ROOT / "ci" / f"{name}.py", tmp_path / "ci")
        monkeypatch.setitem(sys.modules, name, ModuleType(name))  # what was there comes back
        del sys.modules[name]
    shutil.copytree(ROOT / "ci" / "stacks", tmp_path / "ci" / "stacks")
    (tmp_path / "harness" / "report").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "ci"))
    module = importlib.import_module("setup")
    assert tmp_path == module.ROOT
    monkeypatch.setattr(module, "index", lambda: VERSIONS.__getitem__)
    return module


@pytest.fixture
def pairs(setup: ModuleType) -> ModuleType:
    return sys.modules["pairs"]


@pytest.fixture
def state(setup: ModuleType) -> Path:
    """The checkout."""
    root: Path = setup.ROOT
    return root


@pytest.mark.parametrize(
    ("spelling", "found"),
    [
        ("0.29", ["0.29.0+0.29.0"]),
        ("0.27", ["0.27.1+0.27.0"]),
        ("0.27.0", ["0.27.0+0.27.0"]),
        ("0.22", ["0.22.0+0.22.1"]),
        ("0.33+0.32", ["0.33.0+0.32.0"]),
        ("0.32+0.32.0.dev20261024", ["0.32.0+0.32.0.dev20261024"]),
        ("latest", ["0.33.0+0.32.0", "0.32.0+0.32.0"]),
        ("nightly", ["0.32.0+0.32.0.dev20261026", "0.33.0+0.32.0.dev20261026"]),
    ],
)
def test_what_a_spelling_stands_for(pairs: ModuleType, spelling: str, found: list[str]) -> None:
    assert pairs.is_spelling(spelling)
    given = [pair.name for pair in pairs.candidates(spelling, VERSIONS.__getitem__)]
    assert given[: len(found)] == found
    assert len(given) == 1 or spelling in ("latest", "nightly")


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("0.31", r"no vllm 0\.31 in the package index.*0\.32\.0, 0\.33\.0"),
        ("0.33", r"no tpu-inference 0\.33 in the package index"),
        ("0.32+0.32.0.dev20261025", r"no tpu-inference 0\.32\.0\.dev20261025"),
        ("newest", "unknown stack 'newest'.*latest, nightly"),
    ],
)
def test_what_the_index_has_not(pairs: ModuleType, spelling: str, message: str) -> None:
    with pytest.raises(pairs.SetupError, match=message):
        list(pairs.candidates(spelling, VERSIONS.__getitem__))


def test_another_streamer_is_part_of_the_name(pairs: ModuleType) -> None:
    (pair,) = pairs.candidates("0.32", VERSIONS.__getitem__, "0.17.0")
    assert pair.name == "0.32.0+0.32.0+streamer-0.17.0"
    with pytest.raises(pairs.SetupError, match=r"no runai-model-streamer 0\.18"):
        list(pairs.candidates("0.32", VERSIONS.__getitem__, "0.18"))


def test_the_order_of_versions(pairs: ModuleType) -> None:
    """The builds of the days follow the release that they are named after."""
    line = ["0.25.0", "0.26.0rc1", "0.26.0", "0.26.0.dev20260731", "0.26.0.dev20260820", "0.27.0"]
    assert sorted(set(line), key=pairs.order) == line


def test_the_pinned_stacks_stay(setup: ModuleType) -> None:
    assert [setup.is_pair(name) for name in (*setup.stacks(), "installed", "")] == [False] * 6
    assert [setup.is_pair(name) for name in ("0.29", "latest", "0.26.0+0.26.0")] == [True] * 3


def test_the_index_is_asked_through_pip(pairs: ModuleType, tmp_path: Path) -> None:
    pip = tmp_path / "pip"
    program(pip, f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\necho "Available versions: 0.2, 0.1"\n')
    index = pairs.Index(lambda: [str(pip)], "3.12")
    assert index("vllm") == index("vllm") == ["0.2", "0.1"]
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith("index versions --pre")
    assert call.endswith("--python-version 3.12 vllm")
    program(pip, "#!/bin/sh\necho no network >&2; exit 1\n")
    with pytest.raises(pairs.SetupError, match="cannot list the versions of jax: no network"):
        index("jax")


# Overrides that follow from tpu-inference's own pins.


def test_overrides_follow_from_the_pins(pairs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def compiled(uv: str, python: str, *options: str, given: str = "") -> str:
        asked.append(given)
        return "torch==2.12.0\ntorchvision==0.27.0\n"

    monkeypatch.setattr(pairs, "compile_quietly", compiled)
    own = ["torchvision==0.27.0", "numba==0.63.0", "jax==0.12.0", "transformers>=5", "numpy"]
    found = pairs.derived_overrides(own, "uv", "3.12")
    assert asked == ["torchvision==0.27.0\n"]
    assert found[-3:] == ["numba==0.63.0", "torch==2.12.0", "torchvision==0.27.0"]
    assert "libtpu; sys_platform == 'never'" in found
    assert not [line for line in found if line.startswith(("jax", "numba==0.62"))]
    assert pairs.derived_overrides(["torch==2.9"], "uv", "3.12")[-2:] == ["torch==2.9", "numba"]


# A fake uv: compiles, installs and syncs as it is told.

FAKE_UV = """#!/bin/sh
echo "uv $*" >> "{plan}/calls"
case "$1 $2" in
  "pip compile")
    if [ -e "{plan}/contradiction" ]; then cat "{plan}/contradiction" >&2; exit 1; fi
    if [ -e "{plan}/offline" ]; then echo "error: no network" >&2; exit 2; fi
    for last; do
      case "$before" in --output-file) printf 'vllm==0.29.0\\n' > "$last";; esac; before=$last
    done
    case "$last" in -) echo torch==2.10.0;; esac;;
  "pip install") for last; do
      case "$before" in --target) mkdir -p "$last/t.dist-info"
        printf 'Requires-Dist: torchvision==0.25.0\\nRequires-Dist: numba==0.62.1\\n' \\
          > "$last/t.dist-info/METADATA";; esac; before=$last; done;;
  venv*) for last; do :; done; mkdir -p "$last/bin"
    cp "{plan}/python" "$last/bin/python";;
esac
"""


@pytest.fixture
def uv(setup: ModuleType, state: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a fake uv's plan; Python 3.12 is there, and imports what is planned."""
    plan = state / "plan"
    plan.mkdir()
    program(plan / "uv", FAKE_UV.format(plan=plan))
    tell(plan, "works")
    monkeypatch.setattr(setup, "find_uv", lambda: str(plan / "uv"))
    monkeypatch.setattr(setup, "find_python", lambda wanted, uv: "python3.12")
    return plan


def tell(plan: Path, verdict: str, why: str = "") -> None:
    line = json.dumps({"verdict": verdict, "why": why})
    program(plan / "python", f"#!/bin/sh\necho probed >> {plan}/calls\necho '{line}'\n")


def calls(plan: Path, words: str) -> int:
    return sum(words in call for call in (plan / "calls").read_text().splitlines())


def test_a_pair_is_resolved_once(setup: ModuleType, state: Path, uv: Path) -> None:
    at = setup.wanted("0.29", "emulated")
    assert at == state / ".venv-0.29.0+0.29.0"
    kept = state / ".stacks" / "0.29.0+0.29.0.txt"
    assert kept.read_text() == "vllm==0.29.0\n"
    assert "torch==2.10.0" in kept.with_suffix(".overrides").read_text()
    assert "tpu-inference==0.29.0" in kept.with_suffix(".in").read_text()
    compiles = calls(uv, "pip compile")
    kept.write_text("vllm==0.29.0\njax==0.11.0\n")  # what another night resolved
    assert setup.wanted("0.29", "emulated") == at
    assert calls(uv, "pip compile") == compiles
    assert calls(uv, "pip sync") == 2  # the environment is the requirements', again
    setup.wanted("0.29", "emulated", again=True)
    assert kept.read_text() == "vllm==0.29.0\n"


def test_a_pair_that_was_resolved_asks_no_index(
    setup: ModuleType, state: Path, uv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.wanted("0.29", "emulated")
    monkeypatch.setattr(setup, "index", lambda: {}.__getitem__)
    assert setup.wanted("0.29.0+0.29.0", "emulated").exists()


def test_a_streamer_that_upstream_does_not_pin(setup: ModuleType, state: Path, uv: Path) -> None:
    at = setup.wanted("0.29", "emulated", "0.17.0")
    assert at.name == ".venv-0.29.0+0.29.0+streamer-0.17.0"
    kept = state / ".stacks" / "0.29.0+0.29.0+streamer-0.17.0.overrides"
    assert "runai-model-streamer[s3,gcs]==0.17.0" in kept.read_text().splitlines()
    pinned = setup.wanted("0.32", "emulated", "0.17.0")
    assert pinned.name == ".venv-0.32+streamer-0.17.0"
    given = (state / ".stacks" / "0.32+streamer-0.17.0.in").read_text().splitlines()
    assert "jax==0.11.2" in given
    assert [line for line in given if line.startswith("runai")] == [
        "runai-model-streamer[s3,gcs]==0.17.0"
    ]


NO_SOLUTION = """error: No solution found when resolving dependencies
  cause: Because tpu-inference==0.29.0 depends on transformers==5.5.3 and vllm==0.29.0 depends on
         transformers>=5.16.1, we can conclude that your requirements are unsatisfiable.
"""


def test_a_pair_that_cannot_be_installed(
    setup: ModuleType, state: Path, uv: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (uv / "contradiction").write_text(NO_SOLUTION)
    with pytest.raises(setup.PairFails) as error:
        setup.environment_of_pair(setup.Pair("0.29.0", "0.29.0"))
    assert error.value.verdict == "unresolvable"
    assert "tpu-inference==0.29.0 depends on transformers==5.5.3" in error.value.why
    monkeypatch.setattr(sys, "argv", ["setup.py", "0.29"])
    assert setup.main() == 4
    assert "vLLM 0.29.0 with tpu-inference 0.29.0 cannot be installed" in capsys.readouterr().err
    assert not list(state.glob(".venv*"))


def test_an_index_that_does_not_answer_is_no_verdict(
    setup: ModuleType, state: Path, uv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (uv / "offline").touch()
    monkeypatch.setattr(sys, "argv", ["setup.py", "0.29"])
    assert setup.main() == 2


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("unimportable", "cannot be imported together: cannot import name ACT"),
        ("no-worker", "have no worker to load with: cannot import name ACT"),
    ],
)
def test_a_pair_that_cannot_be_imported(
    setup: ModuleType, pairs: ModuleType, uv: Path, verdict: str, words: str
) -> None:
    """Asked once for an environment; a table of pairs that ran names the nearest that works."""
    seen = [
        {"vllm": v, "tpu_inference": t, "verdict": verdict}
        for v, t, verdict in (("0.28.0", "0.28.0", "works"), ("0.29.0", "0.29.0", "unimportable"),
                              ("0.30.0", "0.30.0", "works"), ("0.22.0", "0.22.1", "works"))
    ]  # fmt: skip
    pairs.SEEN.write_text(json.dumps({"pairs": seen}))
    tell(uv, verdict, "cannot import name ACT.")
    for _ in range(2):
        with pytest.raises(setup.PairFails, match=words) as error:
            setup.wanted("0.29", "emulated")
    assert "Nearest pair that works: vLLM 0.30.0 with tpu-inference 0.30.0" in str(error.value)
    assert calls(uv, "probed") == 1


def test_nightly_takes_the_newest_that_imports(
    setup: ModuleType, state: Path, uv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = setup.probe

    def probe(at: Path, pair: Any) -> None:
        tell_here = "works" if pair.vllm == "0.33.0" else "unimportable"
        tell(uv, tell_here, "no")
        (at / "bin" / "python").write_text((uv / "python").read_text())
        real(at, pair)

    monkeypatch.setattr(setup, "probe", probe)
    assert setup.wanted("nightly", "emulated").name == ".venv-0.33.0+0.32.0.dev20261026"
    with pytest.raises(setup.PairFails, match=r"vLLM 0\.29\.0 with tpu-inference 0\.29\.0 cannot"):
        setup.wanted("0.29", "emulated")


def test_latest_that_cannot_be_imported_is_news(setup: ModuleType, state: Path, uv: Path) -> None:
    tell(uv, "unimportable", "no.")
    with pytest.raises(setup.PairFails, match=r"vLLM 0\.33\.0 with tpu-inference 0\.32\.0 cannot"):
        setup.wanted("latest", "emulated")
    assert calls(uv, "probed") == 1


def test_one_environment_is_changed_from_pair_to_pair(
    setup: ModuleType, state: Path, uv: Path
) -> None:
    for stack in ("0.29", "0.33+0.32"):
        assert setup.made_pair(stack, inside="bisect") == state / ".venv-bisect"
        (state / ".stacks" / "0.33.0+0.32.0.txt").write_text("vllm==0.33.0\n")
    assert calls(uv, "uv venv") == 1
    assert calls(uv, "pip sync") == calls(uv, "probed") == 2


def test_a_set_up_that_was_killed_is_done_again(
    setup: ModuleType, state: Path, uv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.made_pair("0.29", inside="bisect")
    (state / ".stacks" / "0.33.0+0.32.0.txt").write_text("vllm==0.33.0\n")

    def killed(*command: str, **_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(setup, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            setup.made_pair("0.33+0.32", inside="bisect")
    syncs = calls(uv, "pip sync")
    setup.made_pair("0.29", inside="bisect")
    assert calls(uv, "pip sync") == syncs + 1


def test_environments_nobody_uses_are_removed(setup: ModuleType, state: Path, uv: Path) -> None:
    at = setup.wanted("0.29", "emulated")
    (state / ".venv").mkdir()
    setup.prune(1)
    assert at.exists()
    setup.prune(0)
    assert not at.exists()
    assert (state / ".venv").exists()
    assert (state / ".stacks" / "0.29.0+0.29.0.txt").exists()


def test_two_set_ups_at_once(setup: ModuleType, state: Path) -> None:
    order: list[str] = []

    def other() -> None:
        with setup.locked("x"):
            order.append("second")

    with setup.locked("x"):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_the_day_a_version_was_built(pairs: ModuleType, tmp_path: Path) -> None:
    assert pairs.built_on("tpu-inference", "0.26.0.dev20260820", [], tmp_path) == "2026-08-20"
    wheel = tmp_path / "w.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        for month in (7, 8):
            made.writestr(zipfile.ZipInfo(f"{month}", (2026, month, 22, 1, 2, 4)), b"")
    assert pairs.built_on("vllm", "0.27.0", ["true"], tmp_path) == "2026-08-22"
    assert pairs.built_on("vllm", "0.27.0", ["false"], tmp_path) == ""


def test_the_script_knows_its_options() -> None:
    ran = subprocess.run(
        [sys.executable, str(ROOT / "ci" / "setup.py"), "--help"], capture_output=True, text=True
    )
    assert ran.returncode == 0
    assert "--streamer" in ran.stdout
