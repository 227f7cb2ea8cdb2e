"""Everything a checkpoint can have wrong is one clear error, exit code 2."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.checkpoint import INDEX, SINGLE_FILE, Checkpoint
from harness.cli import main
from harness.errors import BadInput
from harness.experts import reference_parts
from harness.places.directory import LocalFile
from harness.safetensors_file import read_entries

FIRST = "model-00001-of-00004.safetensors"
SECOND = "model-00002-of-00004.safetensors"


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a safetensors header; the data after it stays."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :])


def no_directory(at: Path) -> None:
    shutil.rmtree(at)


def a_file_instead(at: Path) -> None:
    shutil.rmtree(at)
    at.touch()


def no_config(at: Path) -> None:
    (at / "config.json").unlink()


def config_not_json(at: Path) -> None:
    (at / "config.json").write_text("{")


def config_is_a_list(at: Path) -> None:
    (at / "config.json").write_text("[]")


def unknown_architecture(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c.update(architectures=["LlamaForCausalLM"]))


def quantised(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c.update(quantization_config={"quant_method": "fp8"}))


def no_sizes(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c["text_config"].pop("num_experts"))


def fewer_experts_announced(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c["text_config"].update(num_experts=7))


def more_layers_announced(at: Path) -> None:
    edit_json(at / "config.json", lambda c: c["text_config"].update(num_hidden_layers=3))


def no_index(at: Path) -> None:
    (at / INDEX).unlink()


def index_without_map(at: Path) -> None:
    (at / INDEX).write_text("{}")


def absent_file(at: Path) -> None:
    (at / FIRST).unlink()


def outside(at: Path) -> None:
    edit_json(at / INDEX, lambda c: c["weight_map"].update(x="../other.safetensors"))


def absolute(at: Path) -> None:
    edit_json(at / INDEX, lambda c: c["weight_map"].update(x="/etc/passwd"))


def tensor_not_in_file(at: Path) -> None:
    edit_json(at / INDEX, lambda c: c["weight_map"].update(x=FIRST))


def truncated(at: Path) -> None:
    (at / FIRST).write_bytes((at / FIRST).read_bytes()[:-100])


def too_long(at: Path) -> None:
    (at / FIRST).write_bytes((at / FIRST).read_bytes() + b"\0")


def empty_file(at: Path) -> None:
    (at / FIRST).write_bytes(b"")


def header_longer_than_file(at: Path) -> None:
    raw = (at / FIRST).read_bytes()
    (at / FIRST).write_bytes((1 << 40).to_bytes(8, "little") + raw[8:])


def header_not_json(at: Path) -> None:
    raw = (at / FIRST).read_bytes()
    (at / FIRST).write_bytes(raw[:8] + b"!" + raw[9:])


def header_lies_about_shape(at: Path) -> None:
    edit_header(at / FIRST, lambda h: next(iter(list(h.values())[1:])).update(shape=[3, 3]))


def header_overlaps(at: Path) -> None:
    def overlap(header: dict[str, Any]) -> None:
        tensors = [fields for name, fields in header.items() if name != "__metadata__"]
        last = tensors[-1]["data_offsets"]
        tensors[-1]["data_offsets"] = [last[0] - 2, last[1] - 2]

    edit_header(at / FIRST, overlap)


def header_entry_malformed(at: Path) -> None:
    edit_header(at / FIRST, lambda h: h.update(x={"dtype": "BF16"}))


def header_dtype_unknown(at: Path) -> None:
    edit_header(at / FIRST, lambda h: list(h.values())[1].update(dtype="F4"))


def transformers_layout(at: Path) -> None:
    """[E, 2F, D], as transformers 5 saves Qwen3-VL-MoE: vLLM 0.26 loads it without a word."""
    name = "model.language_model.layers.0.mlp.experts.gate_up_proj"
    edit_header(at / FIRST, lambda h: h[name].update(shape=[*h[name]["shape"][:1], 96, 128]))


def stray_expert(at: Path) -> None:
    def rename(header: dict[str, Any]) -> None:
        header["a.experts.b"] = header.pop("model.language_model.embed_tokens.weight")

    edit_header(at / FIRST, rename)
    edit_json(at / INDEX, lambda c: c["weight_map"].update({"a.experts.b": FIRST}))
    edit_json(at / INDEX, lambda c: c["weight_map"].pop("model.language_model.embed_tokens.weight"))


DEFECTS: list[tuple[Callable[[Path], None], str]] = [
    (no_directory, "no such directory"),
    (a_file_instead, "not a directory"),
    (no_config, "no config.json"),
    (config_not_json, "config.json is not JSON"),
    (config_is_a_list, "config.json holds a JSON list"),
    (unknown_architecture, "unknown architecture LlamaForCausalLM"),
    (quantised, "a quantised checkpoint"),
    (no_sizes, "lacks the experts' sizes"),
    (fewer_experts_announced, r"gate_up_proj' is BF16 \[8, 128, 96\]"),
    (more_layers_announced, r"layers with experts in the files: \[0, 1\]"),
    (no_index, "no index and no single weight file"),
    (index_without_map, "no weight_map"),
    (absent_file, "absent file: 'model-00001-of-00004.safetensors'"),
    (outside, "a file outside the directory: '../other.safetensors'"),
    (absolute, "a file outside the directory: '/etc/passwd'"),
    (tensor_not_in_file, "its file does not hold it"),
    (truncated, "the file is truncated"),
    (too_long, "the file is too long"),
    (empty_file, "the file has 0"),
    (header_longer_than_file, "announce a header of 1099511627776 bytes"),
    (header_not_json, "its header is not JSON"),
    (header_lies_about_shape, "the header lies about tensor"),
    (header_overlaps, "begins at byte"),
    (header_entry_malformed, "entry of tensor 'x' is malformed"),
    (header_dtype_unknown, "has dtype 'F4'"),
    (transformers_layout, r"is BF16 \[8, 96, 128\].*transformers saves other layouts"),
    (stray_expert, "would not be compared, the first is 'a.experts.b'"),
]


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


def a_link_to_nowhere(at: Path) -> None:
    (at / FIRST).unlink()
    (at / FIRST).symlink_to(at / "nowhere")


def a_link_to_itself(at: Path) -> None:
    (at / FIRST).unlink()
    (at / FIRST).symlink_to(at / FIRST)


def a_folder_for_a_file(at: Path) -> None:
    (at / FIRST).unlink()
    (at / FIRST).mkdir()


def a_pipe_for_a_file(at: Path) -> None:
    (at / FIRST).unlink()
    os.mkfifo(at / FIRST)


def a_folder_for_config(at: Path) -> None:
    (at / "config.json").unlink()
    (at / "config.json").mkdir()


def consolidated_beside(at: Path) -> None:
    shutil.copy(at / FIRST, at / "consolidated.safetensors")


def a_file_of_an_older_download(at: Path) -> None:
    shutil.copy(at / FIRST, at / "model-00001-of-00009.safetensors")


def a_single_file_beside_the_sharded(at: Path) -> None:
    shutil.copy(at / FIRST, at / SINGLE_FILE)


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

MORE_DEFECTS = [
    (
        config_changed("architecture_is_no_list", architectures="Llama"),
        "unknown architecture Llama",
    ),
    (config_changed("architecture_is_a_number", architectures=[7]), "unknown architecture 7"),
    (config_changed("text_config_is_a_list", text_config=[1]), "text_config is a JSON list"),
    (config_changed("quantised_by_name", quantization_config="fp8"), "a quantised checkpoint"),
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
    (with_header(b"{}", "header_without_tensors"), "its file does not hold it"),
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
    (a_tensor_of_no_bytes_too_many, "'empty' stands in this file, not in the index"),
    (a_tensor_in_two_files, f"the index places it in '{FIRST}'"),
    (a_tensor_the_index_forgot, "stands in this file, not in the index"),
    (a_link_to_nowhere, "names an absent file"),
    (a_link_to_itself, "names an absent file"),
    (a_folder_for_a_file, "names an absent file"),
    (a_pipe_for_a_file, "names an absent file"),
    (a_folder_for_config, "no config.json"),
    (consolidated_beside, "the index does not name: 'consolidated.safetensors'"),
    (a_file_of_an_older_download, "the index does not name: 'model-00001-of-00009"),
    (a_single_file_beside_the_sharded, "the index does not name: 'model.safetensors'"),
]
DEFECTS += MORE_DEFECTS


@pytest.fixture
def copy(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoints["qwen3-vl-moe"], tmp_path / "checkpoint"))


@pytest.mark.parametrize(("spoil", "match"), DEFECTS, ids=[spoil.__name__ for spoil, _ in DEFECTS])
def test_defect(copy: Path, spoil: Callable[[Path], None], match: str) -> None:
    spoil(copy)
    with pytest.raises(BadInput, match=match) as raised:
        reference_parts(Checkpoint(copy))
    assert str(copy) in raised.value.where
    assert raised.value.expected
    assert raised.value.hint
    result = CliRunner().invoke(main, ["verify", str(copy)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not Path("opened-the-pickle").exists()


def test_an_mtp_layer_that_config_announces_must_be_there(
    tiny_checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    at = Path(shutil.copytree(tiny_checkpoints["qwen3.5-moe"], tmp_path / "c"))
    edit_json(at / "config.json", lambda c: c["text_config"].update(mtp_num_hidden_layers=1))
    with pytest.raises(BadInput, match="mtp layers with experts in the files: none"):
        reference_parts(Checkpoint(at))


def test_a_single_file_needs_no_index(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    from harness.synthetic.writer import write_checkpoint

    at = write_checkpoint("qwen3.5-moe", tmp_path / "c", files=1).path
    (at / INDEX).unlink()
    (at / "model-00001-of-00001.safetensors").rename(at / SINGLE_FILE)
    single, indexed = Checkpoint(at), Checkpoint(tiny_checkpoints["qwen3.5-moe"])
    assert set(single.entries) == set(indexed.entries)


def test_files_may_be_links(tiny_checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The hub's cache keeps links to files outside the directory."""
    for file in tiny_checkpoints["qwen3.5-moe"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert len(Checkpoint(tmp_path).entries) == 69


def test_a_file_nobody_may_read(
    tiny_checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests may run as a user who may read everything."""

    def denied(path: Path, *args: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(BadInput, match="cannot be read: Permission denied"):
        Checkpoint(tiny_checkpoints["qwen3.5-moe"])


def test_an_empty_tensor_is_read(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"BF16","shape":[2,0,3],"data_offsets":[0,0]}}'
    (tmp_path / "f").write_bytes(len(header).to_bytes(8, "little") + header)
    (entry,) = read_entries(LocalFile(tmp_path / "f")).values()
    assert entry.bits().shape == (2, 0, 3)
    assert entry.bits((1,)).shape == (0, 3)


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


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    read_or_refuse(content)


@settings(max_examples=300, deadline=None)
@given(_HEADERS, st.binary(max_size=64))
def test_any_header_is_read_or_refused(header: Any, data: bytes) -> None:
    encoded = json.dumps(header).encode()
    read_or_refuse(len(encoded).to_bytes(8, "little") + encoded + data)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_header_with_some_bytes_changed_is_read_or_refused(data: st.DataObject) -> None:
    header = bytearray(b'{"a":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}}')
    for _ in range(data.draw(st.integers(1, 3))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(len(header).to_bytes(8, "little") + bytes(header) + bytes(4))
