"""BERT, ELECTRA and RoBERTa: encoders with learned positions whose norms come after the blocks.

They have no head; the embedding stands in for one, and no request of theirs yields logits.
"""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.attention import AttentionSpec
from galley.layers.layer_norm import LayerNormSpec
from galley.layers.positions import LearnedPositionsSpec
from galley.layers.weight_specs import Part
from galley.loader.rope import first_position
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, PostNormLayerSpec
from galley.models.gpt import Sizes, mlp, read_sizes
from galley.models.heads import plain_attention

EPS = 1e-12


def bert(model_info: ModelInfo) -> DecoderSpec:
    """BERT. All tokens have token type 0, but those of the second text of a pair."""
    return with_segments(model_info, _bert(model_fields(model_info), first=0))


def electra(model_info: ModelInfo) -> DecoderSpec:
    """ELECTRA: BERT with embeddings of their own size."""
    config = model_fields(model_info)
    spec = _bert(config, first=0, size=config.integer("embedding_size", 128, least=1))
    return with_segments(model_info, spec)


def with_segments(model_info: ModelInfo, spec: DecoderSpec) -> DecoderSpec:
    """The model with tokens of the second text of a pair, if pairs have two token types."""
    if not model_info.has_segments:
        return spec
    assert spec.positions is not None
    types = spec.positions.table.plus
    return replace(
        spec,
        embedding=replace(spec.embedding, plus=types),
        further_tokens=(replace(spec.embedding, plus=types, plus_row=1),),
        positions=replace(spec.positions, table=replace(spec.positions.table, plus=None)),
    )


def roberta(model_info: ModelInfo) -> DecoderSpec:
    """RoBERTa, XLM-RoBERTa and CamemBERT: positions begin behind the padding token's."""
    config = model_fields(model_info)
    return _bert(config, first=first_position(config))


def distilbert(model_info: ModelInfo) -> DecoderSpec:
    """DistilBERT: no token types, and its own names."""
    config = model_fields(model_info)
    config = config.with_defaults(
        hidden_size=config.integer("dim", 768, least=1),
        num_attention_heads=config.integer("n_heads", 12, least=1),
        num_hidden_layers=config.integer("n_layers", 6, least=1),
        intermediate_size=config.integer("hidden_dim", 3072, least=1),
        layer_norm_eps=EPS,
    )
    sizes = read_sizes(
        config, eps_key="layer_norm_eps", activation_key="activation", activation="gelu", tied=True
    )

    def layer(index: int) -> PostNormLayerSpec:
        prefix = f"transformer.layer.{index}"
        names = ("q_lin", "k_lin", "v_lin", "out_lin")
        return PostNormLayerSpec(
            mixer=attention(sizes, *(f"{prefix}.attention.{name}" for name in names)),
            mlp=mlp(sizes, f"{prefix}.ffn.lin1", f"{prefix}.ffn.lin2"),
            norm=sizes.norm(f"{prefix}.sa_layer_norm"),
            mlp_norm=sizes.norm(f"{prefix}.output_layer_norm"),
        )

    return encoder(config, sizes, [layer(i) for i in range(sizes.layers)])


def _bert(config: ModelFields, first: int, size: int | None = None) -> DecoderSpec:
    """BERT with embeddings of `size` numbers; None = as many as a hidden state has."""
    config = config.with_defaults(layer_norm_eps=EPS)
    config.require("position_embedding_type", "absolute", default="absolute")
    config.require("is_decoder", False, default=False)
    sizes = read_sizes(config, eps_key="layer_norm_eps", activation="gelu", tied=True)

    def layer(index: int) -> PostNormLayerSpec:
        prefix = f"encoder.layer.{index}"
        names = ("self.query", "self.key", "self.value", "output.dense")
        return PostNormLayerSpec(
            mixer=attention(sizes, *(f"{prefix}.attention.{name}" for name in names)),
            mlp=mlp(sizes, f"{prefix}.intermediate.dense", f"{prefix}.output.dense"),
            norm=sizes.norm(f"{prefix}.attention.output.LayerNorm"),
            mlp_norm=sizes.norm(f"{prefix}.output.LayerNorm"),
        )

    project = Part("embeddings_project", (sizes.hidden, size or sizes.hidden))
    return encoder(config, sizes, [layer(i) for i in range(sizes.layers)], first, project)


def encoder(
    config: ModelFields,
    sizes: Sizes,
    layers: list[PostNormLayerSpec],
    first: int = 0,
    project: Part | None = None,
) -> DecoderSpec:
    """An encoder of these layers.

    Args:
        first: the row of position 0.
        project: projection of embeddings, if their size is not that of hidden states; None: there
            are no token types.
    """
    size = project.num_inputs if project else sizes.hidden
    types = None
    if project:
        count = config.integer("type_vocab_size", 2, least=1)
        types = Part("embeddings.token_type_embeddings", (count, size))
    rows = config.integer("max_position_embeddings", 512, least=first + 1)
    table = Part("embeddings.position_embeddings", (rows, size), plus=types)
    spec = DecoderSpec(
        embedding=Part("embeddings.word_embeddings", (sizes.vocab, size)),
        layers=layers,
        norm=None,
        head=None,
        ignored=(
            "cls.",
            "discriminator_",
            "embeddings.position_ids",
            "generator_",
            "lm_head.",
            "pooler.",
        ),
        positions=LearnedPositionsSpec(table, first),
        embedding_norm=LayerNormSpec("embeddings.LayerNorm", size, sizes.eps),
    )
    return spec if project is None or size == sizes.hidden else projected(spec, project)


def projected(spec: DecoderSpec, project: Part) -> DecoderSpec:
    """The encoder with this projection of its embeddings, and its transpose before the head."""
    return replace(spec, embedding_in=project, head_in=replace(project, turned=True))


def attention(sizes: Sizes, q: str, k: str, v: str, out: str) -> AttentionSpec:
    """Attention of the named projections, all with a bias, over the whole sequence."""
    usual = plain_attention(sizes, "", None)
    return replace(
        usual,
        q=replace(usual.q, name=q),
        k=replace(usual.k, name=k),
        v=replace(usual.v, name=v),
        out=replace(usual.out, name=out),
        causal=False,
        qkv_bias=True,
        out_bias=True,
    )
