"""Frames and call sites of the stack under test are named from their package on, no others."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from harness.load.ledger import Ledger, LoaderCall
from harness.verification.upstream_frames import failure_of, name_sites


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A package of that name, whose one function fails."""
    home = tmp_path / "site" / "vllm"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("def load():\n    raise KeyError('as planted')\n")
    spec = importlib.util.spec_from_file_location(
        "vllm", home / "__init__.py", submodule_search_locations=[str(home)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    monkeypatch.setitem(sys.modules, "vllm", package)
    return package


def test_a_failure_has_upstreams_frames_alone(vllm: ModuleType) -> None:
    with pytest.raises(KeyError) as raised:
        vllm.load()
    failure = failure_of(raised.value)
    assert (failure.error, failure.message) == ("KeyError", "'as planted'")
    (frame,) = failure.frames
    assert (frame.file, frame.line, frame.function) == ("vllm/__init__.py", 2, "load")


def test_an_error_class_is_named_with_its_module() -> None:
    class Refused(ValueError):
        pass

    assert failure_of(Refused("no")).error.endswith("Refused")
    assert failure_of(Refused("no")).error.startswith(f"{__name__}.")


def test_call_sites_are_named_from_their_package_on(vllm: ModuleType) -> None:
    (home,) = vllm.__path__
    sites = [f"{home}/models/m.py:7", "/elsewhere/m.py:8", f"{home}/models/m.py:7"]
    ledger = Ledger()
    ledger.calls = [blank_call()._replace(site=site) for site in sites]
    name_sites(ledger)
    named = ["vllm/models/m.py:7", "/elsewhere/m.py:8", "vllm/models/m.py:7"]
    assert [call.site for call in ledger.calls] == named


def blank_call() -> LoaderCall:
    unknown: Any = None
    return LoaderCall(*[unknown] * len(LoaderCall._fields))
