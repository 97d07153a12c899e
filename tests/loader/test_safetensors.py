"""Safetensors: files of the library are read without it; broken files are errors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from galley.errors import ModelError
from galley.loader.safetensors import INDEX, SafetensorsCheckpoint, SafetensorsFile

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


def _directory(path: Path, files: dict[str, dict[str, torch.Tensor]]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    for name, tensors in files.items():
        save_file(tensors, path / name)
    return path


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_read_as_torch_wrote_it(tmp_path: Path, name: str) -> None:
    values = (torch.arange(12).reshape(3, 4) - 3).to(DTYPES[name])
    save_file({"w": values}, tmp_path / "m.safetensors")
    raw = SafetensorsFile(tmp_path / "m.safetensors").tensor("w")
    assert (raw.name, raw.shape, raw.dtype, raw.row_order) == ("w", (3, 4), name, None)
    assert np.array_equal(raw.data.astype(np.float64), values.double().numpy())


def test_data_is_mapped_and_scalars_and_empty_tensors_are_fine(tmp_path: Path) -> None:
    tensors = {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4), "w": torch.ones(2)}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    file = SafetensorsFile(tmp_path / "m.safetensors")
    assert set(file.names()) == set(tensors)
    assert file.tensor("scalar").data == 3.0
    assert file.tensor("empty").shape == (0, 4)
    assert not file.tensor("w").data.flags.owndata


def test_bfloat16_is_ml_dtypes(tmp_path: Path) -> None:
    save_file({"w": torch.ones(4, dtype=torch.bfloat16)}, tmp_path / "m.safetensors")
    raw = SafetensorsFile(tmp_path / "m.safetensors").tensor("w")
    assert raw.data.dtype == ml_dtypes.bfloat16


def test_four_and_eight_bit_floats(tmp_path: Path) -> None:
    entries = {
        "four": {"dtype": "F4", "shape": [2, 6], "data_offsets": [0, 6]},
        "power": {"dtype": "F8_E8M0", "shape": [3], "data_offsets": [6, 9]},
    }
    data = bytes([1, 2, 3, 4, 5, 6, 126, 127, 128])
    (tmp_path / "m.safetensors").write_bytes(_file(entries, data))
    file = SafetensorsFile(tmp_path / "m.safetensors")
    four, power = file.tensor("four"), file.tensor("power")
    assert (four.dtype, four.shape) == ("float4_e2m1fn", (2, 6))
    assert four.data.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert power.dtype == "float8_e8m0fnu"
    assert power.data.astype(np.float32).tolist() == [0.5, 1, 2]


def test_a_sharded_directory_follows_its_index(tmp_path: Path) -> None:
    path = _directory(
        tmp_path / "m",
        {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"y": torch.zeros(3)}},
    )
    # Not in the index, so not part of the checkpoint.
    save_file({"z": torch.ones(1)}, path / "consolidated.safetensors")
    (path / INDEX).write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}})
    )
    checkpoint = SafetensorsCheckpoint(path)
    assert sorted(checkpoint.names()) == ["x", "y"]
    assert checkpoint.tensor("y").shape == (3,)
    assert checkpoint.model_info.hf_config["hidden_size"] == 8
    with pytest.raises(ModelError, match="no tensor z"):
        checkpoint.tensor("z")


def test_several_files_without_an_index_are_one_checkpoint(tmp_path: Path) -> None:
    path = _directory(
        tmp_path / "m",
        {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"y": torch.zeros(3)}},
    )
    assert sorted(SafetensorsCheckpoint(path).names()) == ["x", "y"]


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    files = {"a.safetensors": {"x": torch.ones(2)}, "b.safetensors": {"x": torch.zeros(3)}}
    with pytest.raises(ModelError, match=r"tensor x is in a\.safetensors too"):
        SafetensorsCheckpoint(_directory(tmp_path / "m", files))


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        SafetensorsCheckpoint(_directory(tmp_path / "m", {}))


BAD_INDEXES: dict[str, tuple[Any, str]] = {
    "not json": ("{", "not valid JSON"),
    "a list": ("[]", "not a JSON object"),
    "no map": ("{}", "weight_map"),
    "map is a list": ('{"weight_map": ["x"]}', "weight_map"),
    "path outside": ('{"weight_map": {"x": "../a.safetensors"}}', r"\.\./a\.safetensors"),
    "file is a number": ('{"weight_map": {"x": 3}}', "tensor x"),
    "missing file": ('{"weight_map": {"x": "c.safetensors"}}', "cannot be read"),
    "missing tensor": ('{"weight_map": {"q": "a.safetensors"}}', "should hold q"),
}


@pytest.mark.parametrize("case", BAD_INDEXES)
def test_a_bad_index_is_an_error(tmp_path: Path, case: str) -> None:
    text, says = BAD_INDEXES[case]
    path = _directory(tmp_path / "m", {"a.safetensors": {"x": torch.ones(2)}})
    (path / INDEX).write_text(text)
    with pytest.raises(ModelError, match=says):
        SafetensorsCheckpoint(path)


# ---------------------------------------------------------------------------- broken files


def _file(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "short": (b"\x01\x00", "truncated"),
    "zero header": (struct.pack("<Q", 0), "truncated"),
    "header beyond the end": (_file({}, length=1000), "truncated"),
    "absurd header": (_file({}, length=2**64 - 1), "truncated"),
    "not json": (_file(b"{nonsense}"), "not valid JSON"),
    "not utf-8": (_file(b'{"\xff": 1}'), "not valid JSON"),
    "deep json": (_file(b"[" * 100_000), "not valid JSON"),
    "a list": (_file([1, 2]), "not a JSON object"),
    "name twice": (_file(b'{"a":1,"a":2}'), "twice"),
    "entry is a number": (_file({"w": 3}, bytes(8)), "not an object"),
    "bad dtype": (_file({"w": _entry(dtype="F5")}, bytes(8)), "unknown dtype 'F5'"),
    "half a byte": (_file({"w": _entry("F4", (5, 3))}, bytes(8)), "rows that are not whole bytes"),
    "fours of another size": (_file({"w": _entry("F4", (4, 2))}, bytes(8)), "takes 4 bytes"),
    "dtype is a list": (_file({"w": _entry(dtype=[])}, bytes(8)), "unknown dtype"),
    "negative shape": (_file({"w": _entry(shape=(-2,))}, bytes(8)), "list of sizes"),
    "shape is text": (_file({"w": _entry(shape="2")}, bytes(8)), "list of sizes"),
    "true in shape": (_file({"w": _entry(shape=(True,))}, bytes(8)), "list of sizes"),
    "absurd shape": (_file({"w": _entry(shape=(2**50,) * 8)}, bytes(8)), "takes"),
    "nine dimensions": (_file({"w": _entry(shape=(1,) * 9)}, bytes(8)), "list of sizes"),
    "no offsets": (_file({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)), "data_offsets"),
    "offsets turned": (_file({"w": _entry(offsets=(8, 0))}, bytes(8)), "begin, end"),
    "size mismatch": (_file({"w": _entry(shape=(3,))}, bytes(8)), "takes 12 bytes"),
    "beyond the end": (_file({"w": _entry()}, bytes(4)), "truncated"),
    "bytes left over": (_file({"w": _entry()}, bytes(9)), "truncated or damaged"),
    "hole": (_file({"w": _entry(offsets=(4, 12))}, bytes(12)), "hole"),
    "overlap": (_file({"v": _entry(), "w": _entry()}, bytes(8)), "overlap"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, case: str) -> None:
    raw, says = BROKEN[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=says) as caught:
        SafetensorsFile(path)
    assert str(path) in str(caught.value)


def _read_everything(path: Path) -> ModelError | None:
    try:
        file = SafetensorsFile(path)
        for name in file.names():
            file.tensor(name).data.tobytes()
    except ModelError as error:
        return error
    return None


@settings(max_examples=300)
@given(
    place=st.integers(0, 400),
    put=st.one_of(st.binary(min_size=1, max_size=6), st.sampled_from([b"9" * 30, b"[" * 50])),
    cut=st.integers(0, 600),
)
def test_a_damaged_file_is_read_or_refused_in_bounded_time(
    tmp_path: Path, place: int, put: bytes, cut: int
) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(4, 3), "b": torch.zeros(7), "c": torch.ones(2)}, path)
    raw = bytearray(path.read_bytes())
    raw[place : place + len(put)] = put
    path.write_bytes(bytes(raw[: len(raw) - cut]) if cut < 100 else bytes(raw))
    error = _read_everything(path)
    assert error is None or str(path) in str(error)
