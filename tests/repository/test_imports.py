"""Imports run one way, down the data flow, and only the load touches the stack under test."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent
LINTER = Path(sys.executable).with_name("lint-imports")

UNDER_TEST = {
    "vllm", "tpu_inference", "torch", "torch_xla", "torchax", "jax", "runai_model_streamer",
}  # fmt: skip

#: The rooms and the modules that may import the stack, in their functions.
MAY_IMPORT_IT = {
    "load", "audit", "devices.digest_xla", "devices.digest_triton", "devices.jax_arrays",
}  # fmt: skip

#: Imported by vLLM itself, as the class of a platform or of a worker; by nothing of the harness.
IMPORTED_BY_VLLM = ("load.host_platform", "load.emulated_worker")


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_of(path: Path) -> str:
    """A file's module without the package's name, ``load.engine``; of a room, ``load``."""
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names).removesuffix(".__init__")


def imports(path: Path) -> list[tuple[str, bool]]:
    """All that a file imports, and whether it does so at its top; ``from a import b`` is a.b."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(name, node in tree.body) for name in names]
    return found


def may_import_it(module: str) -> bool:
    return any(f"{module}.".startswith(f"{name}.") for name in MAY_IMPORT_IT)


def under_test(path: Path, module: str) -> list[str]:
    """What a file of ``module`` imports of the stack, and may not: at all, or at its top."""
    if module in IMPORTED_BY_VLLM:
        return []
    return [
        name
        for name, at_top in imports(path)
        if f"{name}.".startswith(tuple(f"harness.{each}." for each in IMPORTED_BY_VLLM))
        or (name.split(".")[0] in UNDER_TEST and (at_top or not may_import_it(module)))
    ]


def linted(at: Path) -> subprocess.CompletedProcess[str]:
    """What the linter of imports says of the package below ``at``."""
    lint = [str(LINTER), "--no-cache", "--no-logo", "--config", str(at / "pyproject.toml")]
    environment = {"PYTHONPATH": str(at), "COLUMNS": "200"}
    return subprocess.run(
        lint, cwd=at, capture_output=True, text=True, check=False, env=environment, timeout=120
    )


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and of its contracts, to plant imports in."""
    at = tmp_path_factory.mktemp("house")
    shutil.copytree(ROOT, at / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT.parent / "pyproject.toml", at)
    return at


def test_imports_run_down_the_flow(house: Path) -> None:
    ran = linted(house)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("compare.difference", "report.report"),
        ("load.engine", "compare.equality"),
        ("verification.job", "audit.run"),
        ("families.family", "synthetic.writer"),
        ("checkpoint.checkpoint", "families.known_families"),
        ("base.number_runs", "app.cli"),
        ("explain.rules", "load.engine"),
    ],
)
def test_an_upward_import_is_seen(house: Path, module: str, imported: str) -> None:
    path = house / "harness" / f"{module.replace('.', '/')}.py"
    before = path.read_text()
    path.write_text(f"{before}\n\ndef planted() -> None:\n    import harness.{imported}\n")
    try:
        ran = linted(house)
    finally:
        path.write_text(before)
    assert ran.returncode == 1, ran.stderr
    assert f"harness.{module} -> harness.{imported}" in ran.stdout


@pytest.mark.parametrize("path", modules(), ids=module_of)
def test_only_the_load_imports_the_stack_and_not_at_its_top(path: Path) -> None:
    assert under_test(path, module_of(path)) == []


#: What reads a file or a message and may run what is written there.
RUNS_WHAT_IT_READS = (
    "pickle.", "_pickle.", "cPickle.", "marshal.", "shelve.", "dbm.", "copyreg.",
    "multiprocessing.", "concurrent.futures.process.", "joblib.", "dill.", "cloudpickle.",
)  # fmt: skip


def runs_what_it_reads(path: Path) -> list[str]:
    """What a file imports or calls that would run the content of what it reads."""
    found = [name for name, _ in imports(path)]
    text = path.read_text()
    return [
        *(name for name in found if f"{name}.".startswith(RUNS_WHAT_IT_READS)),
        *(call for call in ("allow_pickle", "torch.load(", "ProcessPool") if call in text),
    ]


@pytest.mark.parametrize("path", modules(), ids=module_of)
def test_nothing_is_run_that_was_read(path: Path) -> None:
    assert runs_what_it_reads(path) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "def f():\n    from multiprocessing import Queue",
     "from marshal import loads", "numpy.load(path, allow_pickle=True)", "torch.load(path)",
     "from concurrent.futures import ProcessPoolExecutor"],
)  # fmt: skip
def test_what_would_run_is_seen(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.py").write_text(text)
    assert runs_what_it_reads(tmp_path / "x.py")


def test_who_may_import_the_stack_does() -> None:
    doing = {
        module_of(path)
        for path in modules()
        if any(name.split(".")[0] in UNDER_TEST for name, _ in imports(path))
    }
    assert all(any(f"{of}.".startswith(f"{name}.") for of in doing) for name in MAY_IMPORT_IT)
    assert set(IMPORTED_BY_VLLM) <= doing


@pytest.mark.parametrize(
    ("text", "of", "found"),
    [
        ("import jax.numpy as jnp", "load.recording", ["jax.numpy"]),
        ("def f():\n    import torch", "compare.pieces", ["torch"]),
        ("def f():\n    import jax", "devices.tensors", ["jax"]),
        ("def f():\n    import torch", "load.recording", []),
        ("def f():\n    import jax", "devices.digest_xla", []),
        (
            "from harness.load import host_platform", "load.target",
            ["harness.load.host_platform"],
        ),
        (
            "from harness.load.host_platform import HostPlatform", "load.target",
            ["harness.load.host_platform.HostPlatform"],
        ),
    ],
)  # fmt: skip
def test_an_import_of_the_stack_is_seen(
    tmp_path: Path, text: str, of: str, found: list[str]
) -> None:
    (tmp_path / "x.py").write_text(text)
    assert under_test(tmp_path / "x.py", of) == found
