"""Whatever bytes stand in a header, it is read or refused, never anything else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.base.errors import BadInput
from harness.checkpoint.safetensors_file import read_entries
from harness.checkpoint.stores.directory import LocalFile

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
_FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["BF16", "F32", "U8", "F4"]) | _JSON,
        "shape": st.lists(st.integers(-1, 9) | st.integers(), max_size=3) | _JSON,
        "data_offsets": st.lists(st.integers(-1, 99), min_size=2, max_size=2) | _JSON,
    }
)
_HEADERS = st.dictionaries(st.text(max_size=4), _FIELDS | _JSON, max_size=3) | _JSON


def read_or_refuse(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            entries = read_entries(LocalFile(Path(file.name)))
        except BadInput as error:
            str(error).encode()
            return
        length = sum(entry.bits().nbytes for entry in entries.values())
        assert length == len(content) - 8 - int.from_bytes(content[:8], "little")


@pytest.mark.slow
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    read_or_refuse(content)


@pytest.mark.slow
@given(_HEADERS, st.binary(max_size=64))
def test_any_header_is_read_or_refused(header: Any, data: bytes) -> None:
    encoded = json.dumps(header).encode()
    read_or_refuse(len(encoded).to_bytes(8, "little") + encoded + data)


@pytest.mark.slow
@given(st.data())
def test_a_header_with_some_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    header = bytearray(b'{"a":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}}')
    for _ in range(data.draw(st.integers(1, 3))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(len(header).to_bytes(8, "little") + bytes(header) + bytes(4))
