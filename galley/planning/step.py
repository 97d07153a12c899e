"""`StepModel`: seconds of a step, the sum of its operations at the rates of a machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from galley.kernels.ops import KVLayer
from galley.kernels.program import Node
from galley.kv.format import KVFormat
from galley.planning.machine import Machine, interpolate
from galley.planning.work import Cache, Work, work_of

#: Numbers with which work is computed where a machine has no unit for the format.
_INSTEAD = {"int8": "bf16", "fp8": "bf16", "bf16": "f32"}
#: Bytes of an activation that devices exchange.
_ACTIVATION_BYTES = 2


class StepLoad(msgspec.Struct, frozen=True):
    """The rows of a step (`work.Load`).

    Attributes:
        computed, new: [n] tokens of each row before this step, and in it.
        logits: rows of logits.
        window: how many last positions a token sees; 0 = all.
    """

    computed: NDArray[np.float64]
    new: NDArray[np.float64]
    logits: int
    window: int = 0

    @staticmethod
    def of(computed: ArrayLike, new: ArrayLike, logits: int) -> StepLoad:
        return StepLoad(np.asarray(computed, np.float64), np.asarray(new, np.float64), logits)

    @property
    def sequences(self) -> int:
        return len(self.new)

    @property
    def tokens(self) -> int:
        return int(self.new.sum())

    @property
    def visible(self) -> int:
        """Token j of a row sees computed + j + 1 positions, or the window."""
        if not self.window:
            return int((self.new * self.computed + self.new * (self.new + 1) / 2).sum())
        growing = np.clip(self.window - self.computed, 0, self.new)
        seen = growing * self.computed + growing * (growing + 1) / 2
        return int((seen + (self.new - growing) * self.window).sum())

    @property
    def cached(self) -> int:
        total = self.computed + self.new
        return int((np.minimum(total, self.window + self.new) if self.window else total).sum())

    def rows(self, decoding: bool) -> StepLoad:
        """The rows that decode, or the others."""
        chosen = (self.new == 1) == decoding
        return msgspec.structs.replace(self, computed=self.computed[chosen], new=self.new[chosen])


class Part(msgspec.Struct, frozen=True):
    """A share of a step.

    Attributes:
        seconds: of all operations of this kind.
        bound: what limits them: "memory", "arithmetic" or "overhead".
    """

    label: str
    seconds: float
    bound: str


class StepModel:
    """Seconds of the steps of a model on a machine.

    Args:
        nodes: of the model's program (`footprint.program`).
        vocab: logits of a row.
        hidden: columns of the residual stream.
        ranks: devices that share each layer (tensor parallelism).
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        numbers: KVFormat,
        vocab: int,
        hidden: int,
        machine: Machine,
        ranks: int = 1,
    ) -> None:
        self.machine, self.ranks = machine, ranks
        self._vocab, self._hidden, self._numbers = vocab, hidden, numbers
        probe = StepLoad.of([1000, 0], [1, 9], 2)
        counts: Counter[tuple[Work, int]] = Counter()
        first: dict[tuple[Work, int], Node] = {}
        self._exchanges = 0
        for node in nodes:
            key = work_of(node, probe, self._cache(node)), _window(node)
            first.setdefault(key, node)
            counts[key] += 1
            self._exchanges += node.op in ("attention", "latent_attention")
        self._ops = [(first[key], window, n) for key, n in counts.items() for window in [key[1]]]

    def _cache(self, node: Node) -> Cache:
        layer = node.layer
        each = layer.cache(self._numbers).token_bytes if layer is not None else 0
        return Cache(each, self._numbers)

    def seconds(self, load: StepLoad) -> float:
        """Of a step, host included."""
        return sum(part.seconds for part in self.parts(load))

    def parts(self, load: StepLoad) -> list[Part]:
        """The kinds of operations of a step."""
        machine = self.machine
        found = []
        for node, window, count in self._ops:
            seen = msgspec.structs.replace(load, window=window)
            loads = [seen]
            if node.op == "attention":
                loads = [rows for d in (True, False) if len((rows := seen.rows(d)).new)]
            works = [work_of(node, each, self._cache(node)) for each in loads]
            pairs = [self._work_seconds(work) for work in works]
            seconds = sum(s for s, _ in pairs)
            if works[0].weights not in machine.rates:  # measured speeds include it
                seconds += machine.op_seconds
            found.append(Part(works[0].label, count * seconds, max(pairs)[1]))
        sampled = load.logits * self._vocab * machine.sample_seconds
        host = machine.step_seconds + len(load.new) * machine.row_seconds
        found += [Part("sample", sampled, "overhead"), Part("host", host, "overhead")]
        if self.ranks > 1:
            size = load.tokens * self._hidden * _ACTIVATION_BYTES
            moved = 2 * (self.ranks - 1) / self.ranks * size / machine.link
            exchange = 2 * self._exchanges * (machine.link_seconds + moved)
            found.append(Part("exchange", exchange, "link"))
        return found

    def _work_seconds(self, work: Work) -> tuple[float, str]:
        """Seconds of an operation's work on one of the ranks, and what limits them."""
        machine, ranks = self.machine, self.ranks
        if not work.bytes and not work.operations:
            return work.elements * machine.element_seconds / ranks, "overhead"
        reading = work.bytes / machine.read
        curve = machine.rates.get(work.matrix) or machine.rates.get(work.weights)
        if curve and work.weights.startswith("attention"):
            computing = work.operations / interpolate(curve, work.rows)
        elif curve:  # measured with the weights read: reading is part of it
            seconds = work.operations / interpolate(curve, work.rows)
            return seconds / ranks, "memory" if work.rows < 2 or reading > seconds / 2 else (
                "arithmetic"
            )
        else:
            arithmetic = work.arithmetic
            while not machine.peak.get(arithmetic) and arithmetic in _INSTEAD:
                arithmetic = _INSTEAD[arithmetic]
            computing = work.operations / machine.peak[arithmetic]
        bound = "memory" if reading > computing else "arithmetic"
        return max(reading, computing) / ranks, bound


def _window(node: Node) -> int:
    return node.layer.window if isinstance(node.layer, KVLayer) else 0
