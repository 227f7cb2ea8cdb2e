"""Pairs of releases that nobody pinned: what ``STACK=`` may say, and how such a pair is resolved.

Standard library only. ``0.29`` is the newest vLLM and the newest tpu-inference of that number,
``0.33+0.32`` one of each, ``0.32+0.32.0.dev20261024`` a build of a day; ``latest`` are the newest
releases that install together, ``nightly`` is the newest build of tpu-inference with the vLLM it is
named after, or the newest that can be imported with it.

A pair is resolved once: its requirements stay under ``.stacks``, and the same pair has the same
ones again. Where vLLM's pins contradict tpu-inference's, tpu-inference's hold.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
STACKS = ROOT / "ci" / "stacks"
#: What was resolved on this machine: requirements, locks. No part of the repository.
STATE = ROOT / ".stacks"
#: What runs of pairs came to (``ci/releases_page.py``).
SEEN = ROOT / "harness" / "report" / "releases.json"

VLLM, TPU_INFERENCE, STREAMER = "vllm", "tpu-inference", "runai-model-streamer"
LATEST, NIGHTLY = "latest", "nightly"
#: Pairs that ``latest`` and ``nightly`` try before they give up.
MOST_TRIED = 4

_VERSION = r"\d+(?:\.\d+)*(?:rc\d+)?(?:\.post\d+)?(?:\.dev\d+)?"
_PAIR = re.compile(rf"({_VERSION})(?:\+({_VERSION}))?")
_ORDER = re.compile(r"(\d+(?:\.\d+)*)(?:(a|b|rc)(\d+))?(?:\.post(\d+))?(?:\.dev(\d+))?")
_FINAL = re.compile(r"\d+(\.\d+)*(\.post\d+)?")
_DAY = re.compile(r"\.dev(\d{8})$")

#: What vLLM and tpu-inference both pin, each for its own hardware.
_BOTH_PIN = ("torch", "torchvision", "numba")

Versions = Callable[[str], Sequence[str]]


class SetupError(Exception):
    """Set-up cannot go on; the message says what to do."""


class UnknownStack(SetupError):
    """No spelling, or of a release that the index has not: bad input."""


class Pair(NamedTuple):
    """One release of each; ``streamer`` is empty for the one that tpu-inference pins."""

    vllm: str
    tpu_inference: str
    streamer: str = ""

    @property
    def name(self) -> str:
        """What its environment and its files are called; ``STACK=`` takes it, too."""
        return f"{self.vllm}+{self.tpu_inference}{streamer_suffix(self.streamer)}"

    def __str__(self) -> str:
        told = f"vLLM {self.vllm} with tpu-inference {self.tpu_inference}"
        return f"{told} and streamer {self.streamer}" if self.streamer else told


class PairFails(SetupError):
    """A pair that does not work together: a verdict, not a fault of this machine.

    Attributes:
        pair: which.
        verdict: ``unresolvable``, ``unimportable`` or ``no-worker``.
        why: who demands what, in the words of the resolver or of the import.
    """

    def __init__(self, pair: Pair, verdict: str, why: str) -> None:
        self.pair, self.verdict, self.why = pair, verdict, why
        super().__init__(f"{pair} {_WORDS[verdict]}: {why} {advice(pair)}".rstrip())


class Contradiction(Exception):
    """The resolver found no solution; the message has its words."""


@contextmanager
def verdict_over(pair: Pair) -> Iterator[None]:
    """Make a verdict over ``pair`` of what the resolver says in the body."""
    try:
        yield
    except Contradiction as error:
        raise PairFails(pair, "unresolvable", str(error)) from error


_WORDS = {
    "unresolvable": "cannot be installed together",
    "unimportable": "cannot be imported together",
    "no-worker": "have no worker to load with",
}


def streamer_suffix(streamer: str) -> str:
    """What the name of a stack with another streamer ends with."""
    return f"+streamer-{streamer}" if streamer else ""


def order(version: str) -> tuple[Any, ...]:
    """Sorts versions as PEP 440 does, but for builds of a day: they follow their release.

    tpu-inference names the builds of the days after a release by that release: ``0.26.0`` was built
    on 2026-07-31, ``0.26.0.dev20260731`` to ``0.26.0.dev20260820`` until 0.27.0 was.
    """
    found = _ORDER.fullmatch(version)
    if not found:
        return ((), 0, 0, 0, 0)
    release, stage, number, post, dev = found.groups()
    day = int(dev) if dev and len(dev) == 8 else 0
    before = {"a": 1, "b": 2, "rc": 3, None: 4}[stage]
    if dev and not day:
        before = 0
    parts = [int(part) for part in release.split(".")]
    while parts and parts[-1] == 0:
        parts.pop()
    return (tuple(parts), before, int(number or 0), int(post or 0), day)


def is_final(version: str) -> bool:
    return bool(_FINAL.fullmatch(version))


def day_of(version: str) -> str:
    """The day of a build, ``20261024``; empty for a release."""
    found = _DAY.search(version)
    return found[1] if found else ""


def minor(version: str) -> tuple[int, ...]:
    """``0.26`` of ``0.26.0.dev20260820``, as numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def is_spelling(text: str) -> bool:
    """Whether ``text`` can be the spelling of a pair."""
    return text in (LATEST, NIGHTLY) or bool(_PAIR.fullmatch(text))


def candidates(text: str, versions: Versions, streamer: str = "") -> Iterator[Pair]:
    """The pairs that a spelling stands for, the wanted one first; most stand for one.

    Args:
        text: what ``STACK=`` says.
        versions: gives all versions of a package in the index.
        streamer: another streamer than upstream's pin.

    Raises:
        UnknownStack: no such version, or no spelling at all.
    """
    if streamer:
        picked(STREAMER, streamer, versions)
    if text in (LATEST, NIGHTLY):
        for pair in (_latest if text == LATEST else _nightly)(versions):
            yield pair._replace(streamer=streamer)
        return
    found = _PAIR.fullmatch(text)
    if not found:
        raise UnknownStack(f"unknown stack {text!r}. Expected: {EXPECTED}.")
    vllm = picked(VLLM, found[1], versions)
    if found[2]:
        yield Pair(vllm, picked(TPU_INFERENCE, found[2], versions), streamer)
        return
    there = versions(TPU_INFERENCE)
    same = found[1] if found[1] in there else ".".join(map(str, minor(found[1])))
    yield Pair(vllm, picked(TPU_INFERENCE, same, versions), streamer)


EXPECTED = "a pinned stack, 0.29, 0.33+0.32, 0.32+0.32.0.dev20261024, latest, nightly or path:VLLM"


def picked(package: str, wanted: str, versions: Versions) -> str:
    """The version that ``wanted`` means: itself, or the newest release that begins with it.

    Raises:
        UnknownStack: there is none.
    """
    there = versions(package)
    if wanted in there:
        return wanted
    fitting = [one for one in there if is_final(one) and one.startswith(f"{wanted}.")]
    if fitting:
        return max(fitting, key=order)
    near = sorted(filter(is_final, there), key=order)[-6:]
    raise UnknownStack(
        f"unknown stack: there is no {package} {wanted} in the package index. "
        f"Expected: one of its versions, such as {', '.join(near)}."
    )


def _latest(versions: Versions) -> Iterator[Pair]:
    """The newest releases; then older ones of vLLM, down to tpu-inference's own number."""
    vllm = sorted(filter(is_final, versions(VLLM)), key=order, reverse=True)
    for tpu in sorted(filter(is_final, versions(TPU_INFERENCE)), key=order, reverse=True)[:2]:
        for one in [v for v in vllm if minor(v) >= minor(tpu)][:MOST_TRIED]:
            yield Pair(one, tpu)


def _nightly(versions: Versions) -> Iterator[Pair]:
    """The newest build with the vLLM of its number, then with the newest ones."""
    builds = [one for one in versions(TPU_INFERENCE) if day_of(one)]
    if not builds:
        raise SetupError("the package index has no builds of tpu-inference of a day")
    build = max(builds, key=day_of)
    for vllm in following(build, versions)[:MOST_TRIED]:
        yield Pair(vllm, build)


def following(tpu_inference: str, versions: Versions) -> list[str]:
    """The releases of vLLM to try with a tpu-inference: of its number, then the newest ones."""
    finals = sorted(filter(is_final, versions(VLLM)), key=order, reverse=True)
    own = [one for one in finals if minor(one) == minor(tpu_inference)]
    return [*own[:1], *(one for one in finals if one not in own)]


class Index:
    """The versions in the package index, as pip lists them, in pip's own configuration."""

    def __init__(self, pip: Callable[[], Sequence[str]], python: str) -> None:
        self._pip, self._python = pip, python
        self._known: dict[str, list[str]] = {}

    def __call__(self, package: str) -> list[str]:
        """All versions of ``package`` that have a wheel for the Python of unpinned pairs.

        Raises:
            SetupError: the index does not answer, or has no such package.
        """
        if package not in self._known:
            command = [
                *self._pip(), "index", "versions", "--pre", "--only-binary=:all:",
                "--python-version", self._python, package,
            ]  # fmt: skip
            ran = subprocess.run(command, capture_output=True, text=True, check=False)
            found = re.search(r"^Available versions: (.+)$", ran.stdout, re.MULTILINE)
            if not found:
                said = (ran.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise SetupError(f"pip cannot list the versions of {package}: {said}")
            self._known[package] = [one.strip() for one in found[1].split(",")]
        return self._known[package]


def compiled(pair: Pair, uv: str, python: str, *, again: bool = False) -> Path:
    """The requirements of a pair; resolved where they are not there, or once more.

    Raises:
        PairFails: they contradict each other.
        SetupError: the resolver failed otherwise: the index, the network.
    """
    file = STATE / f"{pair.name}.txt"
    if file.exists() and not again:
        return file
    STATE.mkdir(exist_ok=True)
    own = required_by(pair.tpu_inference, uv, python)
    lines = [
        "-r ../ci/stacks/tools.in",
        "-r ../ci/stacks/linters.in",
        f"vllm=={pair.vllm}",
        f"tpu-inference=={pair.tpu_inference}",
        f"{STREAMER}[s3,gcs]" + (f"=={pair.streamer}" if pair.streamer else ""),
        "ray",
    ]
    with verdict_over(pair):
        overrides = derived_overrides(own, uv, python)
        overrides += [streamer_override(pair.streamer)] if pair.streamer else []
        resolve(file, lines, overrides, uv, python)
    return file


def resolve(
    file: Path, lines: Sequence[str], overrides: Sequence[str], uv: str, python: str
) -> None:
    """Resolve the requirements ``lines`` into ``file``, which names versions and no host.

    Raises:
        Contradiction: there is no solution.
        SetupError: the resolver failed otherwise.
    """
    STATE.mkdir(exist_ok=True)
    given, over = file.with_suffix(".in"), file.with_suffix(".overrides")
    given.write_text("\n".join(lines) + "\n")
    over.write_text("\n".join(overrides) + "\n")
    compile_quietly(
        uv, python, f"--override={over.name}", "--custom-compile-command",
        f"python3 ci/setup.py {file.stem}", "--output-file", f"{file.name}.new", given.name,
    )  # fmt: skip
    file.with_name(f"{file.name}.new").replace(file)


def compile_quietly(uv: str, python: str, *options: str, given: str = "") -> str:
    """Run ``uv pip compile`` in :data:`STATE`, and give what it prints.

    Raises:
        Contradiction: there is no solution.
        SetupError: it failed otherwise.
    """
    command = [
        uv, "pip", "compile", "--quiet", "--no-python-downloads", "--python-version", python,
        "--no-annotate", "--upgrade", *options,
    ]  # fmt: skip
    ran = subprocess.run(
        command, cwd=STATE, input=given, capture_output=True, text=True, check=False
    )
    if ran.returncode == 0:
        return ran.stdout
    said = " ".join(re.sub(r"^\W*(error|cause|hint):", "", ran.stderr, flags=re.M).split())
    begin = said.find("No solution found")
    if begin >= 0:
        raise Contradiction(said[begin:].partition("dependencies ")[2] or said[begin:])
    raise SetupError(f"uv cannot resolve: {said[-600:] or f'it ended with {ran.returncode}'}")


def required_by(tpu_inference: str, uv: str, python: str) -> list[str]:
    """What a tpu-inference demands, as its metadata has it; its wheel is small.

    Raises:
        SetupError: it is not to be had.
    """
    at = STATE / "metadata" / tpu_inference
    if not any(at.glob("*.dist-info/METADATA")):
        ran = subprocess.run(
            [
                uv, "pip", "install", "--quiet", "--no-deps", "--no-python-downloads",
                "--python-version", python, "--target", str(at), f"tpu-inference=={tpu_inference}",
            ],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if ran.returncode:
            raise SetupError(f"no tpu-inference {tpu_inference}: {ran.stderr.strip()[-600:]}")
    (metadata,) = at.glob("*.dist-info/METADATA")
    return re.findall(r"^Requires-Dist: (.+)$", metadata.read_text(), re.MULTILINE)


def derived_overrides(own: Sequence[str], uv: str, python: str) -> list[str]:
    """The overrides that follow from what a tpu-inference demands, ``own``.

    Of what both pin, its pins hold; a torchvision brings its own torch. What nothing but CUDA needs
    is left out, as in the pinned stacks.
    """
    pins = dict(re.findall(r"^([\w.-]+)==([\w.+!]+)\s*$", "\n".join(own), re.MULTILINE))
    ours = {name: pins[name] for name in _BOTH_PIN if name in pins}
    if "torchvision" in ours and "torch" not in ours:
        wanted = f"torchvision=={ours['torchvision']}\n"
        alone = compile_quietly(uv, python, "--no-header", "-", given=wanted)
        ours |= dict(re.findall(r"^(torch)==(\S+)$", alone, re.MULTILINE))
    left_out = (STACKS / "off-tpu.overrides").read_text().splitlines()
    fixed = [line for line in left_out if line.endswith("sys_platform == 'never'")]
    free = [name for name in ("numba",) if name not in ours]  # vLLM's pin alone is for CUDA
    return [*fixed, *(f"{name}=={version}" for name, version in sorted(ours.items())), *free]


def streamer_override(streamer: str) -> str:
    return f"{STREAMER}[s3,gcs]=={streamer}"


def advice(pair: Pair) -> str:
    """The nearest pair that is known to work, in a sentence; empty where none is."""
    near = neighbour(pair, seen_pairs())
    if near is None:
        return ""
    return f"Nearest pair that works: {near}. Try: STACK={near.name.split('+streamer')[0]}."


def neighbour(pair: Pair, seen: Sequence[dict[str, Any]]) -> Pair | None:
    """Of the pairs that ran, the nearest one that works; None where there is none."""
    working = [Pair(row["vllm"], row["tpu_inference"]) for row in seen if row["verdict"] == "works"]
    return min(working, key=lambda other: _distance(pair, other), default=None)


def _distance(one: Pair, other: Pair) -> tuple[int, int, bool]:
    """How far apart two pairs are, in minor releases; of two alike the newer is nearer."""
    apart = [
        abs(_number(minor(a)) - _number(minor(b)))
        for a, b in zip(one[:2], other[:2])  # noqa: B905
    ]
    return (sum(apart), apart[0], order(other.vllm) < order(one.vllm))


def _number(parts: tuple[int, ...]) -> int:
    return parts[0] * 1000 + (parts[1] if len(parts) > 1 else 0)


def built_on(package: str, version: str, pip: Sequence[str], at: Path) -> str:
    """The day a version was built, ``2026-08-20``; empty where its wheel does not tell.

    Of a build of a day it is in the version; of a release, the newest file of its wheel has it.
    """
    if day := day_of(version):
        return f"{day[:4]}-{day[4:6]}-{day[6:]}"
    command = [*pip, "download", "--quiet", "--no-deps", "--dest", str(at), f"{package}=={version}"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        return ""
    for wheel in at.glob("*.whl"):
        with zipfile.ZipFile(wheel) as opened:
            newest = max(member.date_time for member in opened.infolist())
        return "{:04}-{:02}-{:02}".format(*newest) if newest[0] > 1980 else ""
    return ""


def seen_pairs() -> list[dict[str, Any]]:
    """What runs of pairs came to; empty where no table was written yet."""
    rows: list[dict[str, Any]] = json.loads(SEEN.read_text())["pairs"] if SEEN.exists() else []
    return rows


def note(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr)
