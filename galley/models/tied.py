"""Models whose head is the tensor lm_head, or the embedding (tied)."""

from __future__ import annotations

from collections.abc import Sequence

from galley.layers.norm import NormSpec
from galley.layers.weight_specs import Part
from galley.models.decoder import AnyLayerSpec, DecoderSpec


def with_head(
    embedding: Part,
    layers: Sequence[AnyLayerSpec],
    norm: NormSpec,
    tied: bool,
    ignored: tuple[str, ...] = (),
) -> DecoderSpec:
    """A model of these layers. `ignored`: as `DecoderSpec` has it."""
    return DecoderSpec(
        embedding=embedding,
        layers=layers,
        norm=norm,
        head=None if tied else Part("lm_head", embedding.shape),
        # Some checkpoints contain a copy of a tied weight.
        ignored=(*ignored, "lm_head.") if tied else ignored,
    )
