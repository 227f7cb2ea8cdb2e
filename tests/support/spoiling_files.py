"""More of them: headers, offsets, names, links, and files that should not be there."""

from __future__ import annotations

import json
import os
import pickle
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.checkpoint.checkpoint import INDEX
from tests.support.spoiling import FIRST, SECOND, edit_header, edit_json


def header_changed(change: Callable[[dict[str, Any]], object], name: str) -> Callable[[Path], None]:
    def spoil(at: Path) -> None:
        edit_header(at / FIRST, change)

    spoil.__name__ = name
    return spoil


def first_tensor(header: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = next(v for k, v in header.items() if k != "__metadata__")
    return fields


def fields_changed(name: str, **fields: Any) -> Callable[[Path], None]:
    return header_changed(lambda header: first_tensor(header).update(fields), name)


def renamed(to: str, name: str) -> Callable[[Path], None]:
    def change(header: dict[str, Any]) -> None:
        header[to] = header.pop(next(k for k in header if k != "__metadata__"))

    return header_changed(change, name)


def written(file: str, content: bytes, name: str) -> Callable[[Path], None]:
    def spoil(at: Path) -> None:
        (at / file).unlink(missing_ok=True)
        (at / file).write_bytes(content)

    spoil.__name__ = name
    return spoil


def with_header(header: bytes, name: str) -> Callable[[Path], None]:
    return written(FIRST, len(header).to_bytes(8, "little") + header, name)


def in_the_index(file: Any, name: str) -> Callable[[Path], None]:
    def spoil(at: Path) -> None:
        edit_json(at / INDEX, lambda c: c["weight_map"].update(x=file))

    spoil.__name__ = name
    return spoil


def config_changed(name: str, **fields: Any) -> Callable[[Path], None]:
    def spoil(at: Path) -> None:
        edit_json(at / "config.json", lambda c: c.update(fields))

    spoil.__name__ = name
    return spoil


def a_tensor_of_no_bytes_too_many(at: Path) -> None:
    """Allowed by the format, but the index does not know it."""
    edit_header(
        at / FIRST,
        lambda h: h.update(empty={"dtype": "BF16", "shape": [0, 4], "data_offsets": [0, 0]}),
    )


def put(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """In the place of a file, or beside all others, something that is none."""

    def spoil(at: Path) -> None:
        (at / name).unlink(missing_ok=True)
        make(at / name)

    spoil.__name__ = f"{name}_{getattr(make, '__name__', 'special')}"
    return spoil


def link_to(target: str) -> Callable[[Path], None]:
    def link(path: Path) -> None:
        path.symlink_to(target)

    link.__name__ = f"link_to_{target.rsplit('/', 1)[-1]}"
    return link


def a_socket(path: Path) -> None:
    """Bound by its short name: a socket's path has 107 bytes at most."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


SPECIAL: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "a pipe"),
    (Path.mkdir, "a folder"),
    (a_socket, "a socket"),
    (link_to("/dev/zero"), "a device"),
    (link_to("nowhere"), "a link that leads nowhere"),
]


def a_tensor_in_two_files(at: Path) -> None:
    """The second file holds a tensor of the first one's name; the index names the first."""
    name = "model.language_model.embed_tokens.weight"

    def change(header: dict[str, Any]) -> None:
        header[name] = header.pop(next(k for k in header if k != "__metadata__"))

    lost = next(k for k in header_of(at / SECOND) if k != "__metadata__")
    edit_header(at / SECOND, change)
    edit_json(at / INDEX, lambda c: c["weight_map"].pop(lost))


def header_of(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    header: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return header


def a_tensor_the_index_forgot(at: Path) -> None:
    name = "model.language_model.embed_tokens.weight"
    edit_json(at / INDEX, lambda c: c["weight_map"].pop(name))


def pickles_only(at: Path) -> None:
    for file in [*at.glob("*.safetensors"), at / INDEX]:
        file.unlink()
    (at / "pytorch_model.bin").write_bytes(b"PK\3\4")


def pickles_in_the_index(at: Path) -> None:
    (at / "pytorch_model.bin").write_bytes(PICKLE)
    in_the_index("pytorch_model.bin", "")(at)


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (Path("opened-the-pickle"),)  # type: ignore[return-value]


PICKLE = pickle.dumps(Evil())
TWICE = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'


MORE_DEFECTS: list[tuple[Callable[[Path], None], str]] = [
    (
        config_changed("architecture_is_no_list", architectures="Llama"),
        "unknown architecture Llama",
    ),
    (config_changed("architecture_is_a_number", architectures=[7]), "unknown architecture 7"),
    (config_changed("text_config_is_a_list", text_config=[1]), "text_config is a JSON list"),
    (config_changed("quantised_by_name", quantization_config="fp8"), "an unsupported quantisation"),
    (written("config.json", b"\xff\xfe{}", "config_not_utf8"), "config.json is not JSON"),
    (written("config.json", b'{"a": NaN}', "config_with_nan"), "it holds NaN"),
    (written("config.json", b'{"a": 1, "a": 2}', "config_names_twice"), "names 'a' twice"),
    (written("config.json", b"[" * 100_000, "config_nested"), "is nested too deeply"),
    (written(INDEX, b"{}}", "index_not_json"), "model.safetensors.index.json is not JSON"),
    (written(INDEX, b'{"weight_map": []}', "index_map_is_a_list"), "no weight_map"),
    (written(INDEX, b'{"weight_map": {}}', "index_map_is_empty"), "no weight_map"),
    (in_the_index(None, "index_file_is_null"), "would not be streamed: 'None'"),
    (in_the_index(["a"], "index_file_is_a_list"), "would not be streamed"),
    (in_the_index("", "index_file_is_empty"), "a file outside the directory: ''"),
    (in_the_index("a\0.safetensors", "index_file_with_nul"), "a file outside the directory"),
    (in_the_index("..\\a.safetensors", "index_file_with_backslash"), "a file outside"),
    (in_the_index("a/../../b.safetensors", "index_file_climbs"), "a file outside the directory"),
    (in_the_index("sub/a.safetensors", "index_file_in_a_folder"), "would not be streamed"),
    (in_the_index("a" * 5000 + ".safetensors", "index_file_of_5000"), "names an absent file"),
    (pickles_in_the_index, "would not be streamed: 'pytorch_model.bin'"),
    (pickles_only, "only pickles such as 'pytorch_model.bin'"),
    (written(FIRST, PICKLE, "a_pickle_for_safetensors"), "looks like a pickle"),
    (written(FIRST, b"PK\3\4" + bytes(99), "a_zip_for_safetensors"), "looks like a pickle"),
    (written(FIRST, b"GGUF\3\0\0\0" + bytes(99), "a_gguf_for_safetensors"), "looks like GGUF"),
    (written(FIRST, b"version https://git-lfs", "an_lfs_pointer"), "a git-lfs pointer"),
    (written(FIRST, bytes(7), "shorter_than_a_length"), "the file has 7"),
    (written(FIRST, bytes(8), "header_of_no_bytes"), "its header is not JSON"),
    (with_header(b"[]", "header_is_a_list"), "its header holds a JSON list"),
    (with_header(b"null", "header_is_null"), "its header holds a JSON NoneType"),
    (with_header(b'{"a":' * 50_000, "header_nested"), "its header is nested too deeply"),
    (with_header(b'{"\xff": 1}', "header_not_utf8"), "its header is not JSON"),
    (with_header(TWICE, "header_names_twice"), "its header names 'a' twice"),
    (with_header(b'{"a": ' + b"9" * 5000 + b"}", "header_huge_number"), "its header"),
    (with_header(b'{"__metadata__": []}', "metadata_is_a_list"), "__metadata__ is malformed"),
    (with_header(b'{"__metadata__": {"a": 1}}', "metadata_of_numbers"), "__metadata__ is malform"),
    (with_header(b"{}", "header_without_tensors"), "in this file, which does not hold it"),
    (header_changed(lambda h: h.update(x=[]), "entry_is_a_list"), "tensor 'x' is malformed"),
    (header_changed(lambda h: h.update(x=None), "entry_is_null"), "tensor 'x' is malformed"),
    (fields_changed("dtype_is_a_list", dtype=["BF16"]), r"has dtype \['BF16'\]"),
    (fields_changed("dtype_in_lower_case", dtype="bf16"), "has dtype 'bf16'"),
    (fields_changed("shape_negative", shape=[-1, 4]), "is malformed"),
    (fields_changed("shape_of_floats", shape=[1.0, 4]), "is malformed"),
    (fields_changed("shape_of_booleans", shape=[True, 4]), "is malformed"),
    (fields_changed("shape_is_a_string", shape="12"), "is malformed"),
    (fields_changed("shape_overflows", shape=[2**64, 0]), "is malformed"),
    (fields_changed("shape_huge", shape=[2**63, 2**63]), "the header lies about tensor"),
    (fields_changed("shape_empty_dimension", shape=[0, 4]), "the header lies about tensor"),
    (fields_changed("offsets_three", data_offsets=[0, 1, 2]), "is malformed"),
    (fields_changed("offsets_reversed", data_offsets=[8, 0]), "the header lies about tensor"),
    (fields_changed("offsets_negative", data_offsets=[-8, 0]), "is malformed"),
    (renamed("", "name_empty"), "a tensor has the name ''"),
    (renamed("a\nb", "name_of_two_lines"), "a tensor has the name 'a"),
    (renamed("\ud800", "name_half_a_surrogate"), "a tensor has the name"),
    (renamed("n" * 1001, "name_of_1001"), "of 1001 characters"),
    (a_tensor_of_no_bytes_too_many, "'empty' is in this file, but not in the index"),
    (a_tensor_in_two_files, f"the index places it in '{FIRST}'"),
    (a_tensor_the_index_forgot, "is in this file, but not in the index"),
    (put(FIRST, link_to("nowhere")), "is a link that leads nowhere: No such file"),
    (put(FIRST, link_to(FIRST)), "is a link that leads nowhere: Too many levels"),
    (put(FIRST, link_to("/dev/null")), f"{FIRST} is a device"),
    (put(FIRST, Path.mkdir), f"{FIRST} is a folder"),
    (put(FIRST, os.mkfifo), f"{FIRST} is a pipe"),
    (put("config.json", Path.mkdir), "config.json is a folder"),
    (put("config.json", os.mkfifo), "config.json is a pipe"),
    (put(INDEX, os.mkfifo), "index.json is a pipe"),
    (put(INDEX, link_to(INDEX)), "index.json is a link that leads nowhere"),
    *(
        (put(name, make), f"{name} is {kind}")
        for name in ("z.safetensors", "tokenizer.json", "chat_template.jinja")
        for make, kind in SPECIAL
    ),
]
