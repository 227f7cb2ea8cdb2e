"""A file is there when it is complete, and nowhere else; and JSON is for people too."""

from __future__ import annotations

import errno
import os
import pty
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.base.errors import BadInput, NotWritten
from harness.base.writing import (
    append,
    deliver,
    indented,
    keep,
    require_writable,
    require_writable_directory,
    write,
)

CONTENT = b"content " * 20_000
ROOT = os.geteuid() == 0


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", b"old")
    write(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", b"old")
    written = os.write

    def interrupted(descriptor: int, content: bytes) -> int:
        written(descriptor, content[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("before", "umask", "after"),
    [(0o640, 0o000, 0o640), (0o600, 0o022, 0o600), (None, 0o027, 0o640)],
)
def test_the_mode_is_the_files_own_or_the_umasks(
    tmp_path: Path, before: int | None, umask: int, after: int
) -> None:
    path = tmp_path / "a"
    if before is not None:
        path.touch()
        path.chmod(before)
    old = os.umask(umask)
    try:
        write(path, b"new")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == after


@pytest.mark.parametrize("name", [".a.partial", ".a.tmp", "a.partial", "a.tmp"])
def test_nothing_is_written_through_a_link_that_was_planted(tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    (tmp_path / name).symlink_to(precious)
    write(tmp_path / "a", b"new")
    assert precious.read_bytes() == b"precious"


def test_the_neighbour_cannot_be_known_and_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []
    real = os.open

    def noting(path: Path, flags: int, *rest: int) -> int:
        opened.append((str(path), flags))
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", noting)
    write(tmp_path / "a", b"new")
    write(tmp_path / "a", b"new")
    assert len({path for path, _ in opened}) == 2
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for _, flags in opened)


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing yet"])
def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "target"
    if there:
        target.write_bytes(b"old")
    (tmp_path / "second").symlink_to("far/target")
    (tmp_path / "link").symlink_to("second")
    write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert target.read_bytes() == b"new"
    assert names(tmp_path / "far") == ["target"]


@pytest.mark.skipif(not ROOT, reason="only root can make a file someone else's")
@pytest.mark.parametrize(
    ("mode", "owner", "refused"), [(0o1777, 4321, True), (0o1777, 0, False), (0o755, 4321, False)]
)
def test_a_strangers_link_where_everybody_may_write(
    tmp_path: Path, mode: int, owner: int, refused: bool
) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(mode)
    link = tmp_path / "shared" / "link"
    link.symlink_to(tmp_path / "target")
    os.chown(link, owner, owner, follow_symlinks=False)
    if refused:
        with pytest.raises(BadInput, match="another user made this link"):
            require_writable(link)
        with pytest.raises(PermissionError):
            write(link, b"new")
    else:
        require_writable(link)
        write(link, b"new")
    assert (tmp_path / "target").read_bytes() == (b"old" if refused else b"new")


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(BadInput, match="levels of symbolic links"):
        require_writable(tmp_path / "a")


@contextmanager
def reading(path: Path) -> Iterator[list[bytes]]:
    """A reader of a named pipe, who comes a little late."""
    got: list[bytes] = []
    reader = threading.Timer(0.2, lambda: got.append(path.read_bytes()))
    reader.start()
    yield got
    reader.join()


def test_a_named_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    require_writable(tmp_path / "pipe")
    with reading(tmp_path / "pipe") as got:
        write(tmp_path / "pipe", CONTENT)
    assert got == [CONTENT]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_named_pipe_that_nobody_reads_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        write(tmp_path / "pipe", CONTENT, reader_seconds=0.1)


def test_a_socket_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    got: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        listening.listen()

        def read() -> None:
            with listening.accept()[0] as connection, connection.makefile("rb") as file:
                got.append(file.read())

        reader = threading.Thread(target=read)
        reader.start()
        require_writable(Path("s"))
        write(Path("s"), CONTENT)
        reader.join()
    assert got == [CONTENT]
    assert stat.S_ISSOCK(Path("s").stat().st_mode)


def test_a_device_is_written_to() -> None:
    main, secondary = pty.openpty()
    path = Path(os.ttyname(secondary))
    before = path.stat()
    require_writable(path)
    write(path, b"to a device")
    assert os.read(main, 100) == b"to a device"
    assert (path.stat().st_rdev, path.stat().st_ino) == (before.st_rdev, before.st_ino)
    os.close(main)
    os.close(secondary)


def full_device(directory: Path) -> Path:
    """A device on which there is no room, and which may be broken: it is this test's own."""
    path = directory / "full"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 7))
        os.close(os.open(path, os.O_WRONLY))
    except PermissionError:
        pytest.skip("no device can be made here")
    return path


def test_a_full_device_stays_a_device_and_its_content_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = full_device(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NotWritten, match=r"No space left on device .*take it from .*: all of it"):
        deliver(device, CONTENT)
    assert stat.S_ISCHR(device.stat().st_mode)
    (kept,) = tmp_path.glob("harness-kept-*/full")
    assert kept.read_bytes() == CONTENT
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("linked", ["/proc/self/fd/1", "/dev/fd/1", "/proc/thread-self/fd/1"])
def test_standard_output_is_continued(tmp_path: Path, linked: str) -> None:
    place = tmp_path / "stdout"  # as /dev/stdout is one, which a fault here must not break
    place.symlink_to(linked)
    code = (
        "import sys; from pathlib import Path; from harness.base.writing import *\n"
        f"place = Path('{place}'); print('before'); require_writable(place)\n"
        "write(place, b'json\\n'); print('after')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\njson\nafter\n"
    piped = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert piped.stdout == b"before\njson\nafter\n"
    assert place.is_symlink()


def test_a_file_that_is_mounted_on_is_written_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    (tmp_path / "a").write_bytes(b"old and longer")
    monkeypatch.setattr(os, "replace", busy)
    write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert names(tmp_path) == ["a"]


def made(make: Callable[[Path], object]) -> Callable[[Path], Path]:
    def prepared(directory: Path) -> Path:
        path = directory / "place"
        make(path)
        return path

    return prepared


#: Places that no output can go to: how each is made, and what is said of it.
UNUSABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a directory": (made(Path.mkdir), "Is a directory"),
    "no parent": (lambda d: d / "absent" / "a", "no directory for the report"),
    "below a file": (lambda d: made(Path.touch)(d) / "a", "Not a directory"),
    "a name too long": (lambda d: d / ("a" * 256), "File name too long"),
    "a closed descriptor": (lambda d: Path("/dev/fd/997"), "Bad file descriptor"),
    "a link to a directory": (made(lambda path: path.symlink_to("..")), "Is a directory"),
    "a link to nowhere": (made(lambda path: path.symlink_to("absent/a")), "no directory"),
}


@pytest.mark.parametrize(("make", "told"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_place_is_tried_before(tmp_path: Path, make: Callable[[Path], Path], told: str) -> None:
    place = make(tmp_path)
    before = names(tmp_path)
    with pytest.raises(BadInput, match=told):
        require_writable(place)
    with pytest.raises(OSError, match=r"\[Errno"):
        write(place, b"content")
    assert names(tmp_path) == before


def told_without_privileges(directory: Path, name: str) -> str:
    """What trying a place says to a user for whom modes count, as they do not for root."""
    become = "os.setgroups([]); os.setgid(4321); os.setuid(4321)" if ROOT else ""
    code = (
        "import os, harness.base.errors, harness.base.writing, pathlib\n"
        f"os.chdir({str(directory)!r}); {become}\n"
        f"try: harness.base.writing.require_writable(pathlib.Path({name!r}))\n"
        "except harness.base.errors.BadInput as error: print(error)\n"
    )
    return subprocess.check_output([sys.executable, "-c", code], text=True)


@pytest.mark.parametrize(
    ("directory_mode", "file_mode", "name", "told"),
    [
        (0o755, 0o444, "a", "Permission denied"),
        (0o555, 0o644, "a", "Permission denied"),
        (0o555, 0o644, "b", "Permission denied"),
        (0o755, 0o644, "a", ""),
    ],
)
def test_a_place_that_is_read_only(
    tmp_path: Path, directory_mode: int, file_mode: int, name: str, told: str
) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    for path, mode in ((directory / "a", file_mode), (directory, directory_mode)):
        path.touch()
        os.chown(path, 4321 if ROOT else -1, -1)
        path.chmod(mode)
    found = told_without_privileges(directory, name)
    assert told in found
    assert bool(told) == bool(found)


@pytest.mark.skipif(not ROOT, reason="only root can make a file someone else's")
def test_a_strangers_file_where_everybody_may_write(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    (shared / "a").touch()
    (shared / "a").chmod(0o666)
    assert "Permission denied" in told_without_privileges(shared, "a")
    assert told_without_privileges(shared, "b") == ""


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (made(Path.touch), "Not a directory"),
        (lambda d: made(Path.touch)(d) / "a" / "b", "Not a directory"),
        (made(lambda path: path.symlink_to("absent")), "No such file"),
    ],
    ids=["a file", "below a file", "a link to nowhere"],
)
def test_a_directory_is_tried_before(
    tmp_path: Path, make: Callable[[Path], Path], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        require_writable_directory(make(tmp_path))


@pytest.mark.parametrize("name", ["", "a", "a/b/c"])
def test_trying_a_directory_leaves_nothing(tmp_path: Path, name: str) -> None:
    require_writable_directory(tmp_path / name)
    require_writable(tmp_path / "file")
    assert names(tmp_path) == []


def test_what_no_disk_takes_is_lost_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(NotWritten, match=r"File too large .*no directory for temporary files"):
            deliver(tmp_path / "a", CONTENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == []


def test_several_files_are_kept_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = keep({"a": b"1", "b": b"2"})
    assert kept is not None
    assert names(kept) == ["a", "b"]


def test_append(tmp_path: Path) -> None:
    append(tmp_path / "a", b"1")
    append(tmp_path / "a", b"2")
    assert (tmp_path / "a").read_bytes() == b"12"


def test_json_is_indented() -> None:
    assert indented({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}\n'
