"""Known upstream issues: what is expected to fail, how exactly, and the verdict over a report.

A row says who owns the fault, on which releases and of which loads it happens, and what it looks
like: the error and its place, or each single difference, by a rule over the sizes of what is
loaded. A report is known where it is just what the rows that concern it say, together. One that
differs from them by a single difference is not, and a row whose failure does not happen is out of
date, unless a checkout stood in for a release: then it is mended there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import Specifier
from packaging.version import InvalidVersion

from harness.base.number_runs import numbers_of
from harness.compare.difference import Difference, Kind
from harness.explain.causes import Cause
from harness.families.family import Part, Projection, Storage
from harness.load.stack import chronological
from harness.load.target import Implementation, Parallelism
from harness.load.targets.known_targets import targets
from harness.load.targets.tpu_inference import TpuInference
from harness.report.maps import PartMap, State
from harness.report.releases import last_seen
from harness.report.report import Failure, Report, Status, contradictions


class Owner(StrEnum):
    """Who has to mend it."""

    VLLM = "vllm"
    TPU_INFERENCE = "tpu-inference"
    HARNESS = "harness"


class Nature(StrEnum):
    """What kind of failure it is."""

    BUG = "bug"
    MISSING = "missing"
    BY_DESIGN = "by-design"

    @property
    def words(self) -> str:
        """As a reader calls it."""
        return _NATURE[self]


_NATURE = {
    Nature.BUG: "a bug",
    Nature.MISSING: "not implemented",
    Nature.BY_DESIGN: "refused by design",
}


class Stage(IntEnum):
    """How far a load gets before an issue ends it; of two, the one at an earlier stage is seen."""

    CONFIGURATION = 1
    DEVICES = 2
    MODEL = 3
    STREAM = 4
    PROCESSING = 5


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is loaded, as far as an issue depends on it.

    Attributes:
        family: of the checkpoint.
        layers: of experts, by part; the parts are those that are loaded.
        experts: of each layer.
        storage: of the experts, by part; empty where nobody says.
        hidden: D, the experts' input features; 0 where nobody says, like all sizes below.
        intermediate: F, their intermediate features.
        heads: attention heads.
        vocabulary: rows of the embedding and the head.
        parallelism: how experts are spread.
        devices: of the mesh.
        mesh: its axes, where it has several: ``expert=4``; ``2d`` among them for an old one.
        hosts: whose reports are merged; each tells of a parameter that is cut over all of them.
        tied: the head is the embedding.
        ties_contradict: ``text_config`` alone says that it is.
        dtype: of the model, as config.json states it; empty where it is that of the tensors.
        quantised: the format of its experts (:mod:`harness.families.formats`); empty for none. Of
            ``fp8`` linear layers are quantised, too.
        unchanged: the stack was asked not to quantise anew.
        axes_swapped: fused tensors lie as transformers 5 saves them.
        vision_first: the vision tower is streamed before any expert.
        store: the scheme of the store's URL it is streamed from; empty for a directory.
        impl: which implementation of the model is asked for.
        draft_chosen: tpu-inference is left to choose that of the draft model, too.
        latent: attention is multi-head latent attention, and not disabled.
        nested: the language model is a module of another model, as beside a vision tower.
    """

    family: str
    layers: Mapping[Part, Sequence[int]]
    experts: int
    storage: Mapping[Part, Storage] = field(default_factory=dict)
    hidden: int = 0
    intermediate: int = 0
    heads: int = 0
    vocabulary: int = 0
    parallelism: Parallelism = Parallelism.TENSOR
    devices: int = 0
    mesh: str = ""
    hosts: int = 1
    tied: bool = False
    ties_contradict: bool = False
    dtype: str = ""
    quantised: str = ""
    unchanged: bool = False
    axes_swapped: bool = False
    vision_first: bool = False
    store: str = ""
    impl: Implementation = Implementation.AUTO
    draft_chosen: bool = False
    latent: bool = False
    nested: bool = True

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that are loaded; a draft model after its decoder."""
        return tuple(part for part in Part if part in self.layers)

    @property
    def axes(self) -> tuple[str, ...]:
        """``pcp``, ``model`` of a mesh ``pcp=2,model=2``."""
        return tuple(axis.split("=")[0] for axis in self.mesh.split(",") if axis)


def load_of(report: Report) -> Load:
    """What a report tells of its load: family and sizes. Of a checkpoint of the user's own."""
    experts = max((part_map.experts for part_map in report.maps), default=0)
    layers = {part_map.part: part_map.layers for part_map in report.maps}
    return Load(family=report.family, layers=layers, experts=experts, hosts=_hosts(report))


def _hosts(report: Report) -> int:
    """How many hosts' differences a report has: of a slice, one's own or all of them."""
    return max(1, len(report.hosts))


class Sign(NamedTuple):
    """One difference as an issue makes it: its cause, its kind, and the place.

    ``parameter`` is the array, without the wrapper's own ``vllm_model.``; of an expert its last
    name, since releases move the module it lies in; or the checkpoint's tensor, where no array
    is meant.
    """

    cause: Cause | None
    kind: Kind
    part: Part
    layer: int | None = None
    expert: int | None = None
    projection: Projection | None = None
    parameter: str = ""

    def __str__(self) -> str:
        place = [str(self.part)]
        place += [] if self.layer is None else [f"layer {self.layer}"]
        place += [] if self.expert is None else [f"expert {self.expert}"]
        place += [one for one in (self.projection, self.parameter) if one]
        return f"{' '.join(place)}: {self.kind} [{self.cause or 'no cause'}]"


@dataclass(frozen=True, kw_only=True)
class Raised:
    """The error that ends a load.

    Attributes:
        error: the exception's full type name.
        message: a regular expression that the whole message matches; or what makes one of the
            load, where sizes stand in it.
        at: one that the last upstream frame matches whole: ``file in function: text``. No line
            number: those move with every release.
        stage: how far the load gets.
        cause: its one diagnosis.
        evidence: a regular expression that the diagnosis's evidence matches whole.
        lost: the part of which no expert arrived by then, where the ledger says so.
    """

    error: str
    message: str | Callable[[Load], str]
    at: str
    stage: Stage
    cause: Cause = Cause.UNEXPLAINED
    evidence: str = "see above"
    lost: Part | None = None


_Signs = Callable[[Load], Iterable[Sign]]


def through_tpu_inference() -> tuple[str, ...]:
    """The targets that load through tpu-inference, whichever devices they have."""
    return tuple(name for name, driver in targets().items() if isinstance(driver, TpuInference))


@dataclass(frozen=True, kw_only=True)
class KnownIssue:
    """One known failure.

    Attributes:
        id: stable name.
        owner: who has to mend it.
        nature: a bug, something not implemented, or a refusal by design.
        reason: what is wrong, in a sentence that stands alone.
        threads: public threads it is known from.
        releases: where it happens, as requirements, all of them: ``vllm>=0.26``,
            ``tpu-inference<0.32``, ``tpu-inference>=0.26.0.dev20260820``.
        when: whether a load is one that it makes fail.
        raised: the error it ends a load with; or
        differs: the differences it leaves, every one.
        targets: the targets it happens on; all that go through tpu-inference unless given.

    Raises:
        ValueError: a target or a requirement is none, or it does not say what it looks like.
    """

    id: str
    owner: Owner
    nature: Nature
    reason: str
    threads: tuple[str, ...] = ()
    releases: tuple[str, ...]
    when: Callable[[Load], bool]
    raised: Raised | None = None
    differs: _Signs | None = None
    targets: tuple[str, ...] = field(default_factory=through_tpu_inference)

    def __post_init__(self) -> None:
        if unknown := set(self.targets) - set(targets()):
            raise ValueError(f"known issue {self.id}: no target {', '.join(sorted(unknown))}")
        if (self.raised is None) is (self.differs is None):
            raise ValueError(f"known issue {self.id}: it is an error, or it is differences")
        raised = self.raised
        if raised and not raised.at and raised.message in ("", ".*"):
            raise ValueError(f"known issue {self.id}: any {raised.error} would do; say where")
        for text in self.releases:
            try:
                requirement = Requirement(text)
            except InvalidRequirement as error:
                raise ValueError(f"known issue {self.id}: no requirement {text!r}") from error
            if requirement.name not in _PACKAGES:
                raise ValueError(f"known issue {self.id}: no package under test {text!r}")

    @property
    def summary(self) -> str:
        """The row in a line: id, what kind of failure it is, whose, where from, and the reason."""
        what = f"{self.id}, {self.nature.words}, owner {self.owner}, {self.known_from}"
        return f"{what}: {self.reason}"

    @property
    def known_from(self) -> str:
        """The threads, for a reader."""
        return ", ".join(self.threads) or "no thread known"

    def is_of(self, versions: Mapping[str, str], target: str) -> bool:
        """Whether it happens with these releases on this target."""
        return target in self.targets and all(_holds(text, versions) for text in self.releases)

    def signs(self, load: Load) -> Counter[Sign]:
        """The differences it leaves; none where it ends the load."""
        return Counter(self.differs(load) if self.differs else ())


#: The packages that releases are named of.
_PACKAGES = ("vllm", "tpu-inference")


def _holds(requirement: str, versions: Mapping[str, str]) -> bool:
    """Whether what is installed meets a requirement.

    A build before a release counts as that release: PEP 440 puts ``0.22.0rc1`` neither below 0.22
    nor from there on, and it has what 0.22 is to have. The build of a day follows the release that
    it is named after (:func:`harness.load.stack.chronological`), in a requirement, too:
    ``tpu-inference>=0.26.0.dev20260820``. No version, or one that is none, meets nothing.
    """
    wanted = Requirement(requirement)
    try:
        installed = chronological(versions.get(wanted.name, ""))
    except InvalidVersion:
        return False
    release = str(installed) if installed.is_postrelease else installed.base_version
    return all(
        Specifier(f"{one.operator}{_bound(one)}").contains(release, prereleases=True)
        for one in wanted.specifier
    )


def _bound(one: Specifier) -> str:
    """The version of a specifier; ``==1.*`` has none."""
    return one.version if one.version.endswith("*") else str(chronological(one.version))


def table(rows: Sequence[KnownIssue]) -> tuple[KnownIssue, ...]:
    """``rows``, once it is sure that each id is there once.

    Raises:
        ValueError: two have one id.
    """
    ids = [row.id for row in rows]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise ValueError(f"known issues with one id: {', '.join(twice)}")
    return tuple(rows)


def expected_issues(
    load: Load, versions: Mapping[str, str], target: str, issues: Sequence[KnownIssue]
) -> tuple[KnownIssue, ...]:
    """The rows that a load is to show: the first that ends it, or all that leave differences.

    Args:
        load: what is loaded.
        versions: by package, those installed.
        target: its name.
        issues: the table.
    """
    rows = [row for row in issues if row.is_of(versions, target) and row.when(load)]
    stages = [row.raised.stage for row in rows if row.raised]
    if not stages:
        return tuple(rows)
    return tuple(row for row in rows if row.raised and row.raised.stage == min(stages))


class Verdict(StrEnum):
    """What a report means against the table of known issues."""

    EQUAL = "equal"
    KNOWN = "known"
    MENDED = "mended"
    UNEXPECTED = "unexpected"
    OUT_OF_DATE = "out-of-date"


class Judgement(NamedTuple):
    """A verdict, the rows it rests on, and what they leave unexplained."""

    verdict: Verdict
    issues: tuple[KnownIssue, ...] = ()
    remainder: str = ""


def judge(report: Report, load: Load | None, issues: Sequence[KnownIssue]) -> Judgement:
    """The verdict over ``report``.

    Args:
        report: the outcome.
        load: what was loaded, where a scenario says so; None for a checkpoint of the user's own,
            which is equal, or fails as some rows say, or fails in a way no row knows.
        issues: the table.
    """
    if fault := next(contradictions(report), ""):
        return Judgement(Verdict.UNEXPECTED, (), f"the report contradicts itself: {fault}")
    environment = report.environment
    target = environment.target.split(",")[0]
    own = load is None
    some = own or bool(environment.overlay)  # a checkout may have mended any of them
    if load is None:
        load = load_of(report)
        rows = tuple(row for row in issues if row.is_of(environment.versions, target))
    elif some:
        load = replace(load, hosts=_hosts(report))
        rows = tuple(r for r in issues if r.is_of(environment.versions, target) and r.when(load))
    else:
        load = replace(load, hosts=_hosts(report))
        rows = expected_issues(load, environment.versions, target, issues)
    if report.status is Status.EQUAL:
        if own or not rows:
            return Judgement(Verdict.EQUAL)
        if environment.overlay:
            return Judgement(Verdict.MENDED, rows)
        return Judgement(Verdict.OUT_OF_DATE, rows, _since(rows, environment.versions))
    if report.failure:
        found = _failed(report, report.failure, load, rows)
    else:
        found = _different(report, load, rows, some=some)
    nobodys = found.verdict is Verdict.UNEXPECTED and (own or not rows)
    return Judgement(Verdict.UNEXPECTED) if nobodys else found


def _since(rows: Sequence[KnownIssue], versions: Mapping[str, str]) -> str:
    """Since when what ``rows`` describe does not happen any more, as far as runs have shown."""
    pair = ", ".join(f"{name} {versions.get(name, '?')}" for name in _PACKAGES)
    told = "; ".join(f"{row.id}: {last_seen(row.id, versions)}" for row in rows)
    return f"with {pair} ({told})"


def _failed(
    report: Report, failure: Failure, load: Load, rows: tuple[KnownIssue, ...]
) -> Judgement:
    """Of a load that raised: the row whose error it is, in every respect."""
    faults = []
    for row in rows:
        if row.raised is None:
            continue
        fault = next(_unlike(report, failure, load, row.raised), "")
        if not fault:
            return Judgement(Verdict.KNOWN, (row,))
        faults.append(f"{row.id}: {fault}")
    told = "; ".join(faults) if len(faults) == 1 else ""
    return Judgement(Verdict.UNEXPECTED, rows, told or f"a load that ended in {failure.error}")


def _unlike(report: Report, failure: Failure, load: Load, raised: Raised) -> Iterator[str]:
    """In what a failed load is not as a row has it."""
    if failure.error != raised.error:
        yield f"the error is {failure.error}, not {raised.error}"
    message = raised.message if isinstance(raised.message, str) else raised.message(load)
    if not re.fullmatch(message, failure.message, re.DOTALL):
        yield "the error's message is another"
    frame = failure.frames[-1] if failure.frames else None
    place = f"{frame.file} in {frame.function}: {frame.text}" if frame else ""
    if not re.fullmatch(raised.at, place, re.DOTALL):
        yield f"it was raised at another place, {place or 'none of upstream'}"
    if [diagnosis.cause for diagnosis in report.diagnoses] != [raised.cause]:
        yield f"its causes are {', '.join(d.cause for d in report.diagnoses) or 'none'}"
    elif not re.fullmatch(raised.evidence, report.diagnoses[0].evidence, re.DOTALL):
        yield f"its evidence is another: {report.diagnoses[0].evidence}"
    if report.differences:
        yield f"it has {len(report.differences)} differences beside the error"
    for part_map in report.maps:
        state = State.MISSING if part_map.part is raised.lost else State.NOT_COMPARED
        matrices = len(Projection) * part_map.experts * len(part_map.layers)
        if part_map.count(state) != matrices:
            yield f"of {part_map.part} {part_map.count(state)} of {matrices} are {state.words}"
    if fault := _other_sizes(report, load):
        yield fault


def _other_sizes(report: Report, load: Load) -> str:
    """In what a report is of another checkpoint than its scenario loads; empty for none."""
    told = load_of(report)
    found, wanted = ({p: list(n) for p, n in each.layers.items()} for each in (told, load))
    if (found, told.experts) == (wanted, load.experts):
        return ""
    return f"it is of layers {found} with {told.experts} experts, not {wanted} with {load.experts}"


def _different(
    report: Report, load: Load, rows: tuple[KnownIssue, ...], *, some: bool
) -> Judgement:
    """Of a load that ended: the union of the rows' differences, nothing more and nothing less."""
    if fault := _other_sizes(report, load):
        return Judgement(Verdict.UNEXPECTED, rows, fault)
    found = signs_of(report)
    wanted = {row: _compared(report, row.signs(load)) for row in rows if row.differs}
    ends = tuple(row for row in rows if row.raised) if not some else ()
    if ends:
        return Judgement(Verdict.UNEXPECTED, ends, "it ended, and was to raise an error")
    if some:
        wanted = {row: signs for row, signs in wanted.items() if signs and not signs - found}
    union: Counter[Sign] = Counter()
    for signs in wanted.values():
        union |= signs
    if union == found and found:
        return Judgement(Verdict.KNOWN, tuple(wanted))
    return Judgement(Verdict.UNEXPECTED, tuple(wanted), _remainder(found - union, union - found))


def _remainder(more: Counter[Sign], less: Counter[Sign]) -> str:
    """The differences that no row explains, and those that did not happen."""
    told = []
    for signs, what in ((more, "unexplained"), (less, "expected and not there")):
        if signs:
            told.append(f"{signs.total()} {what}: {next(iter(signs))}")
    return "; ".join(told)


def signs_of(report: Report) -> Counter[Sign]:
    """A report's differences, each with the cause that its diagnosis gives it."""
    causes = {n: d.cause for d in report.diagnoses for n in numbers_of(d.members)}
    return Counter(sign_of(d, causes.get(n)) for n, d in enumerate(report.differences))


def sign_of(difference: Difference, cause: Cause | None) -> Sign:
    """What of a difference an issue foresees: not the bits, and not the device."""
    d = difference
    name = d.name.removeprefix("vllm_model.")
    name = name if d.key is None else name.rsplit(".", 1)[-1]
    return Sign(cause, d.kind, d.part, d.layer, d.expert, d.projection, name)


def _compared(report: Report, signs: Counter[Sign]) -> Counter[Sign]:
    """``signs`` without those of experts that were left out by request."""
    partial = {tally.part for tally in report.tallies if tally.left_out}
    cells = {m.part: _cells(m) for m in report.maps if m.part in partial}
    return Counter({
        sign: number
        for sign, number in signs.items()
        if sign.part not in cells
        or sign.projection is None
        or cells[sign.part].get((sign.projection, sign.layer, sign.expert), True)
    })  # fmt: skip


def _cells(part_map: PartMap) -> dict[tuple[Projection, int | None, int | None], bool]:
    return {
        (projection, layer, expert): state is not State.NOT_COMPARED
        for projection, layer, row in part_map.rows()
        for expert, state in enumerate(row)
    }


def note(report: Report, judgement: Judgement) -> None:
    """Have ``report`` name the rows that describe it, or that the checkout mends."""
    rows = judgement.issues if judgement.verdict in (Verdict.KNOWN, Verdict.MENDED) else ()
    names = ", ".join(row.id for row in rows)
    report.known_issue = names if judgement.verdict is Verdict.KNOWN else ""
    report.mended_issue = names if judgement.verdict is Verdict.MENDED else ""
    report.issue_owner = ", ".join(dict.fromkeys(str(row.owner) for row in rows))


def shows(report: Report, load: Load, row: KnownIssue) -> bool:
    """Whether a report shows what a row describes, on whatever releases, beside anything else."""
    load = replace(load, hosts=_hosts(report))
    if row.raised:
        return report.failure is not None and not any(
            _unlike(report, report.failure, load, row.raised)
        )
    signs = _compared(report, row.signs(load))
    return report.failure is None and bool(signs) and not signs - signs_of(report)
