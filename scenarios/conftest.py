"""Fixtures of the scenarios: how one is run, and the object stores some of them lie in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from harness.app.plugin import Expected, TargetOf, Verified
from harness.report.known_issue import KnownIssue

from .scenario import Scenario, Store, require_quantised
from .urls import gcs_url, s3_url

__all__ = ["gcs_url", "s3_url"]  # fixtures, for the scenarios alone

#: What is collected only where it is named: rows that stand in no table of runs.
_ASKED_FOR = ("test_formats.py", "test_implementations.py")

Put = Callable[[str | Path], str | Path]
Stored = Callable[[Store], Put]
Arrives = Callable[[Scenario, Sequence[KnownIssue]], None]


@pytest.fixture
def arrives(
    pytestconfig: pytest.Config,
    tmp_path: Path,
    moe_target_of: TargetOf,
    moe_verified: Verified,
    moe_expected: Expected,
    stored: Stored,
) -> Arrives:
    """Load and compare a scenario; fail unless that ends as a table of known issues says.

    A checkpoint that the user named has no row, so nothing is known of it.
    """

    def run(scenario: Scenario, issues: Sequence[KnownIssue]) -> None:
        target = moe_target_of(
            scenario.devices, scenario.parallelism, scenario.hosts, scenario.mesh, scenario.asked
        )
        require_quantised(scenario, target)
        put = stored(scenario.store)
        checkpoint, reference = scenario.checkpoint(tmp_path)
        report = moe_verified(
            put(checkpoint),
            target,
            reference=reference,
            parts=scenario.parts,
            nan=scenario.nan(target),
            stream_options=scenario.stream_options,
        )
        layers = pytestconfig.getoption("--moe-num-layers")
        load = None if scenario.source else scenario.load(target, layers)
        moe_expected(load, report, issues)

    return run


@pytest.fixture
def stored(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stored:
    """Point the environment to a store; gives what puts a checkpoint there and tells its URL.

    Skips, before anything is written, where nothing here serves such a store.
    """

    def of(store: Store) -> Put:
        if store is Store.NONE:
            return lambda path: path
        if find_spec(store.server) is None:
            pytest.skip(f"no {store.server} here, which serves {store}:// for the scenarios")
        from . import stores

        url = request.getfixturevalue(f"{'s3' if store is Store.S3 else 'gcs'}_url")
        s3 = store is Store.S3
        environment = stores.s3_environment(url) if s3 else stores.gcs_environment(url)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if s3:
            client = stores.s3_client(url)
            return lambda path: stores.upload(client, Path(path), Path(path).name)
        return lambda path: stores.gcs_upload(url, Path(path), Path(path).name)

    return of


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave rows that stand in no table of runs out, unless their file is named."""
    name = collection_path.name
    if name not in _ASKED_FOR or any(name in word for word in config.args):
        return None
    return True
