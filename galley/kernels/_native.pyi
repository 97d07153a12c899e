"""The native module (csrc/binding.cpp). Addresses are integers; the caller keeps memory alive."""

from collections.abc import Mapping
from enum import IntEnum

class Kind(IntEnum):
    f32 = 0
    bf16 = 1
    q8 = 2
    q8_row = 3
    q16 = 4

class RopeStyle(IntEnum):
    halves = 0
    interleaved = 1

class Epilogue(IntEnum):
    none = 0
    silu_mul = 1
    gelu_mul = 2

class Format(IntEnum):
    f32 = 0
    bf16 = 1
    i4 = 2
    i5 = 3
    i6 = 4
    i8 = 5
    i2 = 6
    i3 = 7
    i1 = 8
    t2 = 9

class Scale(IntEnum):
    f16 = 0
    f32 = 1
    bf16 = 2
    u6 = 3
    i8 = 4
    u4 = 5
    s6 = 6
    e8m0 = 7
    e4m3 = 8
    halves = 9
    nested = 10

class Offset(IntEnum):
    zero = 0
    min = 1
    zeros = 2
    fractions = 3

class CodeTable(IntEnum):
    none = 0
    levels = 1
    floats = 2

def isa() -> str: ...
def ops() -> list[str]: ...
def activation_bytes(kind: int, k: int) -> int: ...

class WeightLayout:
    def __init__(
        self,
        format: int,
        n: int,
        k: int,
        group: int = 0,
        zero: int = 0,
        scale: int = 0,
        offset: int = 0,
        table: int = 0,
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    @property
    def panel_bytes(self) -> int: ...
    @property
    def scales(self) -> int: ...
    @property
    def spans(self) -> int: ...
    @property
    def factors(self) -> int: ...

def pack_dense(layout: WeightLayout, values: int, bf16: bool, stride: int, out: int) -> None: ...
def pack_codes(
    layout: WeightLayout,
    q: int,
    scale: int,
    min: int,
    zeros: int,
    super_scale: int,
    super_min: int,
    table: int,
    out: int,
) -> None: ...
def unpack_rows(layout: WeightLayout, data: int, first: int, last: int, out: int) -> None: ...
def unpack_codes(
    layout: WeightLayout,
    data: int,
    q: int,
    scale: int,
    min: int,
    zeros: int,
    super_scale: int,
    super_min: int,
    table: int,
) -> None: ...
def block_types() -> dict[str, tuple[int, int, Format, int, int, Scale, Offset, CodeTable]]: ...
def pack_blocks(type: str, rows: int, n: int, k: int, out: int) -> None: ...
def decode_blocks(
    type: str,
    rows: int,
    n: int,
    k: int,
    q: int,
    scale: int,
    min: int,
    zeros: int,
    super_scale: int,
    super_min: int,
    table: int,
) -> None: ...
def skip_strings(data: int, size: int, start: int, count: int) -> int: ...
def read_strings(data: int, size: int, start: int, count: int) -> list[str]: ...
def read_pairs(data: int, size: int, start: int, count: int) -> list[tuple[str, str]]: ...

class Pool:
    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class Program:
    def __init__(self, pool: Pool, num_slots: int, limits: dict[str, int]) -> None: ...
    def bind(self, name: str, dtype: str, address: int, stride: int = 1) -> None: ...
    def unbind(self, name: str) -> None: ...
    def columns(self) -> dict[str, bool]: ...
    def add(
        self,
        name: str,
        pointers: dict[str, int],
        values: Mapping[str, int | float | str | tuple[str, int]] = {},
    ) -> int: ...
    def resize(self, dimension: str, size: int) -> None: ...
    def run(
        self,
        slots: int,
        num_new: int,
        num_logits: int,
        num_sampled: int,
        n: int,
        first: int = 0,
        last: int | None = None,
        then: int = -1,
    ) -> None: ...
    def sizes(self) -> dict[str, int]: ...
    def step(self) -> dict[str, list[int]]: ...
    def set_heartbeat(self, counter: int) -> None: ...
    def profile(self, on: bool) -> None: ...
    def timings(self) -> list[tuple[str, int, int]]: ...

class DraftIndex:
    def __init__(
        self,
        num_slots: int,
        min_match: int,
        max_match: int,
        candidates: int,
        votes: bool = False,
        spec_factor: float = 0.0,
        min_probability: float = 0.0,
        corpus_tokens: int = 0,
        max_texts: int = 0,
    ) -> None: ...
    def propose(
        self,
        tokens: int,
        stride: int,
        lengths: int,
        handles: int,
        scopes: int,
        slots: int,
        n: int,
        most: int,
        width: int,
        counts: int,
        matches: int,
        ids: int,
    ) -> None: ...
    def add(self, text: int, length: int, scope: int) -> None: ...
    def clear(self, slot: int) -> None: ...
    def clear_corpus(self) -> None: ...

class StepCosts:
    def __init__(self, most: int) -> None: ...
    def record(self, tokens: int, seconds: float, drafts: bool) -> None: ...
    def age(self, tokens: int) -> int: ...
    def known(self, tokens: int) -> float: ...
    def curve(self, tokens: int, more: int) -> list[float]: ...

class DraftLengths:
    def __init__(self, num_slots: int, width: int, num_levels: int, most: int) -> None: ...
    def clear(self, slot: int) -> None: ...
    def record(self, tokens: int, seconds: float, drafts: bool) -> None: ...
    def observe(self, tokens: int, stride: int, lengths: int, slots: int, n: int) -> None: ...
    def choose(
        self,
        lengths: int,
        slots: int,
        n: int,
        counts: int,
        ids: int,
        levels: int,
        num_rows: int,
        seconds: float,
        chosen: int,
    ) -> int: ...
