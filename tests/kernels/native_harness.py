"""A table of slots and a program of a few native ops, for tests of single ops."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from galley.kernels import _native
from galley.kernels.cpu import bind_column

_LIBC = ctypes.CDLL(None)

F32, BF16, Q8, Q8_ROW, Q16 = _native.Kind
BEST_ISA = _native.isa()
_ALL_ISAS = ["generic", "avx2", "avx512", "amx"]
#: Those of linear layers and attention; other ops have no variant for tiles.
TILE_ISAS = _ALL_ISAS[: _ALL_ISAS.index(BEST_ISA) + 1]
ISAS = [isa for isa in TILE_ISAS if isa != "amx"]


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Ops made inside use that instruction set."""
    before = os.environ.get("GALLEY_CPU_ISA")
    os.environ["GALLEY_CPU_ISA"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["GALLEY_CPU_ISA"]
        else:
            os.environ["GALLEY_CPU_ISA"] = before


def aligned(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Zeros at a multiple of 64 bytes, as an executable's arena gives them; in a block of exactly
    that size, so that a sanitizer detects any access beyond it."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size == 0:
        return np.zeros(shape, dtype)
    address = ctypes.c_void_p()
    assert (
        _LIBC.posix_memalign(ctypes.byref(address), ctypes.c_size_t(64), ctypes.c_size_t(size)) == 0
    )
    assert address.value is not None
    raw = (ctypes.c_uint8 * size).from_address(address.value)
    weakref.finalize(raw, _LIBC.free, address)
    ctypes.memset(address, 0, size)
    return np.frombuffer(raw, dtype).reshape(shape)


def kind_dtype(kind: int) -> Any:
    return {F32: np.float32, BF16: ml_dtypes.bfloat16}[kind]


class Native:
    """Slots with their tokens and blocks, and a program over them.

    Block tables are a random permutation, so that no op gets by with contiguous blocks.
    """

    def __init__(
        self,
        slots: int = 1,
        max_len: int = 64,
        block_size: int = 16,
        threads: int = 1,
        sampling: Mapping[str, NDArray[Any]] | None = None,
        vocab: int = 100,
        seed: int = 0,
        dims: Mapping[str, int] | None = None,
    ) -> None:
        rng = np.random.default_rng(seed)
        blocks = -(-max_len // block_size)
        self.num_blocks = slots * blocks + 1
        self.block_size = block_size
        self.history = rng.integers(0, vocab, (slots, max_len), np.int32)
        self.num_tokens = np.full(slots, max_len, np.int32)
        self.num_prompt = np.full(slots, max_len, np.int32)
        self.num_computed = np.zeros(slots, np.int32)
        ids = rng.permutation(np.arange(1, self.num_blocks, dtype=np.int32))
        self.block_table = np.ascontiguousarray(ids.reshape(slots, blocks))
        self.sampling = dict(sampling or {})
        self.pool = _native.Pool(threads)
        limits = {"tokens": slots * max_len, "sequences": slots, "logits": slots * max_len}
        self.program = _native.Program(self.pool, slots, {**limits, **(dims or {})})
        self.keep: list[Any] = []
        self.bind(
            history=self.history,
            num_tokens=self.num_tokens,
            num_prompt=self.num_prompt,
            num_computed=self.num_computed,
            block_table=self.block_table,
            **self.sampling,
        )

    def bind(self, **columns: NDArray[Any]) -> None:
        self.keep.append(columns)
        for name, array in columns.items():
            bind_column(self.program, name, array)

    def add(
        self,
        name: str,
        arrays: Mapping[str, NDArray[Any]],
        **values: int | float | str | tuple[str, int],
    ) -> int:
        for array in arrays.values():
            assert array.flags.c_contiguous
        self.keep.append(arrays)
        if "kv" in arrays:
            values = {"block_size": self.block_size, **values}
        return self.program.add(name, {k: v.ctypes.data for k, v in arrays.items()}, values)

    def run(
        self,
        num_new: Sequence[int],
        slots: Sequence[int] | None = None,
        num_logits: Sequence[int] | None = None,
        num_sampled: Sequence[int] | None = None,
    ) -> None:
        """One step: row i computes num_new[i] tokens of slots[i]."""
        n = len(num_new)
        logits = np.asarray([0] * n if num_logits is None else num_logits, np.int32)
        columns = [
            np.asarray(range(n) if slots is None else slots, np.int32),
            np.asarray(num_new, np.int32),
            logits,
            np.minimum(logits, 1) if num_sampled is None else np.asarray(num_sampled, np.int32),
        ]
        self.program.run(*(c.ctypes.data for c in columns), n)
