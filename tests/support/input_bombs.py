"""Checkpoints that are small on disk and large in memory, or slow to refuse.

``python -m tests.support.input_bombs DIR`` reads the checkpoint there as ``harness verify`` does
before a load, and prints the seconds of processor time and the bytes of memory that took.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness.base.errors import BadInput
from harness.checkpoint.checkpoint import INDEX
from harness.devices.parameter_layout import sizes_of
from harness.families.experts import reference_parts
from harness.families.model_checkpoint import ModelCheckpoint
from tests.support.spoiling import FIRST

Make = Callable[[], bytes]


def repeated(before: bytes, item: bytes, times: int, after: bytes) -> Make:
    return lambda: before + b",".join([item] * times) + after


def numbered(before: bytes, item: str, times: int, after: bytes) -> Make:
    return lambda: before + ",".join(item % n for n in range(times)).encode() + after


def empty_tensors(count: int) -> Make:
    return numbered(b"{", '"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}', count, b"}")


_ONE = b'{"a":{"dtype":"U8","data_offsets":[0,0],"shape":['

#: JSON by name: of a header, of an index, of config.json.
HEADERS: dict[str, Make] = {
    "a shape of a million entries": repeated(_ONE, b"9223372036854775807", 10**6, b"]}}"),
    "a shape of three million zeros": repeated(_ONE, b"0", 3 * 10**6, b"]}}"),
    "a million offsets": repeated(b'{"a":{"dtype":"U8","shape":[],"data_offsets":[', b"0", 10**6,
                                  b"]}}"),
    "the same name last of 200 000": lambda: empty_tensors(200_000)()[:-1] + b',"t7":{}}',
    "every name twice": lambda: b"{" + b",".join([empty_tensors(90_000)()[1:-1]] * 2) + b"}",
    "as many tensors as there may be": empty_tensors(200_000),
    "a million tensors": empty_tensors(10**6),
    "ten million lists": repeated(b'{"a":[', b"[]", 10**7, b"]}"),
    "two million objects": repeated(b'{"a":[', b'{"":0}', 10**6, b"]}"),
    "metadata of a million": numbered(b'{"__metadata__":{', '"%d":""', 10**6, b"}}"),
    "a text of 60 MiB": lambda: b'{"a":"' + b"x" * 60 * 2**20 + '\U0001f600"}'.encode(),
    "99 MB of spaces": lambda: b"{" + b" " * 99_000_000 + b"}",
    "a number of a million digits": lambda: b'{"a":' + b"9" * 10**6 + b"}",
    "nested a million deep": lambda: b'{"a":' + b"[" * 10**6,
    "an entry nested 900 deep": lambda: b'{"a":' + b"[" * 900 + b"]" * 900 + b"}",
}  # fmt: skip
INDICES: dict[str, Make] = {
    "a million tensors": numbered(b'{"weight_map":{', f'"%d":"{FIRST}"', 10**6, b"}}"),
    "200 000 files": numbered(b'{"weight_map":{', '"%d":"%%d.safetensors"', 200_000, b"}}"),
    "a name of 50 MB": lambda: b'{"weight_map":{"a":"' + b"x" * 50_000_000 + b'"}}',
    "200 MB": lambda: b'{"weight_map":"' + b"x" * 200_000_000 + b'"}',
    "ten million lists": repeated(b'{"weight_map":[', b"[]", 10**7, b"]}"),
}
CONFIGS: dict[str, Make] = {
    "a million architectures": repeated(b'{"architectures":[', b'"A"', 10**6, b"]}"),
    "an architecture of 50 MB": lambda: b'{"architectures":["' + b"A" * 50_000_000 + b'"]}',
    "an architecture nested 900 deep": lambda: b'{"architectures":' + b"[" * 900 + b"]" * 900
    + b"}",
    "200 MB": lambda: b'{"architectures":"' + b"x" * 200_000_000 + b'"}',
}  # fmt: skip


def bombs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    for kind, rows in (("header", HEADERS), ("index", INDICES), ("config", CONFIGS)):
        for name, make in rows.items():
            yield f"{kind}: {name}", _writer(kind, make)


def _writer(kind: str, make: Make) -> Callable[[Path], None]:
    def write(at: Path) -> None:
        content = make()
        if kind == "header":
            (at / FIRST).write_bytes(len(content).to_bytes(8, "little") + content)
        else:
            (at / (INDEX if kind == "index" else "config.json")).write_bytes(content)

    return write


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(path: str) -> None:
    before, began = _peak(), time.process_time()
    told = "accepted"
    try:
        checkpoint = ModelCheckpoint(path)
        reference_parts(checkpoint)
        sizes_of(checkpoint.text, checkpoint.config)
    except BadInput as error:
        told = str(error)
    seconds, peak = time.process_time() - began, _peak() - before
    print(json.dumps({"seconds": seconds, "bytes": peak, "told": told}))


if __name__ == "__main__":
    main(sys.argv[1])
