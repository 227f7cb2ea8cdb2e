"""A plugin that shuffles a session: ``SHUFFLE=7 pytest -p tests.support.shuffled -n 2``.

Modules, and the tests in each, are shuffled by the number, so that a module's fixtures serve all of
its tests; the same number gives the same order, on every worker.
"""

from __future__ import annotations

import os
import random

import pytest


def pytest_report_header() -> str:
    return f"shuffled: SHUFFLE={_seed()}"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    chosen = random.Random(_seed())
    modules = sorted({item.nodeid.split("::")[0] for item in items})
    chosen.shuffle(modules)
    chosen.shuffle(items)
    items.sort(key=lambda item: modules.index(item.nodeid.split("::")[0]))


def _seed() -> str:
    return os.environ.get("SHUFFLE", "1")
