"""OPT: learned positions from row 2 on; in OPT-350m, norms after the blocks and embeddings of
another size."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.positions import LearnedPositionsSpec
from galley.layers.weight_specs import Part
from galley.models.config import model_fields
from galley.models.decoder import AnyLayerSpec, DecoderSpec, LayerSpec, PostNormLayerSpec
from galley.models.gpt import Sizes, attention, decoder, mlp, read_sizes

#: Rows of the position table before that of position 0.
FIRST_POSITION = 2


def opt(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    norm_first = config.flag("do_layer_norm_before", True)
    final_norm = norm_first and not config.flag("_remove_final_layer_norm", False)
    sizes = read_sizes(
        config,
        eps_key="layer_norm_eps",
        activation_key="activation_function",
        activation="relu",
        tied=True,
    )
    sizes = replace(sizes, intermediate=config.integer("ffn_dim", least=1))
    bias = config.flag("enable_bias", True)
    affine = config.flag("layer_norm_elementwise_affine", True)
    top = "model.decoder"

    def layer(index: int) -> AnyLayerSpec:
        prefix = f"{top}.layers.{index}"
        mixer = attention(
            sizes, f"{prefix}.self_attn", out="out_proj", qkv_bias=bias, out_bias=bias
        )
        block = mlp(sizes, f"{prefix}.fc1", f"{prefix}.fc2", bias=bias)
        first, second = (
            norm(f"{prefix}.{name}") for name in ("self_attn_layer_norm", "final_layer_norm")
        )
        if norm_first:
            return LayerSpec(mixer, block, first, second)
        return PostNormLayerSpec(mixer, block, first, second)

    def norm(name: str) -> LayerNormSpec:
        return LayerNormSpec(name if affine else None, sizes.hidden, sizes.eps)

    positions = config.integer("max_position_embeddings", least=1) + FIRST_POSITION
    table = Part(f"{top}.embed_positions", (positions, sizes.hidden))
    spec = decoder(
        sizes, layer, embedding=f"{top}.embed_tokens", norm=norm(f"{top}.final_layer_norm")
    )
    spec = replace(spec, positions=LearnedPositionsSpec(table, FIRST_POSITION))
    if not final_norm:
        spec = replace(spec, norm=None)
    return _projected(spec, sizes, config.integer("word_embed_proj_dim", sizes.hidden, least=1))


def _projected(spec: DecoderSpec, sizes: Sizes, size: int) -> DecoderSpec:
    """The model with embeddings of this size."""
    if size == sizes.hidden:
        return spec
    shape = (sizes.vocab, size)
    return replace(
        spec,
        embedding=replace(spec.embedding, shape=shape),
        head=None if spec.head is None else replace(spec.head, shape=shape),
        embedding_out=Part("model.decoder.project_in", (sizes.hidden, size)),
        head_in=Part("model.decoder.project_out", (size, sizes.hidden)),
    )
