"""The GGUF container: equal to the `gguf` package on good files, an error message on bad ones."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from galley.errors import ModelError
from galley.loader.ggml_types import GGML_TYPES
from galley.loader.gguf import GGUFFile
from galley.loader.source import default_model
from tests.loader.gguf_files import plain_arrays, tiny_tensors, write_gguf


@pytest.fixture(scope="module")
def reader() -> gguf.GGUFReader:
    with plain_arrays():
        return gguf.GGUFReader(default_model())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    words = ["<unk>", "a", "b", "ab"]
    write_gguf(path, keys={"tokenizer.ggml.tokens": words, "general.alignment": 64})
    return path.read_bytes()


def test_all_keys_of_the_default_model_are_read_as_the_gguf_package_reads_them(
    reader: gguf.GGUFReader,
) -> None:
    file = GGUFFile(default_model())
    theirs = {k: f for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert file.keys == list(theirs)
    for key, field in theirs.items():
        ours = file.get(key)
        ours = ours.tolist() if isinstance(ours, np.ndarray) else ours
        assert ours == field.contents(), key


def test_all_tensors_of_the_default_model_hold_the_same_bytes(reader: gguf.GGUFReader) -> None:
    file = GGUFFile(default_model())
    assert list(file.tensors) == [tensor.name for tensor in reader.tensors]
    for theirs in reader.tensors:
        info = file.tensors[theirs.name]
        assert info.shape == tuple(int(n) for n in theirs.shape[::-1])
        assert np.array_equal(file.data(info), theirs.data)


def test_the_default_header_with_its_vocabulary_is_read_fast() -> None:
    GGUFFile(default_model())
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        file = GGUFFile(default_model())
        assert len(file.get("tokenizer.ggml.tokens")) == 49152
        assert len(file.get("tokenizer.ggml.merges")) == 48900
        best = min(best, time.process_time() - start)
    assert best < 0.6


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    for kind, sizes in gguf.constants.GGML_QUANT_SIZES.items():
        known = GGML_TYPES[int(kind)]
        assert (known.block, known.block_bytes) == sizes
        assert known.dense is not None or known.name == kind.name


def test_version_two_and_another_alignment(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "v2.gguf"
    path.write_bytes(tiny[:4] + struct.pack("<I", 2) + tiny[8:])
    file = GGUFFile(path)
    assert file.alignment == 64
    assert file.data_start % 64 == 0
    for name, values in tiny_tensors().items():
        assert np.array_equal(file.data(file.tensors[name]), values)
    assert file.get("tokenizer.ggml.tokens") == ["<unk>", "a", "b", "ab"]
    assert file.get("no.such.key", 7) == 7


def test_data_is_mapped_and_read_only(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny)
    file = GGUFFile(path)
    data = file.data(file.tensors["output_norm.weight"])
    assert not data.flags.writeable
    assert not data.flags.owndata


# ---------------------------------------------------------------------------- broken files


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _header(num_tensors: int = 0, num_keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys)


def _tensor(
    name: bytes = b"t", dims: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    return (
        _string(name)
        + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        + struct.pack("<IQ", kind, offset)
    )


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _string(name) + struct.pack("<I", kind) + value


_U32_KEY = _key(b"k", 4, struct.pack("<I", 1))
_HUGE = 2**64 - 1

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "not gguf": (b"GGML" + bytes(100), "not a GGUF file"),
    "only magic": (b"GGUF", "truncated"),
    "version 1": (_header(version=1) + bytes(64), "version 1"),
    "version 99": (_header(version=99) + bytes(64), "version 99"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "absurd tensor count": (_header(num_tensors=_HUGE) + bytes(64), "tensors"),
    "absurd key count": (_header(num_keys=2**40) + bytes(64), "keys"),
    "key name beyond the end": (
        _header(num_keys=1) + struct.pack("<Q", 2000) + bytes(9),
        "truncated",
    ),
    "absurd key name": (_header(num_keys=1) + struct.pack("<Q", _HUGE) + bytes(9), "bytes long"),
    "key name not text": (_header(num_keys=1) + _key(b"\xff\xfe", 4, bytes(4)), "UTF-8"),
    "unknown value type": (_header(num_keys=1) + _key(b"k", 77, bytes(8)), "value type 77"),
    "value beyond the end": (_header(num_keys=1) + _key(b"key", 10, bytes(2)), "truncated"),
    "string beyond the end": (
        _header(num_keys=1) + _key(b"k", 8, struct.pack("<Q", _HUGE) + b"x"),
        "truncated",
    ),
    "array of arrays": (
        _header(num_keys=1) + _key(b"k", 9, struct.pack("<IQ", 9, 1) + bytes(12)),
        "value type 9",
    ),
    "absurd array": (
        _header(num_keys=1) + _key(b"k", 9, struct.pack("<IQ", 4, 2**62)),
        "claims",
    ),
    "absurd string array": (
        _header(num_keys=1) + _key(b"k", 9, struct.pack("<IQ", 8, 2**60)),
        "claims",
    ),
    "string array cut off": (
        _header(num_keys=1) + _key(b"k", 9, struct.pack("<IQ", 8, 2) + _string(b"abcdefgh")),
        "truncated",
    ),
    "string in array too long": (
        _header(num_keys=1) + _key(b"k", 9, struct.pack("<IQ", 8, 1) + struct.pack("<Q", _HUGE)),
        "truncated",
    ),
    "key twice": (_header(num_keys=2) + _U32_KEY * 2, "twice"),
    "alignment zero": (
        _header(num_keys=1) + _key(b"general.alignment", 4, bytes(4)),
        "power of two",
    ),
    "alignment odd": (
        _header(num_keys=1) + _key(b"general.alignment", 4, struct.pack("<I", 24)),
        "power of two",
    ),
    "alignment is text": (
        _header(num_keys=1) + _key(b"general.alignment", 8, _string(b"32")),
        "power of two",
    ),
    "unknown tensor type": (_header(1) + _tensor(kind=99) + bytes(999), "type number 99"),
    "removed tensor type": (_header(1) + _tensor(kind=4) + bytes(999), "type number 4"),
    "no dimensions": (_header(1) + _tensor(dims=()) + bytes(999), "0 dimensions"),
    "absurd dimensions": (_header(1) + _string(b"t") + struct.pack("<I", 2**31) + bytes(99), "dim"),
    "empty tensor": (_header(1) + _tensor(dims=(32, 0)) + bytes(999), "empty"),
    "absurd shape": (_header(1) + _tensor(dims=(2**63, 2**63)) + bytes(999), "truncated"),
    "tensor beyond the end": (_header(1) + _tensor(dims=(4096,)) + bytes(999), "truncated"),
    "offset beyond the end": (_header(1) + _tensor(offset=2**50) + bytes(999), "truncated"),
    "offset not aligned": (_header(1) + _tensor(offset=4) + bytes(999), "multiple of 32"),
    "ragged blocks": (_header(1) + _tensor(dims=(33,), kind=2) + bytes(999), "blocks"),
    "tensor twice": (_header(2) + _tensor() + _tensor(offset=128) + bytes(999), "twice"),
    "overlap": (_header(2) + _tensor(b"a") + _tensor(b"b", offset=96) + bytes(999), "overlap"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(tmp_path: Path, case: str) -> None:
    raw, says = BROKEN[case]
    path = tmp_path / "broken.gguf"
    path.write_bytes(raw)
    with pytest.raises(ModelError, match=says) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_an_error(tmp_path: Path, tiny: bytes) -> None:
    path = tmp_path / "short.gguf"
    header = GGUFFile(_written(path, tiny)).data_start
    for length in [*range(0, header, 37), header, (header + len(tiny)) // 2, len(tiny) - 1]:
        with pytest.raises(ModelError):
            GGUFFile(_written(path, tiny[:length]))


def _written(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def _read_everything(path: Path) -> ModelError | None:
    try:
        file = GGUFFile(path)
        for key in file.keys:
            file.get(key)
        for info in file.tensors.values():
            file.data(info).tobytes()
    except ModelError as error:
        return error
    return None


@st.composite
def _mutations(draw: st.DrawFn) -> list[tuple[float, bytes]]:
    """Places (as a share of the header) and the bytes put there."""
    values = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from([b"\xff" * 8, bytes(8), b"\xff\xff\xff\x7f", struct.pack("<Q", 2**63)]),
    )
    return draw(st.lists(st.tuples(st.floats(0, 1), values), min_size=1, max_size=4))


@settings(max_examples=300)
@given(changes=_mutations(), cut=st.floats(0.2, 1))
def test_a_damaged_header_is_read_or_refused_in_bounded_time(
    tmp_path: Path, tiny: bytes, changes: list[tuple[float, bytes]], cut: float
) -> None:
    raw = bytearray(tiny)
    for place, value in changes:
        at = int(place * 1200)
        raw[at : at + len(value)] = value
    path = _written(tmp_path / "damaged.gguf", bytes(raw[: int(len(raw) * cut)]))
    error = _read_everything(path)
    assert error is None or str(path) in str(error)


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: None])
def test_a_directory_or_nothing_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "model.gguf"
    make(path)
    with pytest.raises(ModelError, match="cannot be read"):
        GGUFFile(path)
