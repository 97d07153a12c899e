"""`QuantizedWeight`: a weight as codes with scales (or dense), before it is packed for a kernel.

Checkpoint formats (`galley.quant`) produce it, backends consume it. Rows can be concatenated (q, k
and v as one weight), interleaved (gate with up) and cut along either axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from galley.kernels import _native
from galley.kernels.nested_scales import spread_factors
from galley.kernels.weight_format import Activations, WeightFormat, addresses

Array = NDArray[Any]


class BlockType(msgspec.Struct, frozen=True):
    """A type of blocks in GGUF files.

    Attributes:
        values, bytes: of a block.
        format: what it is packed as.
    """

    name: str
    values: int
    bytes: int
    format: WeightFormat


def _block_types() -> Iterator[BlockType]:
    for name, (values, size, codes, group, zero, *kinds) in _native.block_types().items():
        scale, offset, table = (kind.name for kind in kinds)
        fmt: Any = (codes.name, group, zero, scale, offset, table)
        yield BlockType(name, values, size, WeightFormat(*fmt))


#: Those that native code decodes (csrc/blocks.cpp).
BLOCK_TYPES = {block.name: block for block in _block_types()}


class Blocks(msgspec.Struct, frozen=True, eq=False):
    """Rows of GGUF blocks where they lie, as in a mapped file.

    Attributes:
        rows: uint64 [N]: address of each row.
        k: values of a row.
        owners: arrays in which the rows lie.
    """

    type: BlockType
    rows: NDArray[np.uint64]
    k: int
    owners: tuple[Array, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.k

    @property
    def format(self) -> WeightFormat:
        """The format in which they are packed."""
        fmt = self.type.format
        return replace(fmt, group=0) if fmt.group >= self.k else fmt

    def columns(self, start: int, stop: int) -> Blocks:
        """Inputs [start, stop). Raises ValueError if a border cuts through a block."""
        if start % self.type.values or stop % self.type.values:
            raise ValueError(f"columns {start}:{stop} cut through blocks of {self.type.values}")
        offset = start // self.type.values * self.type.bytes
        return replace(self, rows=self.rows + np.uint64(offset), k=stop - start)

    def codes(self) -> QuantizedWeight:
        fmt = self.format
        arrays = fmt.arrays(self.shape)
        rows = np.ascontiguousarray(self.rows)
        _native.decode_blocks(self.type.name, rows.ctypes.data, *self.shape, **addresses(arrays))
        return from_arrays(fmt, arrays)


class QuantizedWeight(msgspec.Struct, frozen=True, eq=False):
    """A weight of N outputs and K inputs: dense, blocks of a file, or quantized in groups along K.

        group g = k // group:   value[n, k] = s[n, g] * level[n, k] + m[n, g]

        level = table[q], or q - zero without a table
        s     = scale, or super_scale * scale     (likewise m from min and super_min)
        m     = -s * fraction where zeros are fractional
        s     = scale_table[scale] * super_scale + scale_base where scales are codes

    Attributes:
        dense: [N, K] (or [N] for norms and biases) float32 or bfloat16; None if quantized.
        blocks: [N, K] as a file holds them; None if they have been decoded. `codes` decodes them.
        q: [N, K] uint8 codes below 2**bits.
        bits: bits per code, 1 to 8.
        trits: codes of 2 bits are below 3, and held five a byte.
        group: values along K that share a scale; 0 = all of them, one scale per output.
        zero: the code of level 0; one integer, or uint8 [N, K / group].
        scale, min: [N, K / group], floating point, or integers if there is a super scale; min None
            = 0.
        fraction: [N, K / group] floating point zeros; None = they are whole.
        super_scale, super_min: [N, K / S] floating point factors of `scale` and `min`, shared by S
            values along K; None = 1.
        scale_table: float32 [256] levels of codes in `scale`; None = it has numbers.
        scale_base: float32 [N, 1], of such scales.
        table: float32 [2**bits] levels by code; None = affine codes.
        order: int32 [K]: column i of the arrays is input order[i]; None = they are in order.
        activations: precision of the layer's input.
    """

    dense: NDArray[np.generic] | None = None
    blocks: Blocks | None = None
    q: NDArray[np.uint8] | None = None
    bits: int = 0
    trits: bool = False
    group: int = 0
    zero: int | NDArray[np.uint8] = 0
    scale: Array | None = None
    min: Array | None = None
    fraction: NDArray[np.floating] | None = None
    super_scale: NDArray[np.floating] | None = None
    super_min: NDArray[np.floating] | None = None
    scale_table: NDArray[np.float32] | None = None
    scale_base: NDArray[np.float32] | None = None
    table: NDArray[np.float32] | None = None
    order: NDArray[np.int32] | None = None
    activations: Activations = "group"

    @property
    def shape(self) -> tuple[int, ...]:
        return self._main.shape if self.blocks is None else self.blocks.shape

    @property
    def format(self) -> tuple[object, ...]:
        """Weights whose formats are equal can be concatenated without a conversion."""
        if self.dense is not None:
            return ("dense", self.dense.dtype.name)
        if self.blocks is not None:
            return ("blocks", self.blocks.type)
        upper = (self.super_scale, self.super_min)
        dtypes = [_dtype(a) for a in (self.scale, self.min, self.fraction, *upper)]
        zero = self.zero if isinstance(self.zero, int) else "zero per group"
        constants = (self.table, self.scale_table, self.order)
        shared = [None if array is None else array.tobytes() for array in constants]
        return (self.bits, self.trits, self.group, zero, *dtypes, *shared, self.activations)

    @property
    def _main(self) -> NDArray[np.generic]:
        main = self.q if self.dense is None else self.dense
        assert main is not None
        return main

    def codes(self) -> QuantizedWeight:
        """The weight, with blocks decoded."""
        return self if self.blocks is None else self.blocks.codes()

    def scales(self) -> NDArray[np.float32]:
        """The scale of every group, [N, K / group] float32."""
        assert self.scale is not None
        if self.scale_table is None:
            return _product(self.scale, self.super_scale)
        assert self.super_scale is not None
        assert self.scale_base is not None
        scales: NDArray[np.float32] = self.scale_table[self.scale]
        scales *= self.super_scale
        scales += self.scale_base
        return scales

    def mins(self) -> NDArray[np.float32] | None:
        """The minimum of every group, [N, K / group] float32; None = 0."""
        if self.fraction is not None:
            return -self.scales() * self.fraction.astype(np.float32)
        return None if self.min is None else _product(self.min, self.super_min)

    def to_float32(self) -> NDArray[np.float32]:
        """The values, float32 of the weight's shape, in the arithmetic that defines the format."""
        if self.dense is not None:
            return self.dense.astype(np.float32)
        if self.blocks is not None:
            return self.blocks.codes().to_float32()
        assert self.q is not None
        n, k = self.q.shape
        group = self.group or k
        whole = k - k % group
        values = np.empty((n, k), np.float32)
        scales, mins = self.scales(), self.mins()
        for columns in (slice(0, whole), slice(whole, k)):  # whole groups, then the rest
            q = self.q[:, columns]
            if q.size == 0:
                continue
            first = columns.start // group
            groups = slice(first, first + -(-q.shape[1] // group))
            grouped = q.reshape(n, groups.stop - first, -1)
            value = values[:, columns].reshape(grouped.shape)
            self._levels(grouped, groups, value)
            value *= scales[:, groups, None]
            if mins is not None:
                value += mins[:, groups, None]
            values[:, columns] = value.reshape(q.shape)
        return in_input_order(values, self.order)

    def _levels(
        self, q: NDArray[np.uint8], groups: slice, out: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Levels of codes [N, groups, ...], into `out`."""
        if self.table is not None:
            out[...] = self.table[q]
            return out
        zero = self.zero if isinstance(self.zero, int) else self.zero[:, groups, None]
        return np.subtract(q, zero, out=out, dtype=np.float32)

    def take(self, rows: slice | NDArray[np.intp]) -> QuantizedWeight:
        """Some outputs (a column-parallel rank): views of a slice, copies of an array."""
        return self._map(lambda _, array: array[rows])

    def columns(self, start: int, stop: int) -> QuantizedWeight:
        """Inputs [start, stop): the shard of a row-parallel rank. Views, not copies.

        Raises ValueError if a border cuts through a group of values that share a scale, or the
        inputs have another order.
        """
        k = self.shape[1]
        if self.order is not None and (start, stop) != (0, k):
            raise ValueError("inputs in another order cannot be cut")
        assert 0 <= start < stop <= k
        if self.blocks is not None:
            return QuantizedWeight(blocks=self.blocks.columns(start, stop))

        def cut(name: str, array: Array) -> Array:
            if name in ("dense", "q"):
                return array[:, start:stop]
            span = self._span(array)
            if span >= k:
                return array
            if start % span or (stop % span and stop != k):
                raise ValueError(f"columns {start}:{stop} cut through groups of {span}")
            return array[:, start // span : -(-stop // span)]

        return self._map(cut)

    def _span(self, per_group: Array) -> int:
        """How many values along K one number of a scale, minimum or zero array is for."""
        k = self.shape[1]
        assert self.scale is not None
        group = self.group or k
        return group * (self.scale.shape[1] // per_group.shape[1])

    def _map(self, change: Callable[[str, Array], Array]) -> QuantizedWeight:
        """The weight with every per-row array replaced by change(name, array)."""
        if self.blocks is not None:
            rows = change("rows", self.blocks.rows)
            return QuantizedWeight(blocks=replace(self.blocks, rows=rows))
        arrays = {name: getattr(self, name) for name in _PER_ROW}
        changed: dict[str, Any] = {
            name: change(name, array)
            for name, array in arrays.items()
            if isinstance(array, np.ndarray)
        }
        return replace(self, **changed)


def from_arrays(
    fmt: WeightFormat, arrays: dict[str, Array | None], order: NDArray[np.int32] | None = None
) -> QuantizedWeight:
    """A weight of the arrays that native code writes (`WeightFormat.arrays`)."""
    fields: dict[str, Any] = dict(arrays)
    zeros, table, scale = fields.pop("zeros"), fields.pop("table"), fields["scale"]
    if fmt.offset == "fractions":
        fields["fraction"] = fields.pop("min")
    if fmt.scale == "e8m0":
        fields["scale"] = np.ldexp(np.float32(1), scale.astype(np.int32) - 128)
    if fmt.scale == "nested":
        assert table is not None
        table, fields["scale_table"] = np.split(table, [2 ** int(fmt.name[1:])])
        fields["super_scale"], fields["scale_base"] = spread_factors(
            fields["super_scale"], fields.pop("super_min"), scale.shape[1]
        )
    return QuantizedWeight(
        bits=int(fmt.name[1:]),
        trits=fmt.name == "t2",
        group=fmt.group,
        zero=fmt.zero if zeros is None else zeros,
        table=None if table is None else table.astype(np.float32),
        order=order,
        activations=fmt.activations,
        **fields,
    )


#: Fields that have one row per output.
_PER_ROW = (
    "dense",
    "q",
    "zero",
    "scale",
    "min",
    "fraction",
    "super_scale",
    "super_min",
    "scale_base",
)


def _dtype(array: Array | None) -> str | None:
    return None if array is None else array.dtype.name


def _product(values: Array, factors: NDArray[np.floating] | None) -> NDArray[np.float32]:
    product = values.astype(np.float32)
    if factors is not None:
        n, groups = product.shape
        product = product.reshape(n, factors.shape[1], -1) * factors.astype(np.float32)[..., None]
        product = product.reshape(n, groups)
    return product


def in_input_order(
    values: NDArray[np.float32], order: NDArray[np.int32] | None
) -> NDArray[np.float32]:
    """Columns of which number i is input order[i], as columns in the order of the inputs."""
    if order is None:
        return values
    ordered = np.empty_like(values)
    ordered[:, order] = values
    return ordered


def concat_rows(parts: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """One weight with the outputs of all `parts`, in order. Their formats must be equal."""
    return _join(parts, np.concatenate)


def interleave_rows(first: QuantizedWeight, second: QuantizedWeight, run: int) -> QuantizedWeight:
    """Outputs of two weights of equal shape and format, alternating in runs of `run` rows.

        run = 2:   first 0, first 1, second 0, second 1, first 2, first 3, ...

    The fused SiLU·mul reads gate and up in this order.
    """
    assert first.shape == second.shape
    assert first.shape[0] % run == 0

    def interleave(arrays: Sequence[Array]) -> Array:
        a, b = (x.reshape(-1, run, *x.shape[1:]) for x in arrays)
        return np.stack([a, b], axis=1).reshape(-1, *arrays[0].shape[1:])

    return _join([first, second], interleave)


def _join(
    parts: Sequence[QuantizedWeight], how: Callable[[Sequence[Array]], Array]
) -> QuantizedWeight:
    first = parts[0]
    assert all(p.format == first.format for p in parts)
    blocks = [part.blocks for part in parts if part.blocks is not None]
    if blocks:
        rows, owners = how([b.rows for b in blocks]), tuple(o for b in blocks for o in b.owners)
        return QuantizedWeight(blocks=replace(blocks[0], rows=rows, owners=owners))
    return first._map(lambda name, _: how([getattr(p, name) for p in parts]))
