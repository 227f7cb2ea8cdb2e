"""The ``harness`` command. It parses, calls the library, prints, and maps outcomes to exit codes.

0 equal, 1 differences, 2 bad input, 3 the load under test failed, 4 target not available,
5 the harness itself failed or could not write the report, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import platform
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import click
from rich.filesize import decimal

from harness.app.bisect_command import bisect_command
from harness.app.options import (
    CHECKSUMS,
    FAMILY,
    NO_CACHE,
    SHARED,
    STORAGE,
    TIMEOUT,
    for_click,
    keywords,
    target_of,
)
from harness.app.report_commands import COMMANDS
from harness.audit.contract import Format, audit, rendered
from harness.audit.run import run_audit
from harness.audit.run_table import run_exit_code, run_json, run_text
from harness.base.bits import Nan
from harness.base.errors import BadInput, HarnessError, InternalError
from harness.base.secrets import credentials_found
from harness.base.writing import deliver, indented, keep, not_written, require_writable
from harness.families.family import Part, Storage
from harness.families.known_families import bring, recipes
from harness.families.overview import overview, overview_text
from harness.load.environment import cache_directory
from harness.load.overlay import overlay_from
from harness.load.process import LoadProcesses
from harness.load.stack import PACKAGES, installed_versions, require_stack, stack_name
from harness.load.target import Target
from harness.load.targets.known_targets import target_named, targets
from harness.report.message import digests_words, failure_text
from harness.report.report import Report
from harness.report.terminal import closing_table
from harness.synthetic.writer import write_checkpoint
from harness.verification.digest_cache import kept_lines
from harness.verification.digests import write_digests
from harness.verification.verify import verify


class _Commands(click.Group):
    """Commands that end with the exit code that says how: never 1, a difference, by accident."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, with streams that cannot break a verdict where they are the process's own."""
        if sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__:
            sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            try:
                return super().invoke(ctx)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(128 + signal.SIGINT)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except HarnessError as error:
            _tell(error)
            ctx.exit(error.exit_code)
        except Exception as error:
            _tell(InternalError.of(error))
            ctx.exit(InternalError.exit_code)


def _tell(error: HarnessError) -> None:
    """Print the error's paragraph, and its details; those of a failure are kept in a file."""
    click.echo(f"error: {error.paragraph}", err=True)
    if isinstance(error, BadInput) and error.details:
        click.echo(error.details, err=True)
    elif error.details:
        kept = keep({"details.txt": error.details.encode() + b"\n"})
        click.echo(f"details: {kept}" if kept else error.details, err=True)


class _Lasting(io.FileIO):
    """A stream of the process: once nobody reads it, what is written to it is let go.

    Another error, such as a full disk, is raised once.
    """

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                return len(content)
            raise  # once: what is left in buffers would break the exit code of the process


def _lasting(stream: TextIO | None, number: int) -> TextIO:
    """``stream``, or nowhere for one that was closed; its encoding refuses no character."""
    if stream is None:  # a file that is opened must not become the output of all processes
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, number)
    raw = _Lasting(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or raw.isatty(),
    )


@click.group(cls=_Commands)
@click.version_option(package_name="moe-load-harness")
def main() -> None:
    """Check, bit for bit, that every expert of an MoE checkpoint reached the device unchanged."""


for _command in (*COMMANDS, bisect_command):
    main.add_command(_command)


@main.command("verify")
@click.argument("checkpoint")
@for_click((*SHARED, TIMEOUT))
@click.option("--mesh", help="Axes of the mesh, in place of --devices: data=2,model=2.")
@click.option(
    "--reference",
    help="Compare with this checkpoint or digest file instead of CHECKPOINT itself.",
)
@click.option(
    "--nan",
    type=click.Choice([n.value for n in Nan]),
    default=Nan.PAYLOAD.value,
    show_default=True,
    help="canonical: treat each NaN of the reference as the quiet NaN of its sign.",
)
@click.option(
    "--only",
    type=click.Choice([p.value for p in Part]),
    multiple=True,
    help="Load and compare only this part; repeatable. Default: all parts.",
)
@click.option(
    "--experts-only",
    is_flag=True,
    help="Compare only experts; works for an unknown architecture too.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the report to this file."
)
def verify_command(
    checkpoint: str, mesh: str | None, json_path: Path | None, **options: Any
) -> None:
    """Stream CHECKPOINT onto a target and compare everything.

    CHECKPOINT is a directory, s3://bucket/prefix, gs://bucket/prefix or a hub id with an optional
    @revision.
    """
    require_writable(json_path)
    report = _verified(checkpoint, target_of(options, mesh), **options)
    try:
        if json_path:
            deliver(json_path, report.to_json())
    finally:
        _print(report)
    sys.exit(report.exit_code)


def _verified(
    checkpoint: str,
    where: Target,
    *,
    reference: str | None,
    nan: str,
    only: tuple[str, ...],
    experts_only: bool,
    stack: str,
    timeout: float,
    **options: Any,
) -> Report:
    with LoadProcesses(overlay_from(stack)) as processes:
        report = verify(
            checkpoint,
            where,
            reference=reference,
            nan=Nan(nan),
            experts_only=experts_only,
            parts=[Part(part) for part in only] or tuple(Part),
            timeout=timeout,
            processes=processes,
            terminal=sys.stderr,
            **keywords(options),
        )
    report.repeat += " --no-cache" if options["no_cache"] else ""
    return report


def _print(report: Report) -> None:
    try:
        if text := failure_text(report):
            click.echo(text + "\n")
        elif report.digests:
            click.echo(f"compared with {report.digests.file}: {digests_words(report.digests)}\n")
        if report.cache and not text:
            click.echo(f"cache: {report.cache}\n")
        closing_table([(Path(report.checkpoint).name, report)])
        sys.stdout.flush()
    except OSError as error:
        raise not_written("standard output", error, {"report.json": report.to_json()}) from error


@main.command("digest")
@click.argument("checkpoint")
@for_click((FAMILY, STORAGE, CHECKSUMS, NO_CACHE))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path),
    help="Write the digest file here; by default only the cache keeps the digests.",
)  # fmt: skip
def digest_command(
    checkpoint: str,
    output: Path | None,
    family: tuple[str, ...],
    storage: str | None,
    checksums: bool,
    no_cache: bool,
) -> None:
    """Read CHECKPOINT once and write 128 bits for each of its matrices to a file.

    harness verify CHECKPOINT --reference FILE then compares with the digests and reads no weights
    for the reference. The cache keeps them too, for harness verify CHECKPOINT to find.
    """
    if output is None and no_cache:
        raise click.UsageError("nowhere to write to: --no-cache, and no --output.")
    started = time.perf_counter()
    made, size, said = write_digests(
        checkpoint, output, families=family, terminal=sys.stderr,
        storage=Storage(storage) if storage else None, cache=not no_cache, hashed=checksums,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    read = sum(file.size for file in made.contents.files)
    click.echo(
        f"{made.matrices} experts' matrices and {len(made.contents.tensors)} other tensors, "
        f"{decimal(read)} read in {seconds:.1f} s: "
        + (f"{output}, " if output else "")
        + decimal(size)
    )
    if said:
        click.echo(f"cache: {said}")


@main.command("checkpoint")
@click.argument("recipe", metavar="RECIPE")
@click.argument("out", type=click.Path(path_type=Path))
@for_click((FAMILY,))
@click.option("--shapes", default="tiny", show_default=True, help="tiny or published:<model>.")
@click.option(
    "--quantised", default="", metavar="FORMAT", help="A quantised release: mxfp4, ct-int4, awq, …"
)
@click.option("--layers", type=int, help="Number of decoder layers, in place of the shape's own.")
@click.option("--experts", type=int, help="Experts per layer, in place of the shape's own.")
@click.option("--seed", default=0, show_default=True, help="The seed of all values.")
def checkpoint_command(recipe: str, out: Path, family: tuple[str, ...], **options: Any) -> None:
    """Write a synthetic checkpoint of RECIPE, in its published layout, to OUT.

    An unknown RECIPE prints the list of all; harness families describes them.
    """
    bring(family)
    written = write_checkpoint(recipe, out, **options)
    click.echo(
        f"{recipes()[recipe][1].summary}: {written.tensors} tensors, {written.nbytes} bytes "
        f"in {written.files} files under {written.path}"
    )


@main.command("families")
@for_click((FAMILY,))
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
def families_command(family: tuple[str, ...], as_json: bool) -> None:
    """List the model families: architectures, storages, recipes, releases each loads on."""
    bring(family)
    known = overview()
    click.echo(indented(known) if as_json else overview_text(known), nl=False)


@main.command("audit")
@click.option(
    "--vllm", type=click.Path(path_type=Path), help="A checkout of vLLM, or its package directory."
)
@click.option(
    "--tpu-inference",
    type=click.Path(path_type=Path),
    help="The same for tpu-inference and its hooks.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([f.value for f in Format]),
    default=Format.TEXT.value,
    show_default=True,
    help="sarif: for code scanning, only findings.",
)
@click.option("--all", "everything", is_flag=True, help="Also list the correct calls.")
@click.option("--output", type=click.Path(path_type=Path), help="Write to this file.")
def audit_command(
    vllm: Path | None, tpu_inference: Path | None, form: str, everything: bool, output: Path | None
) -> None:
    """Find weight-loader calls that hide an expert's ids from a loader hook.

    Reads sources without importing them; by default the installed ones. Exits with 1 on findings.
    """
    require_writable(output)
    report = audit(vllm, tpu_inference)
    shown = rendered(report if everything else report.without_others(), Format(form))
    _put(shown, output)
    sys.exit(report.exit_code)


@main.command("audit-run")
@click.argument("models", nargs=-1)
@click.option(
    "--timeout", default=600.0, show_default=True, help="Seconds after which a model is given up."
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
@click.option("--output", type=click.Path(path_type=Path), help="Write to this file.")
def audit_run_command(
    models: tuple[str, ...], timeout: float, form: str, output: Path | None
) -> None:
    """Build tiny models of the installed vLLM and check how they call their loaders.

    MODELS are parts of architecture names; by default every model with a row.
    """
    require_writable(output)
    require_stack()
    rows = []
    for row in run_audit(target_named("emulated", 2), models, timeout=timeout):
        click.echo(f"{row.model}: {row.outcome}", err=True)
        rows.append(row)
    _put(run_json(rows) if form == "json" else run_text(rows).encode(), output)
    sys.exit(run_exit_code(rows))


def _put(content: bytes, output: Path | None) -> None:
    if output:
        deliver(output, content)
    else:
        click.echo(content, nl=False)


@main.command("doctor")
@click.option("--target", "wanted", help="Exit with an error unless this target can run.")
def doctor_command(wanted: str | None) -> None:
    """List what is installed, which targets can run, and why the others cannot."""
    versions = installed_versions()
    click.echo(f"python    {platform.python_version()} ({sys.executable})")
    click.echo(f"stack     {stack_name(versions)}")
    for package in PACKAGES:
        click.echo(f"          {package} {versions.get(package, 'not installed')}")
    click.echo(f"caches    {cache_directory()}")
    for line in kept_lines():
        click.echo(f"digests   {line}")
    click.echo(f"found     credentials: {', '.join(credentials_found()) or 'none'}")
    for name in targets():
        click.echo(f"target    {name}: {_availability(name)}")
    require_stack()
    if wanted:
        target_named(wanted)


def _availability(target: str) -> str:
    try:
        return f"would run: {target_named(target)}"
    except HarnessError as error:
        return f"would not run: {error}"
