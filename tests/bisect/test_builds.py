"""Versions in the order of time, and which of the other package goes with each."""

from __future__ import annotations

import pytest

from harness.base.errors import BadInput
from harness.bisect.builds import chosen_version, companions, days_between, releases_between

VERSIONS = [
    "0.28.0", "0.27.0", "0.27.0rc1", "0.27.0.dev20260825", "0.27.0.dev20260822",
    "0.26.0.dev20260820", "0.26.0.dev20260731", "0.26.0", "0.26.0rc1", "0.25.0", "not-a-version",
]  # fmt: skip


def test_releases_come_first() -> None:
    assert releases_between(VERSIONS, "0.25.0", "0.28.0") == [
        "0.25.0",
        "0.26.0",
        "0.27.0",
        "0.28.0",
    ]


def test_builds_of_a_day_follow_the_release_they_are_named_after() -> None:
    days = ["0.26.0", "0.26.0.dev20260731", "0.26.0.dev20260820", "0.27.0"]
    assert days_between(VERSIONS, "0.26.0", "0.27.0") == days
    assert days_between(VERSIONS, "0.26.0.dev20260820", "0.27.0.dev20260825") == [
        "0.26.0.dev20260820", "0.27.0.dev20260822", "0.27.0.dev20260825"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("0.26", "0.26.0"), ("0.27.0", "0.27.0"), ("0.26.0.dev20260820", "0.26.0.dev20260820")],
)
def test_what_a_number_means(wanted: str, found: str) -> None:
    assert chosen_version("tpu-inference", wanted, VERSIONS) == found


def test_a_version_that_is_not_there() -> None:
    with pytest.raises(BadInput, match=r"no tpu-inference 0\.30 .*0\.27\.0, 0\.28\.0"):
        chosen_version("tpu-inference", "0.30", VERSIONS)


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("0.26.0.dev20260820", ["0.26.0", "0.27.1", "0.25.1"]),
        ("0.24.0", ["0.25.1"]),
        ("0.27.0", ["0.27.1", "0.26.0"]),
    ],
)
def test_the_other_package_follows(version: str, found: list[str]) -> None:
    others = ["0.25.0", "0.25.1", "0.26.0", "0.27.0", "0.27.1", "0.27.1rc1"]
    assert companions(version, others) == found
