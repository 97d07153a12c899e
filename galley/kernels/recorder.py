"""The op backend that records: `Ops` over symbols gives a list of nodes, one program.

Each op adds plain nodes with f32 values between them (`ops/`); a linear layer whose weight wants
quantised rows gets a `quantize` node before it. Passes may fuse them or leave them as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.config.engine import QuantizedActivations
from galley.kernels.activations import activation_kind, common_kind, suits_bf16
from galley.kernels.adapters import AdapterTable
from galley.kernels.backend import Dense, Model
from galley.kernels.ops import Op, Ops
from galley.kernels.program import Kind, Node, Symbol
from galley.kernels.verify import verify
from galley.kernels.weights import PackedWeight
from galley.kv.format import KVFormat


class Placeholder(msgspec.Struct, frozen=True):
    """A column of the step that native code finds by itself, under its name."""

    column: str
    shape: tuple[str, ...]


class RecordingContext(msgspec.Struct, frozen=True):
    """The step as symbols (`ops.ForwardContext`)."""

    token_ids: Placeholder = Placeholder("token_ids", ("tokens",))
    positions: Placeholder = Placeholder("positions", ("axes", "tokens"))
    logit_index: Placeholder = Placeholder("logit_index", ("logits",))


def record(
    model: Model,
    kv: KVFormat,
    quantized: QuantizedActivations = "auto",
    outputs: Sequence[str] = (),
    adapters: AdapterTable | None = None,
    prompt_rows: bool = False,
    dense: Dense = "f32",
) -> tuple[list[Node], dict[str, Symbol]]:
    """The model's forward pass and its outputs by name. Arguments as for `Recorder` and `Ops`.

    "auto" means "bf16" where they suit the model (`suits_bf16`) and `dense`, the format of weights
    that are not quantised, is bf16 too.

    Outputs: `hidden` [T, H], the result of `model.forward`; `logits` [L, V]; and, if they are among
    `outputs`, `normed` [T, H], `hidden` after the final norm, and `layer.I` [T, H], the input of
    layer I.
    Raises ValueError for a program that could not run (`verify`).
    """
    recorder, ctx = Recorder(kv, quantized, adapters), RecordingContext()
    ops = Ops(recorder, adapted=adapters is not None, prompt_rows=prompt_rows)
    symbols: dict[str, Symbol] = {}

    def tap(layer: int, value: Any) -> None:
        if f"layer.{layer}" in outputs:  # a copy: the layer adds to its input
            symbols[f"layer.{layer}"] = recorder.copied(value)

    taps: Any = {"tap": tap} if any(name.startswith("layer.") for name in outputs) else {}
    hidden: Any = model.forward(ops, model.embed(ops, ctx), ctx, **taps)
    logits: Any = model.logits(ops, hidden, ctx)
    if quantized == "auto" and dense == "bf16" and suits_bf16(recorder.weights):
        return record(model, kv, "bf16", outputs, adapters, prompt_rows, dense)
    symbols |= {"hidden": hidden, "logits": logits}
    if "normed" in outputs:
        normed: Any = model.final_norm(ops, hidden)
        symbols["normed"] = normed
    verify(recorder.nodes)
    return recorder.nodes, symbols


class Recorder:
    """See the module.

    Attributes:
        nodes: the program so far.
        kv: number format of the KV cache.

    Args:
        quantized: rows that are multiplied with weights of integers in groups.
        adapters: that rows of the step may have; None = none, and nothing is recorded for them.
    """

    def __init__(
        self,
        kv: KVFormat,
        quantized: QuantizedActivations = "auto",
        adapters: AdapterTable | None = None,
    ) -> None:
        self.adapters = adapters
        self.nodes: list[Node] = []
        self.kv = kv
        self._quantized = quantized
        self._ordered: dict[tuple[Symbol, bytes], Symbol] = {}
        self._rounded: dict[tuple[Symbol, Kind], Symbol] = {}
        self._multiplied: dict[int, Sequence[PackedWeight]] = {}  # by the first one's identity
        self._overwritten: set[Symbol] = set()

    def run(self, op: Op, *args: Any) -> Any:
        return op.record(self, *args)

    def add(self, node: Node) -> None:
        """Append a node. ValueError where it reads a value that an earlier node overwrote."""
        for name, value in {**node.reads, **node.updates}.items():
            if value in self._overwritten:
                raise ValueError(f"{node.op}: {name} was overwritten by an add before")
        self.nodes.append(node)
        self._overwritten.update(node.updates.values())

    def rows_for(self, x: Symbol, weight: PackedWeight) -> Symbol:
        """x as rows of the kind that `weight` is multiplied with."""
        if weight.format.ordered:
            assert weight.order is not None
            x = self._permuted(x, weight.order)
        self._multiplied[id(weight)] = [weight]
        return self.rounded(x, activation_kind(weight.format, self._quantized))

    def kinds_for(self, weights: Sequence[PackedWeight]) -> set[Kind]:
        """The kinds of rows that `weights` are multiplied with, each by itself."""
        return {activation_kind(f, self._quantized) for f in {weight.format for weight in weights}}

    def kind_for(self, weights: Sequence[PackedWeight]) -> Kind:
        """The kind of rows that all of `weights` are multiplied with."""
        formats = dict.fromkeys(weight.format for weight in weights)
        if any(f.ordered for f in formats):
            raise ValueError("experts whose inputs have an order of their own are not supported")
        self._multiplied[id(weights[0])] = weights
        return common_kind(list(formats), self._quantized)

    @property
    def weights(self) -> Iterator[PackedWeight]:
        """Those that rows were made for."""
        return chain.from_iterable(self._multiplied.values())

    def _permuted(self, x: Symbol, order: NDArray[np.int32]) -> Symbol:
        """x with its columns in another order, made once however many nodes read it."""
        key = (x, order.tobytes())
        rows = self._ordered.get(key)
        if rows is None:
            rows = self._ordered[key] = Symbol.new(x.buffer.rows, x.columns)
            self.add(Node("permute", {"x": x}, {"out": rows}, constants={"order": order}))
        return rows

    def copied(self, x: Symbol) -> Symbol:
        """x in memory of its own."""
        rows = Symbol.new(x.buffer.rows, x.columns)
        order = np.arange(x.columns, dtype=np.int32)
        self.add(Node("permute", {"x": x}, {"out": rows}, constants={"order": order}))
        return rows

    def rounded(self, x: Symbol, kind: Kind) -> Symbol:
        """x as rows of another kind, made once however many nodes read them."""
        if x.kind == kind:
            return x
        rows = self._rounded.get((x, kind))
        if rows is None:
            rows = self._rounded[x, kind] = Symbol.new(x.buffer.rows, x.columns, kind)
            self.add(Node("quantize", {"x": x}, {"out": rows}))
        return rows
