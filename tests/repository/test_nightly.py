"""ci/run_nightly.sh from start to end over a fake stack: what it leaves, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.pipelines import FakeStack, fake_stack, plan_session, program, row, script

DEFAULT = script("setup").choose("")
OTHER = "0.22" if DEFAULT == "0.26" else "0.26"


@pytest.fixture
def fake(tmp_path: Path) -> FakeStack:
    return fake_stack(tmp_path)


def test_what_a_run_leaves(fake: FakeStack) -> None:
    ran = fake.run("--audit")
    assert ran.returncode == 0, ran.stderr
    left = {str(path.relative_to(fake.out)) for path in fake.out.rglob("*") if path.is_file()}
    of_the_stack = ("audit.sarif", "audit.txt", "doctor.txt", "log.txt")
    assert left == {"nightly.json", "summary.md"} | {
        f"{DEFAULT}/{name}" for name in (*of_the_stack, "session.json")
    }
    (figures,) = fake.written()["stacks"]
    assert figures == figures | {
        "outcome": "as expected", "scenarios": 2, "equal": 1, "known": 1, "skipped": 0,
        "experts_compared": 48, "bytes_compared": 2000, "audit_findings": 3, "failures": [],
    }  # fmt: skip
    assert f"| {DEFAULT} |  | as expected | 2 | 1 | 1 | 0 | 48 | 2000 | 3 | " in ran.stdout
    assert "the scenarios of" in (fake.out / DEFAULT / "log.txt").read_text()


@pytest.mark.parametrize(
    ("ending", "exit_code", "outcome"),
    [
        (0, 0, "as expected"),
        (1, 1, "different"),
        (2, 3, "broken"),
        (3, 3, "broken"),
        (4, 2, "bad input"),
        (5, 2, "bad input"),
        (139, 3, "broken"),
    ],
)
def test_how_pytest_ends(fake: FakeStack, ending: int, exit_code: int, outcome: str) -> None:
    fake.tell(pytest=ending)
    assert fake.run().returncode == exit_code
    assert fake.written()["outcome"] == outcome
    assert len(fake.calls("pytest")) == 1


@pytest.mark.parametrize(("fails", "exit_code", "tries"), [(2, 0, 3), (3, 75, 3), (9, 75, 3)])
def test_only_provisioning_is_tried_again(
    fake: FakeStack, fails: int, exit_code: int, tries: int
) -> None:
    fake.tell(sync_fails=fails)
    ran = fake.run()
    assert ran.returncode == exit_code, ran.stderr
    assert sum("pip sync" in call for call in fake.calls("uv")) == tries
    assert len(fake.calls("pytest")) == (exit_code == 0)


@pytest.mark.parametrize(("doctor", "exit_code"), [(4, 75), (1, 75), (2, 2)])
def test_a_target_that_is_not_there(fake: FakeStack, doctor: int, exit_code: int) -> None:
    fake.tell(doctor=doctor)
    assert fake.run("--target", "tpu").returncode == exit_code
    assert fake.written()["stacks"][0]["what"] == "what doctor says"
    assert not fake.calls("pytest")


@pytest.mark.parametrize(
    ("endings", "exit_code"),
    [
        ({"doctor__" + OTHER: 4}, 75),
        ({"doctor__" + OTHER: 4, "pytest": 1}, 1),
        ({"pytest__" + OTHER: 3, "pytest": 1}, 1),
        ({"pytest__" + OTHER: 5, "pytest": 3}, 3),
    ],
)
def test_a_difference_hides_behind_nothing(
    fake: FakeStack, endings: dict[str, int], exit_code: int
) -> None:
    fake.tell(**endings)
    program(fake.root / "bin" / "python3.11", "#!/bin/sh\necho 3.11\n")
    ran = fake.run("--stacks", f"{OTHER},{DEFAULT}")
    assert ran.returncode == exit_code, ran.stderr
    assert [stack["stack"] for stack in fake.written()["stacks"]] == [OTHER, DEFAULT]


def test_an_interpreter_that_is_nowhere(fake: FakeStack) -> None:
    table = fake.root / "ci" / "stacks" / "stacks.json"
    table.write_text(
        table.read_text().replace('"0.21": {"python": "3.11"', '"0.21": {"python": "3.99"')
    )
    assert fake.run("--stacks=0.21").returncode == 75
    assert "needs Python 3.99" in fake.written()["stacks"][0]["what"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stacks=newest"], "unknown stack 'newest'"),
        (["--stacks=path:/nowhere"], "the version of /nowhere cannot be told"),
        (["--stacks=0.26", "--target=gpu"], "stack 0.26 has no requirements for a GPU"),
        (["--target"], "expected one argument"),
        (["--tar=emulated"], "unrecognized arguments"),
    ],
)
def test_bad_input(fake: FakeStack, options: list[str], message: str) -> None:
    ran = fake.run(*options)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert not fake.out.exists()


def test_what_pytest_is_told(fake: FakeStack) -> None:
    options = ("--target=tpu", "--checkpoint=gs://a/b", "--checkpoint=/c", "--workers=2")
    fake.run(*options, "--", "-k", "vl or mtp", "--load-timeout=9")
    (call,) = fake.calls("pytest")
    assert "scenarios --target=tpu --expect=known --families=all" in call
    assert "--numprocesses=2" in call
    assert call.endswith("--checkpoint=gs://a/b --checkpoint=/c -k vl or mtp --load-timeout=9")


RESOLVED = "0.29.0+0.29.0"


def resolved(fake: FakeStack, verdict: str) -> None:
    """A pair that was resolved before, so that no index is asked, and what its import comes to."""
    (fake.root / ".stacks").mkdir()
    (fake.root / ".stacks" / f"{RESOLVED}.txt").write_text("vllm==0.29.0\n")
    program(fake.root / "bin" / "python3.12", "#!/bin/sh\necho 3.12\n")
    line = f'{{"verdict": "{verdict}", "why": "no ACT."}}'
    program(fake.plan / "python-fake", f"#!/bin/sh\necho '{line}'\n")


def test_a_pair_that_nobody_pinned(fake: FakeStack) -> None:
    resolved(fake, "works")
    ran = fake.run("--stacks", RESOLVED, "--families=chosen", "--nights", str(fake.root / "nights"))
    assert ran.returncode == 0, ran.stderr
    assert "--families=chosen" in fake.calls("pytest")[0]
    assert fake.calls("pytest")[0].split()[1] == f".venv-{RESOLVED}"
    (night,) = (fake.root / "nights").iterdir()
    assert (night / RESOLVED / "session.json").exists()
    summary = (fake.out / "summary.md").read_text()
    assert summary.splitlines()[2] == f"what changed in {fake.root / 'nights'}"


@pytest.mark.parametrize("verdict", ["unimportable", "no-worker"])
def test_a_pair_that_does_not_work_is_no_difference(fake: FakeStack, verdict: str) -> None:
    """Nothing is compared, and nothing is tried again; a difference of another stack counts."""
    resolved(fake, verdict)
    fake.tell(pytest=1)
    assert fake.run("--stacks", RESOLVED).returncode == 4
    (figures,) = fake.written()["stacks"]
    assert figures["outcome"] == "pair fails"
    assert figures["pair"] == {
        "vllm": "0.29.0", "tpu_inference": "0.29.0", "verdict": verdict, "why": "no ACT.",
    }  # fmt: skip
    assert "vLLM 0.29.0 with tpu-inference 0.29.0" in (fake.out / "summary.md").read_text()
    assert not fake.calls("pytest")
    assert sum("pip sync" in call for call in fake.calls("uv")) == 1
    assert fake.run("--stacks", f"{RESOLVED},{DEFAULT}").returncode == 1


def test_a_gpu_has_an_environment_of_its_own(fake: FakeStack) -> None:
    """The newest stack that can; its pins and those of JAX's CUDA plugin, together."""
    program(fake.root / "bin" / "python3.12", "#!/bin/sh\necho 3.12\n")
    ran = fake.run("--target=gpu")
    assert ran.returncode == 0, ran.stderr
    (sync,) = (call for call in fake.calls("uv") if "pip sync" in call)
    assert "/.venv-0.32-gpu/" in sync
    assert sync.endswith("/ci/stacks/0.32.txt " + str(fake.root / "ci/stacks/cuda/0.32.txt"))
    assert "scenarios --target=gpu --expect=known" in fake.calls("pytest")[0]
    assert fake.calls("pytest")[0].split()[1] == ".venv-0.32-gpu"
    assert fake.written()["stacks"][0]["stack"] == "0.32"


def test_a_checkout(fake: FakeStack, tmp_path: Path) -> None:
    checkout = tmp_path / "vllm-main"
    (checkout / "vllm").mkdir(parents=True)
    (checkout / "vllm" / "_version.py").write_text(f"version = '{DEFAULT}.9'\n")
    stack = f"path:{checkout},/tpu-inference"
    assert fake.run("--stacks", stack, "--audit").returncode == 0
    assert f"--stack={stack}" in fake.calls("pytest")[0]
    assert f"--vllm={checkout} --tpu-inference=/tpu-inference" in fake.calls("harness")[-1]
    assert fake.written()["stacks"][0]["stack"] == f"path-{DEFAULT}"


@pytest.mark.parametrize(("audit", "exit_code", "found"), [(0, 0, 3), (1, 0, 3), (3, 3, None)])
def test_findings_are_counted(
    fake: FakeStack, audit: int, exit_code: int, found: int | None
) -> None:
    fake.tell(audit=audit)
    assert fake.run("--audit").returncode == exit_code
    assert fake.written()["stacks"][0]["audit_findings"] == found


@pytest.mark.parametrize(
    ("scenarios", "properties", "exit_code"), [(0, 0, 0), (0, 1, 3), (1, 1, 1), (1, 0, 1)]
)
def test_properties_are_tried_where_asked(
    fake: FakeStack, scenarios: int, properties: int, exit_code: int
) -> None:
    fake.tell(pytest=scenarios, properties=properties)
    assert fake.run("--properties").returncode == exit_code
    call = fake.calls("pytest")[1]
    assert "tests/repository/test_properties.py" in call
    assert "--hypothesis-profile=nightly" in call
    assert (fake.out / DEFAULT / "properties.txt").read_text() == "the properties\n"


def test_files_of_an_earlier_run_do_not_pass_for_this_ones(fake: FakeStack) -> None:
    fake.run()
    fake.tell(doctor=4)
    fake.run()
    assert not (fake.out / DEFAULT / "session.json").exists()
    assert fake.written()["stacks"][0]["scenarios"] == 0


def test_failures_are_data(fake: FakeStack) -> None:
    rows = [row("vl-fused", "different"), row("mtp-s3", "load-failed", "known"), row("vl-gcs")]
    plan_session(fake.plan, rows, ["vl-fused", "vl-gcs"])
    fake.tell(pytest=1)
    fake.run()
    failed = {one["scenario"]: one for one in fake.written()["stacks"][0]["failures"]}
    assert list(failed) == ["vl-fused", "vl-gcs"]
    assert failed["vl-fused"]["cause"] == "swapped: gate is up"
    assert failed["vl-gcs"]["cause"] == "first"  # a known failure that did not happen


def test_the_summary_of_each_stack_stands_below_the_table(fake: FakeStack) -> None:
    (fake.plan / "summary.md").write_text("### what the harness says\n")
    fake.environment["GITHUB_STEP_SUMMARY"] = str(fake.root / "step.md")
    fake.run()
    summary = (fake.out / "summary.md").read_text()
    assert summary.startswith("### MoE load verification on emulated: as expected\n")
    assert summary.endswith(f"\n#### {DEFAULT}\n\n### what the harness says\n")
    assert not (fake.root / "step.md").exists()  # the workflow adds this summary, once


def test_what_broke_off_before_its_verdict_is_no_difference(fake: FakeStack) -> None:
    """A bucket that is not there: the scenario ends without a report."""
    plan_session(fake.plan, [], ["absent"])
    fake.tell(pytest=1)
    assert fake.run().returncode == 3
    (failed,) = fake.written()["stacks"][0]["failures"]
    assert failed == {"scenario": "absent", "status": "error", "cause": "first", "repeat": ""}


def test_the_installed_stack(fake: FakeStack) -> None:
    (fake.root / "bin" / "python3").symlink_to(sys.executable)
    for name in ("pytest", "harness"):
        (fake.plan / f"{name}-fake").rename(fake.root / "bin" / name)
    fake.environment["PYTHON"] = str(fake.root / "bin" / "python3")
    assert fake.run("--stacks=installed").returncode == 0
    assert not fake.calls("uv")
    assert (fake.out / "installed" / "session.json").exists()


def test_an_environment_without_the_programs(fake: FakeStack) -> None:
    (fake.plan / "harness-fake").write_text("")
    (fake.plan / "harness-fake").chmod(0o644)
    assert fake.run().returncode == 75
    assert "harness does not start" in fake.written()["stacks"][0]["what"]


def test_an_interrupted_run_ends_its_programs(fake: FakeStack) -> None:
    (fake.plan / "slow").touch()
    command = fake.command("--stacks", f"{DEFAULT},{OTHER}")
    with subprocess.Popen(command, env=fake.environment, stdout=subprocess.DEVNULL) as run:
        until = time.monotonic() + 30
        while not (fake.plan / "running").exists() and time.monotonic() < until:
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 3
    assert fake.calls("ended")
    (figures,) = fake.written()["stacks"]
    assert (figures["outcome"], figures["what"]) == ("broken", "interrupted")
