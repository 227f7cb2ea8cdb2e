"""Imports run one way, down the data flow, and only the load touches the stack under test."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent

#: The order of the flow; a module may import those before it.
FLOW = [
    "secrets", "foreign", "errors", "writing", "bounds",
    "runs", "dtypes", "nan", "places", "safetensors_file", "fp8",
    "family", "checkpoint",
    "experts", "selection", "synthetic",
    "equal_numba", "equal", "fingerprint_numba", "fingerprint", "fingerprint_triton",
    "layout", "fingerprint_xla",
    "device", "arrays",
    "mesh", "parameters", "parameter_table", "parameter_layout", "placed", "pieces", "placement",
    "ties", "placements", "replicas", "progress", "difference", "held", "digests", "checks",
    "compare", "compare_fp8",
    "ledger", "causes", "findings", "maps", "deliveries",
    "provenance", "evidence", "origin", "distance", "rules", "diagnosis", "load_failure",
    "coverage", "compare_fp8_parameters", "compare_parameters", "explain_parameters",
    "report", "merge", "figures", "upstream",
    "vllm_platform", "host_platform", "tpu", "environment", "target", "known", "message",
    "terminal", "hosts", "meshes", "stack",
    "overlay", "hook", "cut",
    "recording", "loaded", "emulated_slice",
    "tpu_engine", "xla_engine", "engine", "connection", "twin", "guard", "child", "chips", "load",
    "load_processes",
    "verify_parameters", "job", "outcomes", "verification",
    "junit", "markdown", "page", "history", "renderings", "collector",
    "audit", "cli_reports", "cli", "plugin",
]  # fmt: skip

UNDER_TEST = {
    "vllm", "tpu_inference", "torch", "torch_xla", "torchax", "jax", "runai_model_streamer",
}  # fmt: skip

MAY_IMPORT_IT = {
    "tpu_engine", "xla_engine", "hook", "recording", "audit", "fingerprint_xla",
    "fingerprint_triton",
    "emulated_slice",
}  # fmt: skip

#: Imported by vLLM itself, as the class of a platform; by nothing of the harness.
IMPORTED_BY_VLLM = "host_platform"


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def noun(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module of a file, and whether it is imported at the file's top level."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{a.name}" for a in node.names]
            names = names if node.module == "harness" else [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [(name, node in tree.body) for name in names]
    return found


def test_the_flow_names_every_module() -> None:
    assert sorted({noun(path) for path in modules()}) == sorted(FLOW)


def upward(path: Path, noun: str) -> list[str]:
    """What a file of ``noun`` imports that does not stand before it in the flow."""
    found = [name for name, _ in imports(path) if name.startswith("harness.")]
    before = FLOW[: FLOW.index(noun) + 1]
    return [name for name in found if name.split(".")[1] not in before]


def under_test(path: Path, noun: str) -> list[str]:
    """What a file of ``noun`` imports of the stack, and may not: at all, or at its top."""
    if noun == IMPORTED_BY_VLLM:
        return []
    return [
        name
        for name, at_top in imports(path)
        if name == f"harness.{IMPORTED_BY_VLLM}"
        or (name.split(".")[0] in UNDER_TEST and (at_top or noun not in MAY_IMPORT_IT))
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_down_the_flow(path: Path) -> None:
    assert upward(path, noun(path)) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_load_imports_the_stack_and_not_at_its_top(path: Path) -> None:
    assert under_test(path, noun(path)) == []


#: What reads a file or a message and may run what is written there.
RUNS_WHAT_IT_READS = {
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dbm", "copyreg", "multiprocessing",
    "concurrent.futures.process", "joblib", "dill", "cloudpickle",
}  # fmt: skip


def runs_what_it_reads(path: Path) -> list[str]:
    """What a file imports or calls that would run the content of what it reads."""
    found = [name for name, _ in imports(path)]
    text = path.read_text()
    return [
        *(name for name in found if {name, name.split(".")[0]} & RUNS_WHAT_IT_READS),
        *(call for call in ("allow_pickle", "torch.load(", "ProcessPool") if call in text),
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
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
        noun(path)
        for path in modules()
        if any(name.split(".")[0] in UNDER_TEST for name, _ in imports(path))
    }
    assert doing == MAY_IMPORT_IT | {IMPORTED_BY_VLLM}


@pytest.mark.parametrize(
    ("text", "of", "found"),
    [
        ("from harness.report.report import Report", "compare", ["harness.report.report"]),
        ("def f():\n    from harness import cli", "load", ["harness.app.cli"]),
        ("from harness.compare.expert_comparison import Comparison", "report", []),
    ],
)
def test_an_upward_import_is_seen(tmp_path: Path, text: str, of: str, found: list[str]) -> None:
    (tmp_path / "x.py").write_text(text)
    assert upward(tmp_path / "x.py", of) == found


@pytest.mark.parametrize(
    ("text", "of", "found"),
    [
        ("import jax.numpy as jnp", "hook", ["jax.numpy"]),
        ("def f():\n    import torch", "compare", ["torch"]),
        ("def f():\n    import torch", "hook", []),
        ("from harness import host_platform", "target", ["harness.load.host_platform"]),
    ],
)
def test_an_import_of_the_stack_is_seen(
    tmp_path: Path, text: str, of: str, found: list[str]
) -> None:
    (tmp_path / "x.py").write_text(text)
    assert under_test(tmp_path / "x.py", of) == found
