"""Draft heads: small models that read the hidden states of the model that they draft for.

A method describes its heads (`registries.DRAFT_HEADS`); `runner.draft_heads` runs them. A head is a
`kernels.backend.Model` of its own. Its input is the bound column `HIDDEN`, a row for each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.config.registries import DRAFT_HEADS
from galley.errors import ModelError
from galley.kernels.backend import Model
from galley.kernels.ops import CacheLayer, ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.embedding import Embedding, LMHead
from galley.loader.tensor import Checkpoint
from galley.models.decoder import Decoder

#: The column of hidden states, float32 [T, columns].
HIDDEN = "given_hidden"


class Target(msgspec.Struct, frozen=True):
    """The parts that heads share with the model that they draft for.

    Attributes:
        embedding: of its tokens.
        head: that scores its vocabulary.
    """

    embedding: Embedding
    head: LMHead

    @staticmethod
    def of(model: Model) -> Target:
        """Raises ModelError for a model that is more than a plain decoder."""
        if type(model) is not Decoder:
            raise ModelError(
                "--speculative-config: draft heads need a plain decoder; this model is none "
                f"({type(model).__name__})"
            )
        return Target(model.embedding, model.head)


class Heads(msgspec.Struct, frozen=True):
    """Heads with their weights.

    Attributes:
        models: models[i] gives draft i, the last one the later ones too.
        inputs: columns of the hidden states that each of them reads.
    """

    models: Sequence[Model]
    inputs: Sequence[int]


class HeadsSpec(Protocol):
    """A method's heads before their weights are read.

    Attributes:
        outputs: what they read of the model, side by side (`kernels.backend.Executable.outputs`).
        most: drafts that they can give; None = any number.
        default: drafts where num_speculative_tokens is not given.
        chained: each reads the hidden state that the one before returns; else the model's.
        layers: number of their layers with a cache: with any, each position is computed, from its
            hidden state and the token behind it.
    """

    @property
    def outputs(self) -> tuple[str, ...]: ...
    @property
    def most(self) -> int | None: ...
    @property
    def default(self) -> int: ...
    @property
    def chained(self) -> bool: ...

    def stored_name(self, name: str) -> str | None:
        """The name by which `build` asks for a tensor of the checkpoint; None: it is not used."""

    def caches(self, before: Sequence[CacheLayer]) -> list[CacheLayer]:
        """The caches of their layers; those of the model, `before`, come first."""

    def build(self, context: BuildContext, target: Target) -> Heads:
        """Raises ModelError as the context's source does."""

    def token_map(self, checkpoint: Checkpoint) -> NDArray[np.int32] | None:
        """Token ids by number of the heads' own vocabulary; None: it is the model's."""


class HeadPerDraft(msgspec.Struct, frozen=True):
    """The common part of methods with a head for each draft, and without a cache."""

    heads: int

    @property
    def most(self) -> int:
        return self.heads

    @property
    def default(self) -> int:
        return self.heads

    def caches(self, before: Sequence[CacheLayer]) -> list[CacheLayer]:
        return []


def heads_spec(method: str, info: ModelInfo, target: ModelInfo, names: Sequence[str]) -> HeadsSpec:
    """The heads of a checkpoint.

    Args:
        info: of the heads' checkpoint.
        target: of the model that they draft for.
        names: of the tensors in the heads' checkpoint.

    Raises ModelError for heads that are not supported.
    """
    module, function = DRAFT_HEADS[method]
    spec: HeadsSpec = getattr(import_module(module), function)(info, target, names)
    return spec


class HeadModel:
    """A head: a `kernels.backend.Model` whose hidden states are given, not embedded.

    Attributes:
        columns: of the given hidden states.
    """

    kv_layers: Sequence[CacheLayer] = ()

    def __init__(self, columns: int, head: LMHead) -> None:
        self.columns, self.head = columns, head
        self.vocab_size = head.weight.shape[0]

    def given(self, ops: Ops) -> Value:
        """[T, columns]: the hidden states of the step's tokens."""
        return ops.given_rows(HIDDEN, self.columns)

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        return self.given(ops)

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        return hidden

    def final_norm(self, ops: Ops, hidden: Value) -> Value:
        return hidden

    def logits(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        selected = ops.select_rows(hidden, ctx.logit_index)
        return self.head(ops, self.final_norm(ops, selected))
