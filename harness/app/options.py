"""The options of a verification: one table for ``harness verify`` and for the pytest plugin.

A row says an option's name, type, choices, default and help once. Click is told of it under its
name, pytest under :data:`PREFIX` and its name, so that it never meets an option of a project that
the harness is installed beside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from harness.compare.digest_comparison import Method
from harness.compare.selection import Selection
from harness.families.family import Storage
from harness.load.target import Implementation, Parallelism, Share, Target
from harness.load.targets.known_targets import meshed, served_by, target_on

#: What the plugin's options, fixtures, markers and attributes of test reports begin with.
PREFIX = "moe"

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option, as both front ends are told of it.

    Attributes:
        name: without dashes in front or a prefix: ``max-bytes``.
        help: a sentence. Click and pytest add the default to it.
        type: makes the value of what was typed; a ``ValueError`` of it is a usage error.
        default: the value where nothing was typed; None and the empty text are not shown.
        choices: the texts that are allowed; any where empty.
        metavar: what help calls the value, where the name will not do.
        flag: it takes no value.
        repeatable: it may be given several times; the value is a list.
    """

    name: str
    help: str
    type: Callable[[str], Any] = str
    default: Any = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    flag: bool = False
    repeatable: bool = False

    @property
    def key(self) -> str:
        """Its name as an identifier: ``max_bytes``."""
        return self.name.replace("-", "_")

    @property
    def dest(self) -> str:
        """Where pytest keeps its value: ``config.getoption("moe_max_bytes")``."""
        return f"{PREFIX}_{self.key}"

    @property
    def prefixed(self) -> str:
        """What is typed for pytest: ``--moe-max-bytes``."""
        return f"--{PREFIX}-{self.name}"

    def for_click(self, command: _Command) -> _Command:
        """The command, with this option."""
        told: dict[str, Any] = {"is_flag": True} if self.flag else {
            "type": click.Choice(self.choices) if self.choices else self.type,
            "default": self.default,
            "show_default": self.default not in (None, "", []),
            "metavar": self.metavar,
            "multiple": self.repeatable,
        }  # fmt: skip
        return click.option(f"--{self.name}", self.key, help=self.help, **told)(command)

    def for_pytest(self) -> dict[str, Any]:
        """The keyword arguments of pytest's ``addoption``."""
        told: dict[str, Any] = {"dest": self.dest, "help": self.help}
        if self.flag:
            return told | {"action": "store_true"}
        if self.default not in (None, "", []):
            told["help"] += f" (default: {self.default})"
        if self.choices:
            told["choices"] = self.choices
        else:
            told["metavar"] = self.metavar or self.key.upper()
        if self.repeatable:
            told["action"] = "append"
        return told | {"type": self.type, "default": self.default}

    def typed(self, value: Any) -> list[str]:
        """The words of pytest's command line that give this value; none for the default."""
        if value is None or value == self.default or (self.flag and not value):
            return []
        if self.flag:
            return [self.prefixed]
        return [f"{self.prefixed}={one}" for one in (value if self.repeatable else [value])]


TIMEOUT = Option(
    name="timeout", type=float, default=3600.0, help="Seconds after which the load is stopped."
)

FAMILY = Option(
    name="family", repeatable=True, default=[], metavar="FILE",
    help="Run this Python file and use the family it describes. Repeatable.",
)  # fmt: skip

STORAGE = Option(
    name="storage", choices=tuple(s.value for s in Storage),
    help="How experts are stored, if their names and shapes allow several readings.",
)  # fmt: skip

CHECKSUMS = Option(
    name="checksums", flag=True,
    help="First compare whole files with their store's checksums; in the cache of digests, "
    "identify a directory's files by their hashes.",
)  # fmt: skip

NO_CACHE = Option(
    name="no-cache",
    flag=True,
    help="Do not use or keep digests of the checkpoint (harness doctor lists the kept ones).",
)

#: The options that ``harness verify`` and the plugin share.
SHARED = (
    FAMILY,
    Option(name="target", default="emulated", help="Where to load the model."),
    Option(
        name="devices", type=int, help="Devices in the mesh; by default 4, on a TPU all."
    ),
    Option(
        name="hosts", type=int, default=1,
        help="Number of hosts in the mesh; on a TPU slice all of them, including this one.",
    ),
    Option(
        name="on", default="", metavar="ray[:ADDRESS]",
        help="Use the nodes of a Ray cluster as hosts, through tpu-inference's Ray executor.",
    ),
    Option(
        name="parallelism", choices=tuple(p.value for p in Parallelism),
        default=Parallelism.TENSOR.value,
        help="How experts are spread over the mesh.",
    ),
    Option(
        name="impl", choices=tuple(i.value for i in Implementation),
        default=Implementation.AUTO.value,
        help="Which implementation of the model to load: vLLM's, or tpu-inference's own in JAX; "
        "auto: tpu-inference chooses.",
    ),
    Option(
        name="stack", default="", metavar="path:VLLM[,TPU_INFERENCE]",
        help="Import vllm (and tpu_inference) from these checkouts.",
    ),
    Option(name="layers", default="", help="Compare only these layers: 0,12,-1 or 0-3."),
    Option(name="experts", default="", help="Compare only these experts of each layer: 0-3,7,-1."),
    Option(name="sample", type=int, help="Compare this many experts, drawn at random."),
    Option(name="max-bytes", type=int, help="Compare at most this many bytes of experts."),
    Option(name="seed", type=int, default=0, help="The seed of that choice."),
    STORAGE,
    Option(name="num-layers", type=int, help="Load only this many decoder layers, the first ones."),
    Option(
        name="compare", choices=tuple(m.value for m in Method), default=Method.AUTO.value,
        help="Compare bits read back, or digests made on the device; auto: digests, if the device "
        "has memory of its own.",
    ),
    CHECKSUMS,
    NO_CACHE,
)  # fmt: skip

#: The options of the plugin, by the names they have without its prefix.
OF_PYTEST = (
    *SHARED,
    replace(TIMEOUT, name="load-timeout", default=600.0),
    Option(
        name="checkpoint", repeatable=True, default=[], metavar="PLACE",
        help="Run the scenarios on this directory, s3://…, gs://… or hub id instead of synthetic "
        "checkpoints; repeatable.",
    ),
    Option(
        name="reports", type=Path, metavar="DIR",
        help="Write reports to this directory: JSON, JUnit, HTML and Markdown.",
    ),
    Option(
        name="families", choices=("chosen", "all"), default="chosen",
        help="all: every family in every storage, with tensor and expert parallelism; chosen: one "
        "load of each family, and the special cases.",
    ),
    Option(
        name="expect", choices=("equal", "known"), default="equal",
        help="equal: everything must be equal; known: exactly the known upstream failures of this "
        "stack must happen.",
    ),
)  # fmt: skip


_NAMED = re.compile(
    rf"(?<![\w-])--({'|'.join(re.escape(option.name) for option in OF_PYTEST)})(?![\w-])"
)


def as_pytest_has_them(text: str) -> str:
    """A message of the library, with each option that it names under the plugin's name."""
    return _NAMED.sub(rf"--{PREFIX}-\1", text)


def for_click(options: Sequence[Option]) -> Callable[[_Command], _Command]:
    """A decorator: a command with these options, listed in their order."""

    def decorated(command: _Command) -> _Command:
        for option in reversed(options):
            command = option.for_click(command)
        return command

    return decorated


def target_of(values: Mapping[str, Any], mesh: str | None = None, share: Share = None) -> Target:
    """The target that the options ask for.

    Args:
        values: of ``target``, ``devices``, ``parallelism``, ``hosts``, ``on`` and ``impl``.
        mesh: sizes of several axes, which ``devices`` says nothing about then; None for one axis.
        share: see :func:`harness.load.target.target_named`.

    Raises:
        BadInput: there is no such target, or not with such a mesh.
        TargetUnavailable: this machine, or this environment, has none; or the target has no such
            implementation.
    """
    name, hosts, parallelism = values["target"], values["hosts"], Parallelism(values["parallelism"])
    if mesh is None:
        target = target_on(name, values["devices"], parallelism, hosts, share, values["on"])
    else:
        target = meshed(name, mesh, parallelism, hosts, share, values["on"])
    return served_by(target, Implementation(values["impl"]))


def keywords(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of ``harness.verify`` that the options stand for."""
    selected = ("layers", "experts", "sample", "max_bytes", "seed")
    return {
        "families": tuple(values["family"]),
        "selection": Selection(**{name: values[name] for name in selected}),
        "storage": Storage(values["storage"]) if values["storage"] else None,
        "num_layers": values["num_layers"],
        "checksums": values["checksums"],
        "cache": not values["no_cache"],
        "method": Method(values["compare"]),
    }
