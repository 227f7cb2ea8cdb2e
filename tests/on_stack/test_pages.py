"""What pages tell a reader to type does what they say, on the real stack."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness.synthetic.writer import write_checkpoint
from scenarios.stores import s3_client, s3_environment, s3_server
from tests.support.pipelines import ROOT
from tests.support.ray_nodes import ray_nodes

#: Pages with commands that are not run as a whole here: what they need, or where they are run.
ELSEWHERE = {
    "README.md": "make verify by .ci/run; the rest is the tutorial's",
    "CONTRIBUTING.md": "make check, make docs and make test by .ci/run; tables of runs by hand",
    "ci/README.md": "tests/repository/test_nightly.py, over a fake stack",
    "ci/tpu-vm.md": "needs a TPU VM",
    "docker/README.md": "needs a Docker engine; tests/repository/test_images.py",
    "docs/bisect.md": "tests/bisect, over a fake index, a small clone and fake builds",
    "docs/branch.md": "tests/load/test_overlay.py and tests/audit",
    "docs/digests.md": "tests/on_stack/test_digest_files.py",
    "docs/formats.md": "scenarios/test_formats.py, when asked for",
    "docs/gpu.md": "needs a GPU",
    "docs/own-ci.md": "tests/repository/test_nightly.py and test_own_ci_page.py",
    "docs/real-weights.md": "needs a TPU, a bucket or the hub; stores by the scenarios",
    "docs/releases.md": "tests/repository/test_pairs.py, over fakes",
    "docs/running-engine.md": "tests/on_stack/test_running_engine.py",
    "docs/several-hosts.md": "the scenarios on two hosts; needs a TPU slice",
}
HERE = (
    "docs/tutorial.md", "docs/own-tests.md", "docs/bucket.md", "docs/digest-file.md",
    "docs/own-family.md", "docs/ray.md",
)  # fmt: skip
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
#: What sets the environment or a cluster up: these tests run in one.
SET_UP = re.compile(r"^(make setup|\. \.venv/bin/activate|uv build .*|ray start .*)$", re.M)


def blocks(page: str) -> list[tuple[str, str]]:
    """Kind and content of each block of code, in order."""
    return BLOCK.findall((ROOT / page).read_text())


def typed(command: str, folder: Path, variables: Mapping[str, str] | None = None) -> str:
    """What a block prints, errors last; it has to exit as its comment says."""
    code = int(found[1]) if (found := re.search(r"# exits with (\d)", command)) else 0
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-e", "-c", SET_UP.sub("", command)], cwd=folder, text=True, timeout=900,
        env={**os.environ, **(variables or {}), "PATH": path, "COLUMNS": "200"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def lines_of(text: str) -> list[str]:
    """Lines with their blanks made one, without seconds."""
    bare = re.sub(r"\d+\.\d s\b", "", text)
    return [" ".join(line.split()) for line in bare.splitlines() if line.strip()]


def lost_lines(shown: str, printed: str) -> list[str]:
    """Lines of a page's output that were not printed; a page cuts off what it marks with "…"."""
    there = lines_of(printed)
    return [
        line for line in lines_of(shown)
        if not any(all(part.strip() in one for part in re.split("[│…]", line)) for one in there)
    ]  # fmt: skip


def followed(page: str, folder: Path, variables: Mapping[str, str] | None = None) -> None:
    """Type each block of a page, and find what the page shows below it in what that printed."""
    printed = ""
    for kind, content in blocks(page):
        if kind == "sh":
            printed = typed(content, folder, variables)
        elif kind == "text":
            assert lost_lines(content, printed) == [], printed


def test_every_page_with_commands_is_run_or_says_where() -> None:
    pages = {
        str(path.relative_to(ROOT))
        for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"),
                     *(ROOT / "ci").glob("*.md"), *(ROOT / "docker").glob("*.md"))
    }  # fmt: skip
    with_commands = {p for p in pages if any(kind in ("sh", "console") for kind, _ in blocks(p))}
    assert with_commands == ELSEWHERE.keys() | set(HERE)


def test_the_tutorial_finds_the_flipped_bit(tmp_path: Path) -> None:
    followed("docs/tutorial.md", tmp_path)
    assert (tmp_path / "report.html").stat().st_size > 1000


def test_a_digest_file_replaces_the_second_reading(tmp_path: Path) -> None:
    followed("docs/digest-file.md", tmp_path)


def test_a_bucket_is_verified_where_it_is(tmp_path: Path) -> None:
    written = write_checkpoint("qwen3-vl-moe", tmp_path / "model").path
    with s3_server() as url:
        client = s3_client(url)
        client.create_bucket(Bucket="my-bucket")
        for file in written.iterdir():
            key = f"my-model/{file.name}"
            client.put_object(Bucket="my-bucket", Key=key, Body=file.read_bytes())
        followed("docs/bucket.md", tmp_path, s3_environment(url))


def test_a_family_of_ones_own_is_described_and_verified(tmp_path: Path) -> None:
    """The file is tests/support/outside_family.py, of which the page shows the middle."""
    file = ROOT / "tests" / "support" / "outside_family.py"
    (shown,) = [content for kind, content in blocks("docs/own-family.md") if kind == "python"]
    excerpt = shown[: shown.index("    # …")]
    assert excerpt in file.read_text()
    shutil.copy(file, tmp_path / "my_moe.py")
    typed("harness checkpoint qwen2-moe model --family my_moe.py", tmp_path)
    followed("docs/own-family.md", tmp_path)


@pytest.mark.timeout(1800)
def test_hosts_on_ray_are_verified_without_a_tpu(tmp_path: Path) -> None:
    with ray_nodes() as nodes:
        followed("docs/ray.md", tmp_path, {"RAY_ADDRESS": nodes.address})


def test_a_test_of_ones_own_runs(tmp_path: Path) -> None:
    typed("harness checkpoint qwen3.5-mtp model", tmp_path)
    (python,) = [content for kind, content in blocks("docs/own-tests.md") if kind == "python"]
    (tmp_path / "test_our_model.py").write_text(python)
    (command,) = [c for k, c in blocks("docs/own-tests.md") if k == "sh" and "pytest" in c]
    assert "2 passed" in typed(f"{command.strip()} -p no:cacheprovider", tmp_path)


def test_a_line_that_was_not_printed_is_seen() -> None:
    assert lost_lines("one 1.5 s\n│ a │ b │\n", "x one 9.9 s\n│ a │ c │ b │\n") == []
    assert lost_lines("two\n", "one\n") == ["two"]
    assert lost_lines("a … z\n", "a b y z\n") == []
    assert lost_lines("a … z\n", "a b y\n") == ["a … z"]
