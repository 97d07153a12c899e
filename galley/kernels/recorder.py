"""The maker that records: `Ops` over symbols gives a list of native operations.

Each operation is written down plainly, one node for one call, with f32 values between them; a
linear layer whose weight wants quantised rows gets a `quantize` node before it. Three calls have
no native operation of their own (`head_norm`, `rotary`, `write_kv`): `passes.lower_rotary` turns
them into one `rope_kv`. Everything else may be fused by other passes or left as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from galley.config.engine import QuantizedActivations
from galley.kernels.activations import activation_kind
from galley.kernels.backend import Model
from galley.kernels.ops import KVLayer, Ops, RotaryTable
from galley.kernels.program import Kind, Node, Rows, Symbol
from galley.kernels.weights import PackedWeight


@dataclass(frozen=True)
class Placeholder:
    """A column of the step that native code finds by itself."""

    shape: tuple[str, ...]


@dataclass(frozen=True)
class RecordingContext:
    """The step as symbols (`ops.ForwardContext`)."""

    token_ids: Placeholder = field(default_factory=lambda: Placeholder(("tokens",)))
    positions: Placeholder = field(default_factory=lambda: Placeholder(("axes", "tokens")))
    logit_index: Placeholder = field(default_factory=lambda: Placeholder(("logits",)))


def record(
    model: Model, kv_kind: Kind, quantized: QuantizedActivations = "auto"
) -> tuple[list[Node], Symbol]:
    """The model's whole forward pass, and the symbol of its logits. Arguments as `Recorder`'s."""
    recorder, ctx = Recorder(kv_kind, quantized), RecordingContext()
    ops = Ops(recorder)
    hidden = model.forward(ops, model.embed(ops, ctx), ctx)
    logits = model.logits(ops, hidden, ctx)
    assert isinstance(logits, Symbol)
    return recorder.nodes, logits


class Recorder:
    """See the module.

    Args:
        kv_kind: number format of the KV cache and of the queries that meet it.
        quantized: of rows that meet weights of integers in groups.
    """

    def __init__(self, kv_kind: Kind, quantized: QuantizedActivations = "auto") -> None:
        self.nodes: list[Node] = []
        self._kv_kind = kv_kind
        self._quantized = quantized
        self._rounded: dict[tuple[Symbol, Kind], Symbol] = {}
        self._overwritten: set[Symbol] = set()

    def embedding(self, weight: PackedWeight, token_ids: Placeholder) -> Symbol:
        out = Symbol.new(Rows.tokens, weight.shape[1])
        self._add(Node("embedding", writes={"out": out}, constants={"weight": weight}))
        return out

    def linear(
        self, x: Symbol, weights: Sequence[PackedWeight], bias: NDArray[np.float32] | None
    ) -> Symbol:
        out = Symbol.new(x.buffer.rows, sum(weight.shape[0] for weight in weights))
        start = 0
        for weight in weights:
            stop = start + weight.shape[0]
            part = Symbol(out.buffer, stop - start, start)
            rows = self._as_kind(x, activation_kind(weight.format, self._quantized))
            constants: dict[str, PackedWeight | NDArray[np.float32]] = {"weight": weight}
            if bias is not None:
                constants["bias"] = bias[start:stop]
            self._add(Node("linear", {"x": rows}, {"out": part}, constants=constants))
            start = stop
        return out

    def rms_norm(self, x: Symbol, weight: NDArray[np.float32], eps: float) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns)
        self._add(
            Node(
                "rms_norm",
                {"x": x},
                {"out": out},
                constants={"weight": weight},
                floats={"eps": eps},
            )
        )
        return out

    def head_norm(self, x: Symbol, weight: NDArray[np.float32], eps: float) -> Symbol:
        out = Symbol.new(x.buffer.rows, x.columns)
        self._add(
            Node(
                "head_norm",
                {"x": x},
                {"out": out},
                constants={"weight": weight},
                floats={"eps": eps},
            )
        )
        return out

    def add(self, x: Symbol, y: Symbol) -> Symbol:
        self._add(Node("add", reads={"y": y}, updates={"x": x}))
        self._overwritten.add(x)
        return Symbol(x.buffer, x.columns, x.start)

    def split(self, x: Symbol, sizes: Sequence[int]) -> list[Symbol]:
        starts = np.cumsum([x.start, *sizes[:-1]]).tolist()
        return [Symbol(x.buffer, n, start) for n, start in zip(sizes, starts, strict=True)]

    def silu_and_mul(self, gate_up: Symbol, interleaved: bool) -> Symbol:
        out = Symbol.new(gate_up.buffer.rows, gate_up.columns // 2)
        ints = {"interleaved": int(interleaved)}
        self._add(Node("silu_mul", {"x": gate_up}, {"out": out}, ints=ints))
        return out

    def rotary(
        self, q: Symbol, k: Symbol, positions: Placeholder, table: RotaryTable, head_dim: int
    ) -> tuple[Symbol, Symbol]:
        # What meets the cache is rounded as the cache is.
        q_rotated = Symbol.new(Rows.tokens, q.columns, self._kv_kind)
        k_rotated = Symbol.new(Rows.tokens, k.columns, self._kv_kind)
        values = table.values
        assert isinstance(values, np.ndarray)
        self._add(
            Node(
                "rotary",
                {"q": q, "k": k},
                {"q_out": q_rotated, "k_out": k_rotated},
                constants={"table": values},
                ints={"head_dim": head_dim, "rot_dim": table.rot_dim},
            )
        )
        return q_rotated, k_rotated

    def write_kv(self, k: Symbol, v: Symbol, layer: KVLayer, ctx: RecordingContext) -> None:
        self._add(Node("write_kv", {"k": k, "v": v}, layer=layer))

    def attention(self, q: Symbol, layer: KVLayer, scale: float, ctx: RecordingContext) -> Symbol:
        out = Symbol.new(Rows.tokens, q.columns)
        ints = {
            "heads": q.columns // layer.head_dim,
            "kv_heads": layer.kv_heads,
            "head_dim": layer.head_dim,
            "kv_kind": int(self._kv_kind),
            "window": layer.window,
        }
        self._add(
            Node(
                "attention", {"q": q}, {"out": out}, ints=ints, floats={"scale": scale}, layer=layer
            )
        )
        return out

    def select_rows(self, x: Symbol, index: Placeholder) -> Symbol:
        out = Symbol.new(Rows.logits, x.columns)
        self._add(Node("select_rows", {"x": x}, {"out": out}))
        return out

    def _as_kind(self, x: Symbol, kind: Kind) -> Symbol:
        """x as rows of another kind, made once however many layers read them."""
        if x.kind == kind:
            return x
        made = self._rounded.get((x, kind))
        if made is None:
            made = self._rounded[x, kind] = Symbol.new(x.buffer.rows, x.columns, kind)
            self._add(Node("quantize", {"x": x}, {"out": made}))
        return made

    def _add(self, node: Node) -> None:
        for name, value in {**node.reads, **node.updates}.items():
            if value in self._overwritten:
                raise ValueError(f"{node.op}: {name} was overwritten by an add before")
        self.nodes.append(node)
