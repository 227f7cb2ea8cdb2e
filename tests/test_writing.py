"""A file is there when it is complete, and JSON is for people too."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.writing import indented, write


def test_a_file_appears_whole(tmp_path: Path) -> None:
    write(tmp_path / "a", b"old")
    write(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a", b"old")

    def interrupted(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"


def test_json_is_indented() -> None:
    assert indented({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}\n'
