"""Whatever comes in is accepted or bad input: in bounded time and memory, and nothing else.

Every property is one of bytes or of text, so that an example that failed once stands here as a
row. 300 examples each; ``--hypothesis-profile=nightly`` takes 20 000.
"""

from __future__ import annotations

import atexit
import io
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.console import Console

from harness.base.errors import BadInput, InternalError
from harness.checkpoint.checkpoint import INDEX
from harness.checkpoint.stores import opening
from harness.checkpoint.stores.opening import open_location
from harness.compare.selection import Selection, choose
from harness.devices.parameter_layout import sizes_of
from harness.families.experts import reference_parts
from harness.families.family import Part
from harness.families.model_checkpoint import ModelCheckpoint
from harness.load.targets.known_targets import meshed, target_on
from harness.report.history import courses, print_courses
from harness.report.maps import map_of
from harness.report.merge import merged_session
from harness.report.renderings import FILES, rendered, session_from
from harness.report.report import (
    Broken,
    Delivery,
    Failure,
    Frame,
    HostPart,
    Report,
    Session,
    SessionRow,
    Skipped,
    Status,
)
from harness.report.terminal import closing_table
from harness.synthetic.writer import write_checkpoint
from tests.support.host_reports import bits, different, host
from tests.support.mutations import changed, changed_bytes
from tests.support.reports import a_report
from tests.support.spoiling import FIRST

SECONDS, BYTES = 2.0, 512 * 2**20
#: Showing a report takes its time row by row: a session of a megabyte has some 800.
SECONDS_PER_BYTE = 10e-6


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """The body takes no more processor time and memory than any input may, accepted or refused."""
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    except BadInput as error:
        str(error).encode()
    assert time.process_time() - began < seconds
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


def _kept(write: Callable[[Path], object]) -> Path:
    """A directory for all examples of a process; it goes with the process."""
    path = Path(tempfile.mkdtemp(prefix="harness-properties-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    write(path)
    return path


@cache
def checkpoint() -> Path:
    return _kept(lambda at: write_checkpoint("qwen3.6-mtp", at / "c", layers=1)) / "c"


@cache
def original(name: str) -> bytes:
    return (checkpoint() / name).read_bytes()


def config() -> Any:
    return json.loads(original("config.json"))


def index() -> Any:
    return json.loads(original(INDEX))


def header() -> Any:
    raw = original(FIRST)
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])


def read_or_refuse(name: str, content: bytes) -> None:
    """The checkpoint with another file ``name``, as far as it is read before a load."""
    path = checkpoint() / name
    path.write_bytes(content)
    try:
        with bounded():
            judge(checkpoint())
    finally:
        path.write_bytes(original(name))


def judge(at: Path) -> None:
    read = ModelCheckpoint(at)
    parts = reference_parts(read)
    sizes_of(read.text, read.config)
    assert read.tied in (True, False)
    assert read.family.contradicts_ties(read.config) in (True, False)
    choose(parts, Selection())
    for part in parts:
        map_of(part.part, part.layers, part.shape.experts)
    for entry in read.entries.values():
        assert entry.bits().shape == entry.shape


@given(changed(config))
def test_config_json(content: bytes) -> None:
    read_or_refuse("config.json", content)


@given(changed(index))
def test_an_index(content: bytes) -> None:
    read_or_refuse(INDEX, content)


@given(changed(header))
def test_a_header(content: bytes) -> None:
    raw = original(FIRST)
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    read_or_refuse(FIRST, len(content).to_bytes(8, "little") + content + data)


@given(changed_bytes(lambda: original(FIRST)[: len(json.dumps(header())) // 2]))
def test_a_file_of_weights(content: bytes) -> None:
    read_or_refuse(FIRST, content)


def a_session() -> Session:
    """Reports of every kind that there is a rendering of."""
    failed = a_report(
        status=Status.LOAD_FAILED,
        failure=Failure(
            error="E", message="m", frames=(Frame(file="f", line=1, function="g", text="t"),),
            log_tail="log",
        ),
    )  # fmt: skip
    delivery = Delivery(
        part=Part.DECODER, calls=1, sites={"f:1": 1}, streamed=1, delivered=1, unused=0, unread=0
    )
    rows = [
        SessionRow(scenario="equal", report=whole()),
        SessionRow(scenario="different", report=different(0, bits(1, "cpu:0"), bits(0, "cpu:1")),
            failed=True, why="why", purpose="purpose"),
        SessionRow(scenario="of-a-host", report=host(0, deliveries=[delivery])),
        SessionRow(scenario="failed", report=failed, failed=True),
    ]  # fmt: skip
    return Session(
        complete=True, rows=rows, began="2026-01-01T00:00:00Z", options=["--devices=2"],
        skipped=[Skipped(scenario="s", reason="r")], unfinished=["u"],
        broken=[Broken(test="t", phase="call", message="m", error="E  e")],
    )  # fmt: skip


def whole() -> Report:
    """The report of one host that compared all there is."""
    return host(0, divided=True, hosts=[])


@cache
def session_document() -> Any:
    return msgspec.to_builtins(a_session())


@cache
def report_document() -> Any:
    return msgspec.to_builtins(different(1, bits(2, "cpu:2")))


@given(changed(session_document))
def test_a_session(content: bytes) -> None:
    show_or_refuse(content)


def off_the_map(**place: int) -> bytes:
    """A difference of a matrix that the map of its part has not, and does not mark."""
    report = different(1, bits(2, "cpu:2"))
    differences = [replace(report.differences[0], **place)]
    return msgspec.json.encode(replace(report, differences=differences, maps=host(1).maps))


@given(changed(report_document))
@example(json.dumps(report_document()).replace('"layers": [0]', '"layers": [1]').encode())
@example(off_the_map(layer=7))
@example(off_the_map(layer=-1))
@example(off_the_map(expert=99))
@example(off_the_map(expert=-1))
@example(json.dumps(report_document()).replace('"total": 9', '"total": 0').encode())
def test_a_report(content: bytes) -> None:
    show_or_refuse(content)


@cache
def _reports() -> Path:
    return _kept(lambda at: (at / "night").mkdir())


def show_or_refuse(content: bytes) -> None:
    """Every command that reads a report: report, merge, history."""
    file = _reports() / "night" / "session.json"
    file.write_bytes(content)
    seconds = SECONDS + len(content) * SECONDS_PER_BYTE
    with bounded(seconds):
        session = session_from(file)
        for name in FILES:
            rendered(session, name)
        closing_table([(row.scenario, row.report) for row in session.rows], io.StringIO())
    with bounded(seconds):
        merge_or_refuse(session_from(file))
    with bounded(seconds):
        print_courses(courses(_reports()), Console(file=io.StringIO(), width=140))


def merge_or_refuse(session: Session) -> None:
    """With a session of the other host, and twice with itself."""
    rows = [
        SessionRow(scenario=row.scenario, report=other_host(row.report)) for row in session.rows
    ]
    for other in (Session(complete=True, rows=rows), session):
        try:
            merged_session([session, other])
        except BadInput:
            pass
        except InternalError as error:  # of what no host's report shows alone
            if "not all was compared" not in error.what:
                raise


def other_host(report: Report) -> Report:
    parts = [replace(part, number=1 - part.number) for part in report.hosts[:1]]
    return replace(report, hosts=parts or [_HOST])


_HOST = HostPart(number=1, of=2, devices=(), status=Status.EQUAL, differences=0)


_PLACES = [
    "s3://bucket/prefix", "gs://bucket/a/b", "https://host/path?X-Amz-Signature=x",
    "Qwen/Qwen3@main", "s3://user:word@bucket/x", "file:///etc/passwd", "org/name@refs/pr/1",
    "./folder", "",
]  # fmt: skip


@st.composite
def places(draw: st.DrawFn) -> str:
    text = draw(st.sampled_from(_PLACES))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        piece = draw(st.text(max_size=3) | st.sampled_from(["/", "//", "@", "..", "\0", "%2f", "?",
                     "#", ":", "\n", "\ud800", "a" * 5000, "/" * 5000, "[", "://"]))  # fmt: skip
        text = text[:at] + piece + text[at + draw(st.integers(0, 3)) :]
    return text


class NoBucket:
    """No request leaves this machine, whatever the name of a bucket is taken for."""

    def __init__(self, name: str) -> None:
        assert name

    def list(self, prefix: str) -> dict[str, Any]:
        assert not prefix.startswith("/")
        return {}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for scheme in opening.BUCKETS:
        monkeypatch.setitem(opening.BUCKETS, scheme, NoBucket)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("offline")
@given(places() | st.text(max_size=20))
@example("a\0b")
@example("")
@example("s3://\ud800bucket/prefix")
@example("\ud800s3://bucket/prefix")
def test_a_place(text: str) -> None:
    with bounded():
        open_location(text)


_MESH = st.text(alphabet="data=,1290modelxprtcp_٢- \n", max_size=24)
_WORDS = st.lists(st.sampled_from(["data=2", "model=2", "2d", "dcp=0", "=", "expert=9999999"]))


@given(_MESH | _WORDS.map(",".join))
def test_a_mesh(mesh: str) -> None:
    with bounded():
        assert meshed("emulated", mesh).devices <= 256


_COUNTS = st.none() | st.integers(-3, 300) | st.integers() | st.booleans() | st.floats()


@given(_COUNTS, _COUNTS)
def test_devices_and_hosts(devices: Any, hosts: Any) -> None:
    with bounded():
        assert 1 <= target_on("emulated", devices, hosts=hosts).devices <= 256


@given(st.text(alphabet="0123456789-, ٢x", max_size=30), st.integers(), st.integers())
def test_a_selection(text: str, sample: int, most: int) -> None:
    parts = reference_parts(ModelCheckpoint(checkpoint()))
    with bounded():
        choose(parts, Selection(layers=text))
    with bounded():
        choose(parts, Selection(experts=text, sample=sample, max_bytes=most))
