"""Draft heads (Medusa, MLP speculators, EAGLE, MTP): they guess from the model's hidden states.

After each step the hidden states that the model kept are read once, before its next run. Heads
with a cache compute the step's positions from them, so that their cache has what the model's has:
it lies in the model's own blocks, and is found, shared, preempted and recomputed with them. While
no drafts are wanted, positions wait: many are computed with one pass over the weights, before the
next draft, when a sequence leaves, or when there are `_MOST_WAITING`.

Drafts are sampled with the request's own parameters and random numbers, as the model samples.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, NewRow, RequestTable, StepPlan, ragged_positions
from galley.config import ModelInfo
from galley.config.speculative import SpeculativeSettings
from galley.errors import ConfigError
from galley.kernels.backend import Backend, Executable, Model, StepLimits
from galley.kernels.ops import CacheLayer
from galley.kernels.ops.sample import AHEAD
from galley.kv.layout import KVLayout
from galley.layers.context import BuildContext
from galley.layers.weights import CheckpointWeights
from galley.loader import Checkpoint, RawTensor, Source, open_checkpoint, resolve_source
from galley.loader.fields import read_json
from galley.loader.tensor import TensorHeader
from galley.models.draft_heads import HIDDEN, HeadsSpec, Target, heads_spec
from galley.runner.weight_cache import RecordingWeights
from galley.spec.proposer import Drafts
from galley.spec.proposer import Target as DraftTarget

#: Positions that heads with a cache let wait while no drafts are wanted.
_MOST_WAITING = 256
_PENALTIES = ("presence", "frequency", "repetition")
Slots = NDArray[np.intp]
F32 = NDArray[np.float32]


class _Columns(msgspec.Struct):
    """`kernels.backend.StepInputs`."""

    slots: I32
    num_new: I32
    num_logits: I32
    num_sampled: I32


class _Renamed:
    """A checkpoint under the names that heads ask for; the tensors without one are left out."""

    def __init__(self, checkpoint: Checkpoint, spec: HeadsSpec) -> None:
        self.model_info = checkpoint.model_info
        self._checkpoint = checkpoint
        named = ((spec.stored_name(name), name) for name in checkpoint.names())
        self._stored = {own: name for own, name in named if own is not None}

    def names(self) -> list[str]:
        return list(self._stored)

    def header(self, name: str) -> TensorHeader:
        return self._checkpoint.header(self._stored[name])

    def tensor(self, name: str) -> RawTensor:
        return msgspec.structs.replace(self._checkpoint.tensor(self._stored[name]), name=name)


class _Step(msgspec.Struct, frozen=True, eq=False):
    """A step that the model has computed, [n] each.

    Attributes:
        slots: of its rows.
        num_new: tokens that each computed.
        starts: tokens that each had computed before.
    """

    slots: Slots
    num_new: I32
    starts: I32


class HeadProposer:
    """See the module.

    Args:
        checkpoint: of the heads.
        width: most drafts of a sequence.

    Attributes:
        memory: bytes of weights and buffers, known once `load` was called.
        outputs: that the model has to keep.
        follows: every step is to be followed, also where no drafts are wanted.
    """

    is_free = False

    def __init__(self, spec: HeadsSpec, checkpoint: Checkpoint, width: int, limits: StepLimits):
        self.width = width
        self.memory = 0
        self.outputs = spec.outputs
        self._spec, self._limits = spec, limits
        self._checkpoint = _Renamed(checkpoint, spec)
        self._map = spec.token_map(self._checkpoint)
        self._caches: list[CacheLayer] = []
        self._before: list[CacheLayer] = []
        self._executables: list[Executable] = []
        self._given: list[F32] = []
        self._step: _Step | None = None
        #: slots of the positions that wait, whose inputs are the first rows of `_given[0]`
        self._waiting: list[Slots] = []
        self._num_waiting = 0

    @property
    def follows(self) -> bool:
        return bool(self._caches)

    @property
    def lookahead(self) -> int:
        return self.width - 1 if self._caches else 0

    def caches(self, before: Sequence[CacheLayer]) -> list[CacheLayer]:
        """The caches of the heads, behind those of the model."""
        self._before, self._caches = list(before), self._spec.caches(before)
        return self._caches

    def load(self, backend: Backend, model: Model, max_positions: int) -> None:
        """Read the weights.

        Args:
            model: that the heads draft for.

        Raises ConfigError and ModelError.
        """
        if backend.name != "cpu":
            raise ConfigError(
                f"--speculative-config: draft heads run on --backend cpu, not {backend.name}",
                field="speculative_config",
            )
        weights = CheckpointWeights(self._checkpoint, backend)
        source = RecordingWeights(weights, backend)
        heads = self._spec.build(
            BuildContext(source, max_positions, self._before), Target.of(model)
        )
        weights.finish()
        self._executables = [self._executable(backend, model) for model in heads.models]
        self._given = [self._buffer(columns) for columns in heads.inputs]
        self.memory = (
            source.num_bytes
            + sum(executable.activation_bytes for executable in self._executables)
            + sum(given.nbytes for given in self._given)
        )

    def _executable(self, backend: Backend, model: Model) -> Executable:
        return backend.build(model, self._limits, ("hidden",))

    def _buffer(self, columns: int) -> F32:
        return np.empty((self._limits.tokens, columns), np.float32)

    def attach(
        self,
        target: Executable,
        table: RequestTable,
        columns: dict[str, NDArray[Any]],
        layout: KVLayout,
    ) -> None:
        """Follow the model's executable, whose cache has been allocated.

        Args:
            columns: of sampling, by slot.
        """
        self._target, self._table = target, table
        places = [layout.places[layer.index].group for layer in self._caches]
        self._groups, self._block_size = sorted(set(places)), layout.block_size
        self._waiting, self._num_waiting = [], 0
        #: [slots] the first position of each that waits, -1 = none
        self._first_waiting = np.full(table.num_slots, -1, np.int32)
        # A block that leaves its window is freed, whatever waits.
        windows = any(layout.groups[group].window for group in self._groups)
        self._most_waiting = 0 if windows else _MOST_WAITING
        columns = {**columns, "num_logprobs": np.full(table.num_slots, -1, np.int32)}
        if self._map is not None:  # penalties count the model's tokens
            columns = {name: columns[name] for name in columns if name not in _PENALTIES}
        own = copy.copy(table)
        own.num_computed = np.zeros_like(table.num_computed)
        if self._caches:  # position t has the token behind it
            own.token_ids = table.token_ids[:, 1:]
            columns = {**columns, AHEAD: np.ones(table.num_slots, np.int32)}
        self._own = own
        for executable, given in zip(self._executables, self._given, strict=True):
            executable.share_kv(target)
            executable.bind(own, {**columns, HIDDEN: given})

    def enter(self, row: NewRow) -> None:
        pass

    def leave(self, table: RequestTable, slots: Slots) -> None:
        if self._num_waiting and (self._first_waiting[slots] >= 0).any():
            self._compute(np.empty(0, np.intp))

    def stepped(self, plan: StepPlan) -> None:
        slots = plan.slots.astype(np.intp)
        self._step = _Step(slots, plan.num_new, self._table.num_computed[slots])

    def propose(self, table: RequestTable, slots: Slots, most: I32) -> Drafts:
        counts: I32 = np.zeros(len(slots), np.int32)
        ids: I32 = np.zeros((len(slots), self.width), np.int32)
        rows = np.flatnonzero((most > 0) & self._has_room(slots, 0))
        step, self._step = self._step, None
        assert step is not None, "no step to follow"
        if self._caches:
            self._add(step)
        if len(rows):
            asked = slots[rows]
            tokens, hidden = self._compute(asked) if self._caches else self._read(step, asked)
        elif self._num_waiting > self._most_waiting:
            self._compute(slots[rows])
        place = 0
        while len(rows):
            if self._map is not None:
                tokens = np.where(tokens < 0, -1, self._map[tokens])
            ids[rows, place], counts[rows] = tokens, place + (tokens >= 0)
            ends = table.num_tokens[slots[rows]] + place
            table.token_ids[slots[rows], ends] = np.maximum(tokens, 0)
            place += 1
            on = (tokens >= 0) & (most[rows] > place) & self._has_room(slots[rows], place)
            rows = rows[on]
            if len(rows):
                tokens, hidden = self._next(slots[rows], hidden[on], place)
        return Drafts(counts, ids, np.ones_like(counts))

    def _has_room(self, slots: Slots, place: int) -> NDArray[np.bool_]:
        """Whether a draft at this place has a position, and a block if it needs one: [n]."""
        ends = self._table.num_tokens[slots] + place
        room: NDArray[np.bool_] = (ends < self._table.max_len) & (place < self.width)
        for group in self._groups:  # its own position is that before the last token
            room &= ends - 2 < self._table.num_blocks[group, slots] * self._block_size
        return room

    def _valid(self, step: _Step) -> tuple[I32, I32]:
        """Of each row of the step, the tokens that count, and its first one among all, [n] each."""
        computed = self._table.num_computed[step.slots] - step.starts
        places = np.cumsum(step.num_new) - step.num_new
        return np.minimum(computed, step.num_new).astype(np.int32), places.astype(np.int32)

    def _read(self, step: _Step, asked: Slots) -> tuple[I32, F32]:
        """First drafts of the slots `asked` by heads without a cache, and the hidden states [n, H]
        behind them."""
        valid, places = self._valid(step)
        row_of = np.full(self._table.num_slots, -1)
        row_of[step.slots] = np.arange(len(step.slots))
        rows = row_of[asked]
        self._give(0, places[rows] + valid[rows] - 1)
        self._own.num_computed[asked] = self._table.num_tokens[asked] - 1
        return self._run_one_each(0, asked)

    def _add(self, step: _Step) -> None:
        """The positions of a step wait; those before it are computed if there is no room."""
        valid, places = self._valid(step)
        kept = np.flatnonzero(valid > 0)
        num_new = valid[kept]
        rows = ragged_positions(num_new, places[kept])
        if self._num_waiting + len(rows) > self._limits.tokens:
            self._compute(np.empty(0, np.intp))
        self._give(self._num_waiting, rows)
        slots = step.slots[kept]
        first = self._first_waiting[slots]
        self._first_waiting[slots] = np.where(first < 0, step.starts[kept], first)
        self._waiting.append(np.repeat(slots, num_new))
        self._num_waiting += len(rows)

    def _compute(self, asked: Slots) -> tuple[I32, F32]:
        """Compute what waits: first drafts of the slots `asked`, and the hidden states [n, H]
        behind them."""
        of_row = np.concatenate(self._waiting)
        slots, num_new = np.unique(of_row, return_counts=True)
        self._own.num_computed[slots] = self._first_waiting[slots]
        if (np.diff(of_row) < 0).any():  # a sequence's positions belong together, in order of slots
            given = self._given[0]
            given[: len(of_row)] = given[np.argsort(of_row, kind="stable")]
        self._waiting, self._num_waiting = [], 0
        self._first_waiting[slots] = -1
        is_asked = np.isin(slots, asked).astype(np.int32)
        tokens, hidden = self._run(0, slots, num_new.astype(np.int32), is_asked)
        order = np.searchsorted(slots[is_asked > 0], asked)
        return tokens[order], hidden[order]

    def _give(self, start: int, rows: NDArray[Any]) -> None:
        """The model's hidden states of these tokens of its step are inputs of the first head, from
        the row `start` on."""
        given, column = self._given[0][start : start + len(rows)], 0
        for name in self.outputs:
            values = self._target.outputs[name]
            end = column + values.shape[1]
            given[:, column:end] = values[rows]
            column = end

    def _next(self, slots: Slots, hidden: F32, place: int) -> tuple[I32, F32]:
        """Drafts at the next place, and the hidden states behind them."""
        head = min(place, len(self._executables) - 1)
        self._given[head][: len(slots)] = hidden
        behind = 2 if self._caches else 1
        self._own.num_computed[slots] = self._table.num_tokens[slots] - behind + place
        return self._run_one_each(head, slots)

    def _run_one_each(self, head: int, slots: Slots) -> tuple[I32, F32]:
        """As `_run`, one token of each slot; where heads are not chained, the next one's hidden
        states are those that this one was given."""
        ones = np.ones(len(slots), np.int32)
        tokens, hidden = self._run(head, slots, ones, ones)
        return tokens, hidden if self._spec.chained else self._given[head][: len(slots)].copy()

    def _run(self, head: int, slots: Slots, num_new: I32, num_sampled: I32) -> tuple[I32, F32]:
        """Tokens sampled by a head [s], and the hidden states [s, H] that it returns there."""
        columns = _Columns(slots.astype(np.int32), num_new, num_sampled, num_sampled)
        executable = self._executables[head]
        total = int(num_sampled.sum())
        executable.run(columns, sample=total > 0)
        if not total:
            return np.empty(0, np.int32), np.empty((0, 0), np.float32)
        last = (np.cumsum(num_new) - 1)[num_sampled > 0]
        tokens = np.array(executable.samples.token_ids[:total], np.int32)
        return tokens, executable.outputs["hidden"][last]


def make(settings: SpeculativeSettings, target: DraftTarget) -> HeadProposer:
    """The heads that the settings name; their weights are read once the model is loaded.

    Raises:
        ConfigError: more drafts are asked for than there are heads.
        ModelError: their checkpoint cannot be found or used.
    """
    config, info = target.config, target.model_info
    named = settings.model or info.source
    model = dataclasses.replace(
        config.model,
        model=named,
        tokenizer=None,
        quantization=None,
        hf_overrides={} if settings.model else config.model.hf_overrides,
        hf_config_path=None if settings.model else config.model.hf_config_path,
        revision=settings.revision if settings.model else config.model.revision,
    )
    source = resolve_source(model, config.load)
    if settings.method != "mtp":
        source = _with_missing_keys(source, info)
    checkpoint = open_checkpoint(source)
    spec = heads_spec(settings.method, checkpoint.model_info, info, checkpoint.names())
    asked = settings.num_speculative_tokens
    if spec.most is not None and asked is not None and asked > spec.most:
        raise ConfigError(
            f"--speculative-config.num_speculative_tokens {asked}: {named} has heads for "
            f"{spec.most} drafts.",
            field="speculative_config",
        )
    slots = target.num_slots
    tokens = max(config.scheduler.max_num_batched_tokens or 0, slots)
    width = settings.most_drafts if asked is not None else spec.default
    return HeadProposer(spec, checkpoint, width, StepLimits(tokens, slots, slots))


def _with_missing_keys(source: Source, target: ModelInfo) -> Source:
    """The source of heads, whose config.json may lack what a model's has."""
    path = source.path / "config.json"
    has = read_json(path)
    overrides: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    for key, value in (
        ("vocab_size", target.vocab_size),
        ("max_position_embeddings", target.max_position),
    ):
        if has.get(key) is None:
            overrides[key] = value
    changes = msgspec.structs.replace(source.changes, overrides=overrides)
    return msgspec.structs.replace(source, changes=changes)
