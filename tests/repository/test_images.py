"""docker/: what the Dockerfiles copy, take and say. That an image builds is not shown here."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import requires
from pathlib import Path

import pytest

from tests.support.manifests import JOBSET, load, parsed, pod
from tests.support.pipelines import ROOT, linted, program, script, tool

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
EMULATED = ROOT / "docker" / "Dockerfile.emulated"
GPU = ROOT / "docker" / "Dockerfile.gpu"
TPU = ROOT / "docker" / "Dockerfile.tpu"
README = ROOT / "docker" / "README.md"
STACKS = script("setup").stacks()
Instruction = tuple[str, str]


def instructions(path: Path) -> list[Instruction]:
    """The instructions of a Dockerfile: name and the rest, continuations joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def of(path: Path, name: str) -> list[str]:
    return [rest for instruction, rest in instructions(path) if instruction == name]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint(path: Path) -> None:
    linted(tool("hadolint"), str(path))


def test_the_shared_part_is_the_same() -> None:
    """The same instructions make the same layers, so they are built once."""
    shared = {path.read_text().partition("# --- end of shared")[0] for path in DOCKERFILES}
    assert len(shared) == 1
    assert "COPY harness" in shared.pop()


# What is copied.


def copied(path: Path) -> Iterator[tuple[str, str]]:
    """Sources and destination of every COPY, as pairs."""
    for rest in of(path, "COPY"):
        *sources, destination = shlex.split(rest)
        for source in sources:
            yield source, destination


def ignored(path: str, rules: list[str]) -> bool:
    """Whether ``.dockerignore`` takes ``path`` away; the last rule that fits decides."""
    verdict = False
    for rule in rules:
        pattern = rule.removeprefix("!").removeprefix("**/")
        parents = [path, *map(str, Path(path).parents)]
        if any(fnmatch(part, pattern) or fnmatch(Path(part).name, pattern) for part in parents):
            verdict = not rule.startswith("!")
    return verdict


def copy_faults(path: Path, rules: list[str]) -> list[str]:
    """The sources of ``path`` that git has not, or the builder is not given."""
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = kept.stdout.splitlines()
    faults = []
    for source, _ in copied(path):
        if not any(file == source or file.startswith(f"{source}/") for file in files):
            faults.append(f"no {source}")
        elif ignored(source, rules):
            faults.append(f"{source} is ignored")
    return faults


def rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there(path: Path) -> None:
    assert copy_faults(path, rules()) == []


@pytest.mark.parametrize("path", [".git", ".venv", "reports", "tests", "harness/__pycache__"])
def test_what_no_image_needs_is_left_out(path: str) -> None:
    assert ignored(path, rules())


def test_an_absent_and_an_ignored_source_are_seen(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM x\nCOPY nowhere .\nCOPY harness harness\n")
    without = [rule for rule in rules() if rule != "!harness"]
    assert copy_faults(tmp_path / "Dockerfile", without) == ["no nowhere", "harness is ignored"]


def lay(path: Path, root: Path) -> None:
    """The files an image gets from here, under ``root``."""
    for source, destination in copied(path):
        target = root / destination
        if (ROOT / source).is_dir():
            kept = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / source, target, ignore=kept, dirs_exist_ok=True)
        else:
            target = target / Path(source).name if destination.endswith("/") else target
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, target)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_suffices(path: Path, tmp_path: Path) -> None:
    """The files an image gets run the nightly's script and hold the scenarios."""
    lay(path, tmp_path)
    ran = subprocess.run([tmp_path / "ci/run_nightly.sh", "--stacks=newest"], capture_output=True)
    assert ran.returncode == 2
    code = "import harness.app.cli, scenarios.catalogue, scenarios.known_issues"
    python = [tool("python"), "-c", code]
    subprocess.run(python, cwd=tmp_path, check=True, env={"PYTHONPATH": str(tmp_path)})
    built = re.findall(r'"(README\.md|LICENSE)"', (ROOT / "pyproject.toml").read_text())
    assert all((tmp_path / name).exists() for name in built)


def absent_scripts(path: Path, root: Path) -> list[str]:
    """What the pods of the manifest run and the image of ``path``, laid under ``root``, has not.

    That is the containers' command, and the scripts of this repository that it names.
    """
    lay(path, root)
    (container,) = pod(load(JOBSET))["containers"]
    command = container["command"][0]
    named = re.findall(r"\bci/[\w/]+\.(?:sh|py)\b", (ROOT / command).read_text())
    return [name for name in [command, *named] if not os.access(root / name, os.X_OK)]


def test_the_image_has_the_scripts_of_its_pods(tmp_path: Path) -> None:
    (container,) = pod(load(JOBSET))["containers"]
    assert container["image"].rpartition("/")[2].startswith("moe-load-harness:tpu-")
    assert absent_scripts(TPU, tmp_path) == []


@pytest.mark.parametrize("name", ["ci/gke/host.sh", "ci/run_nightly.sh"])
def test_an_absent_script_of_a_pod_is_seen(tmp_path: Path, name: str) -> None:
    (tmp_path / "Dockerfile").write_text(TPU.read_text().replace(name, "pyproject.toml"))
    assert absent_scripts(tmp_path / "Dockerfile", tmp_path / "image") == [name]


# What can be chosen, and what is said.


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_build_arguments_are_documented(path: Path) -> None:
    documented = set(re.findall(r"^\| `(\w+)` \|", README.read_text(), re.MULTILINE))
    taken = {rest.partition("=")[0] for rest in of(path, "ARG")}
    assert taken <= documented
    assert documented == {rest.partition("=")[0] for p in DOCKERFILES for rest in of(p, "ARG")}


def undeclared(path: Path) -> set[str]:
    """Arguments a stage uses and does not declare: builders differ in what a stage inherits.

    buildah 1.28 hands none from a stage to those made from it: a label stayed empty so.
    """
    missing: set[str] = set()
    declared: set[str] = set()
    arguments: set[str] = set()
    for name, rest in instructions(path):
        if name == "FROM":
            declared = set()
        elif name == "ARG":
            declared.add(rest.partition("=")[0])
        arguments |= declared
        missing |= (set(re.findall(r"\$\{(\w+)", rest)) & arguments) - declared
        for built in re.findall(r"docker/(install_\w+\.sh)$", rest) if name == "RUN" else ():
            text = (ROOT / "docker" / built).read_text()
            missing |= (set(re.findall(r"\$\{?([A-Z_]+)", text)) & arguments) - declared
    return missing - {"BASE_IMAGE"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_stage_declares_what_it_uses(path: Path) -> None:
    assert undeclared(path) == set()


@pytest.mark.parametrize(("path", "name"), [(TPU, "STACK"), (TPU, "TORCH"), (GPU, "STACK")])
def test_an_undeclared_argument_is_seen(tmp_path: Path, path: Path, name: str) -> None:
    head, stage, rest = path.read_text().partition(f"AS {path.suffix[1:]}\n")
    (tmp_path / "Dockerfile").write_text(head + stage + rest.replace(f"ARG {name}\n", ""))
    assert undeclared(tmp_path / "Dockerfile") == {name}


BUILT = [
    *((kind, stack) for kind in ("emulated", "tpu") for stack in STACKS),
    *(("gpu", path.stem) for path in script("setup").CUDA.glob("*.txt")),
]


@pytest.mark.parametrize(("kind", "stack"), BUILT)
def test_what_docker_is_asked_to_build(kind: str, stack: str) -> None:
    environment = {"DRY_RUN": "1", "PATH": "/usr/bin:/bin"}
    command = [str(ROOT / "docker" / "build.sh"), kind, stack, "--no-cache"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    words = shlex.split(ran.stdout)
    given = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    pins = (ROOT / "ci" / "stacks" / f"{stack}.txt").read_text()
    python = "3.12" if kind == "tpu" else STACKS[stack]["python"]
    assert given["BASE_IMAGE"] == f"python:{python}-slim-bookworm"
    assert given["STACK"] == stack
    assert f"vllm=={given['VLLM_VERSION']}\n" in pins
    assert f"tpu-inference=={given['TPU_INFERENCE_VERSION']}\n" in pins
    path = ROOT / "docker" / f"Dockerfile.{kind}"
    assert set(given) <= {rest.partition("=")[0] for rest in of(path, "ARG")}
    assert words[-2:] == ["--no-cache", "."]


@pytest.mark.parametrize("arguments", [[], ["cuda"], ["tpu", "0.19"], ["gpu", "0.26"]])
def test_an_image_there_is_not(arguments: list[str]) -> None:
    ran = subprocess.run([ROOT / "docker" / "build.sh", *arguments], capture_output=True)
    assert ran.returncode == 2


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_how_an_image_runs(path: Path) -> None:
    (health,), (entry,), (command,) = (of(path, n) for n in ("HEALTHCHECK", "ENTRYPOINT", "CMD"))
    target = path.suffix.removeprefix(".")
    assert json.loads(health[health.index("[") :]) == ["harness", "doctor", "--target", target]
    script_name, *options = json.loads(entry)
    assert script_name == "ci/run_nightly.sh"
    taken = parsed(shlex.join([*options, *json.loads(command)]))
    assert (taken.stacks, taken.target, str(taken.out)) == (["installed"], target, "/reports")
    (labels,) = of(path, "LABEL")
    for name in ("revision", "moe-load-harness.stack", ".vllm", ".tpu-inference"):
        assert f"{name}=" in labels


@pytest.mark.parametrize("path", [EMULATED, GPU], ids=lambda path: path.name)
def test_an_image_that_needs_not_be_is_not_root(path: Path) -> None:
    order = [instruction for instruction, _ in instructions(path)]
    assert of(path, "USER") == ["1000"]
    assert order.index("USER") < order.index("ENTRYPOINT")
    assert "RUN" not in order[order.index("USER") :]
    assert "install --directory --owner=harness /reports" in " ".join(of(path, "RUN"))


# The scripts the images are built with.


@pytest.mark.parametrize("stack", STACKS)
def test_an_image_installs_what_make_does(stack: str) -> None:
    requirements = script("requirements", "docker")
    lines = (ROOT / "ci" / "stacks" / f"{stack}.txt").read_text().splitlines()
    pins = {line for line in lines if not line.startswith("#")}
    index, cpu = (set(requirements.requirements(stack, torch)) for torch in ("index", "cpu"))
    assert cpu < index <= pins
    assert {pin.partition("==")[0] for pin in pins - index} <= set(requirements.LINTERS)
    assert all(pin.startswith(("nvidia-", "cuda-")) for pin in index - cpu)
    for needed in ("torch==", "vllm==", "tpu-inference==", "pytest==", "click==", "msgspec=="):
        assert any(pin.startswith(needed) for pin in cpu)


def test_the_gpu_image_installs_the_cuda_plugin_of_its_stack(tmp_path: Path) -> None:
    """The pins of the stack beside it, and no resolving that could change another package."""
    for name in ("ci/stacks", "docker"):
        shutil.copytree(ROOT / name, tmp_path / name)
    calls = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin" / "uv", f'#!/bin/sh\necho "$@" >> {calls}\n')
    program(tmp_path / "ci" / "setup.py", f"print({str(tmp_path / 'bin' / 'uv')!r})\n")
    environment = {"STACK": "0.32", "PATH": os.environ["PATH"]}
    subprocess.run([tmp_path / "docker" / "install_gpu.sh"], env=environment, check=True)
    options = calls.read_text().split()
    assert options[:2] == ["pip", "install"]
    assert options[-3:] == ["--no-deps", "--requirement", "ci/stacks/cuda/0.32.txt"]


@pytest.mark.parametrize(
    ("requirements", "pinned"),
    [
        (["jax==0.11.2", "libtpu==0.0.48"], "libtpu==0.0.48"),
        (["libtpu == 0.0.43 ; sys_platform == 'linux'"], "libtpu==0.0.43"),
    ],
)
def test_libtpu_is_the_one_tpu_inference_pins(requirements: list[str], pinned: str) -> None:
    assert script("libtpu_pin", "docker").pin(requirements) == pinned


def test_libtpu_of_the_installed_stack() -> None:
    pinned = script("libtpu_pin", "docker").pin(requires("tpu-inference") or [])
    assert re.fullmatch(r"libtpu==\d+\.\d+\.\d+", pinned)
    with pytest.raises(SystemExit, match="pins no libtpu"):
        script("libtpu_pin", "docker").pin(["jax==0.11.2", "libtpu"])


def test_the_harness_beside_a_stack_changes_none_of_its_packages(tmp_path: Path) -> None:
    """Every installed version is a constraint of the installation."""
    python = tmp_path / "python3"
    program(
        python,
        f"""#!/bin/sh
        if [ "$3" = list ]; then echo "$@" > {tmp_path}/list; echo vllm==1.2.3; exit; fi
        echo "$@" >> {tmp_path}/calls
        [ "$5" != --constraint ] || cp "$6" {tmp_path}/constraints
        """,
    )
    environment = {"PYTHON": str(python), "PATH": "/usr/bin:/bin"}
    subprocess.run([ROOT / "ci" / "install_beside.sh"], env=environment, check=True)
    tools, harness = (tmp_path / "calls").read_text().splitlines()
    assert tools.endswith("--requirement ci/stacks/tools.in")
    assert harness.endswith("--no-deps --editable .")
    assert (tmp_path / "constraints").read_text() == "vllm==1.2.3\n"
    listed = (tmp_path / "list").read_text().split()
    assert listed[2:] == ["list", "--format=freeze", "--exclude", "moe-load-harness"]
