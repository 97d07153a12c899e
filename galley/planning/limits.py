"""Limits of this machine, for rooflines: memory read bandwidth and peak arithmetic rates."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from galley.kernels import _native
from galley.kernels.arena import aligned_bytes
from galley.kernels.caches import largest_cache

_READ, _ARITHMETIC = 0, {"f32": 1, "bf16": 2, "int8": 3}
_ROUNDS = 1_000_000


def beyond_caches() -> int:
    """Bytes of which no cache holds a large part: twice the largest, and at least 256 MiB."""
    return max(256 << 20, 2 * largest_cache())


@dataclass(frozen=True)
class MachineLimits:
    """Medians over some repetitions.

    Attributes:
        threads: number of threads used.
        read: bytes per second from memory.
        peak: operations per second (a multiply-add is two) by number format: f32, bf16, int8;
            0 if the CPU lacks the instruction.
    """

    threads: int
    read: float
    peak: dict[str, float]


class Probe:
    """The native probe op on a pool of its own.

    A program needs a request table, although the probe does not read it: one slot, one token.
    """

    def __init__(self, threads: int) -> None:
        self._pool = _native.Pool(threads)
        self._done = np.zeros(threads, np.int64)
        self._column = np.ones(1, np.int32)
        self._zero = np.zeros(1, np.int32)
        self._data = aligned_bytes(beyond_caches())
        self._data[:] = 1

    def _program(self, what: int, size: int) -> _native.Program:
        limits = dict.fromkeys(("tokens", "sequences", "logits"), 1)
        program = _native.Program(self._pool, 1, limits)
        zero = int(self._zero.ctypes.data)
        program.bind("history", "i4", zero)
        program.bind("num_computed", "i4", zero)
        pointers = {"done": int(self._done.ctypes.data), "data": int(self._data.ctypes.data)}
        program.add("probe", pointers, {"what": what, "size": size})
        return program

    def rate(self, what: int, size: int, repetitions: int = 7) -> float:
        """Median bytes or operations per second; 0 if the CPU lacks the instruction."""
        program = self._program(what, size)
        one, zero = int(self._column.ctypes.data), int(self._zero.ctypes.data)
        rates = []
        for _ in range(repetitions):
            begin = time.perf_counter()
            program.run(zero, one, zero, zero, 1)
            rates.append(self._done.sum() / (time.perf_counter() - begin))
        return float(np.median(rates))

    def read(self, repetitions: int = 7) -> float:
        """Median bytes per second from memory; leaves nothing else in the caches."""
        return self.rate(_READ, self._data.nbytes, repetitions)

    def arithmetic(self, numbers: str, rounds: int = _ROUNDS, repetitions: int = 7) -> float:
        """Median operations per second of a number format; 0 if the CPU lacks the instruction."""
        return self.rate(_ARITHMETIC[numbers], rounds, repetitions)


def measure_limits(threads: int) -> MachineLimits:
    """Measure the limits; takes about half a second."""
    probe = Probe(threads)
    peak = {name: probe.arithmetic(name) for name in _ARITHMETIC}
    return MachineLimits(threads, probe.read(), peak)
