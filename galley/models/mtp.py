"""MTP: layers for further tokens that are part of a model's own checkpoint.

    hidden = layer(project(norm(embedding(token)) | norm(hidden)));   logits = lm_head(norm(hidden))

Position t has the hidden state of token t and the embedding of token t + 1. The first of these
layers gives every draft, from the hidden state that it returned for the one before.
Source: DeepSeek-V3 (arXiv 2412.19437).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kernels.ops import CacheLayer, ForwardContext, Ops, Value
from galley.layers.context import BuildContext
from galley.layers.linear import Linear
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import Matrix, Part
from galley.loader.tensor import Checkpoint
from galley.models.config import model_fields
from galley.models.decoder import AnyLayerSpec, DecoderSpec
from galley.models.draft_heads import HeadModel, Heads, Target
from galley.models.eagle import layer_caches
from galley.models.registry import model_spec


class Names(msgspec.Struct, frozen=True):
    """A family's tensor names, under the prefix of the layer.

    Attributes:
        prefixes: of the first of these layers, and of tensors beside it, the longest first; "{}"
            stands for the number of the model's layers.
        token_first: the projection reads the token's embedding before the hidden state.
        returns_normed: the next draft reads the normed hidden state.
        plus: added to the weights of norms.
    """

    prefixes: tuple[str, ...]
    token_norm: str
    hidden_norm: str
    project: str
    norm: str
    token_first: bool = True
    returns_normed: bool = False
    plus: float = 0.0


_DEEPSEEK = Names(("model.layers.{}.",), "enorm", "hnorm", "eh_proj", "shared_head.norm")
_MIMO = Names(
    ("model.mtp_layers.0.",),
    *("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"),
    token_first=False,
    returns_normed=True,
)
_QWEN = Names(
    ("mtp.layers.0.", "mtp."),
    *("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm"),
    returns_normed=True,
    plus=1.0,
)
#: Architecture of the model → names.
FAMILIES = {
    "DeepseekV3ForCausalLM": _DEEPSEEK,
    "Glm4MoeForCausalLM": _DEEPSEEK,
    "MiMoForCausalLM": _MIMO,
    "Qwen3NextForCausalLM": _QWEN,
}


class MTPSpec(msgspec.Struct, frozen=True):
    """`models.draft_heads.HeadsSpec`.

    Attributes:
        layer: as the model's own, of the number behind its last.
        index: that number.
    """

    names: Names
    layer: AnyLayerSpec
    index: int
    hidden: int
    eps: float
    outputs: tuple[str, ...] = ("normed",)
    most: int | None = None
    default: int = 1
    chained: bool = True

    def stored_name(self, name: str) -> str | None:
        for prefix in self.names.prefixes:
            prefix = prefix.format(self.index)
            if name.startswith(prefix):
                return f"model.layers.{self.index}.{name.removeprefix(prefix)}"
        return None

    def caches(self, before: Sequence[CacheLayer]) -> list[CacheLayer]:
        return layer_caches([self.layer], before)

    def build(self, context: BuildContext, target: Target) -> Heads:
        for name in ("embed_tokens.", "shared_head.head."):  # the model's own are read
            context.source.ignore_unused(f"model.layers.{self.index}.{name}")
        return Heads([MTPHead(self, context, target)], [self.hidden])

    def token_map(self, checkpoint: Checkpoint) -> NDArray[np.int32] | None:
        return None


class MTPHead(HeadModel):
    """One pass of the layer."""

    def __init__(self, spec: MTPSpec, context: BuildContext, target: Target) -> None:
        source, h, names = context.source, spec.hidden, spec.names
        super().__init__(h, target.head)
        prefix = f"model.layers.{spec.index}"
        self.token_norm, self.hidden_norm, self.norm = (
            RMSNormSpec(f"{prefix}.{name}", h, spec.eps, plus=names.plus).build(source)
            for name in (names.token_norm, names.hidden_norm, names.norm)
        )
        self.project = Linear(source, Matrix((Part(f"{prefix}.{names.project}", (h, 2 * h)),)))
        self.layer = spec.layer.build(context)
        self.embedding = target.embedding
        self._names = names

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        token = self.token_norm(ops, self.embedding(ops, ctx.token_ids))
        hidden = self.hidden_norm(ops, self.given(ops))
        pair = (token, hidden) if self._names.token_first else (hidden, token)
        return self.project(ops, ops.concat(*pair))

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        hidden = self.layer(ops, hidden, ctx)
        return self.norm(ops, hidden) if self._names.returns_normed else hidden

    def final_norm(self, ops: Ops, hidden: Value) -> Value:
        return hidden if self._names.returns_normed else self.norm(ops, hidden)


def mtp(info: ModelInfo, target: ModelInfo, names: Sequence[str]) -> MTPSpec:
    """The layer that the family of the model describes behind its last one."""
    family = FAMILIES.get(target.architecture)
    if family is None:
        raise ModelError(
            f"--speculative-config: MTP heads of {target.architecture} are not supported; those of "
            f"{', '.join(FAMILIES)} are"
        )
    config = model_fields(target)
    index = config.integer("num_hidden_layers", least=1)
    prefix = family.prefixes[0].format(index)
    if not any(name.startswith(prefix) for name in names):
        raise ModelError(f"--speculative-config: {info.source} has no MTP layer ({prefix}*)")
    longer = {**target.hf_config, "num_hidden_layers": index + 1}
    if kinds := longer.get("layer_types"):
        longer["layer_types"] = [*kinds, "full_attention"]
    spec = model_spec(dataclasses.replace(target, hf_config=longer))
    assert isinstance(spec, DecoderSpec)
    return MTPSpec(
        names=family,
        layer=spec.layers[index],
        index=index,
        hidden=config.integer("hidden_size", least=1),
        eps=config.number("rms_norm_eps", 1e-6),
    )
