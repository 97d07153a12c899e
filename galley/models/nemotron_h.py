"""Nemotron-H: layers of one block each: Mamba-2, attention without positions, an MLP, or experts
without gates (Nemotron 3)."""

from __future__ import annotations

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kernels.ops.experts import Activation
from galley.layers.attention import AttentionSpec
from galley.layers.mamba2 import Mamba2Spec
from galley.layers.moe import MoESpec
from galley.layers.norm import RMSNormSpec
from galley.layers.plain_mlp import PlainMLPSpec
from galley.layers.weight_specs import Part
from galley.loader.fields import MAX_HEAD_DIM, MAX_HEADS, MAX_LAYERS
from galley.models.config import ModelFields, layer_kinds, model_fields, read_limits
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.heads import HeadSizes, plain_attention
from galley.models.mamba2 import read_groups
from galley.models.mixture import deepseek_routing
from galley.models.tied import with_head

#: Kinds of layers by their letters in `hybrid_override_pattern`.
_LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}


def nemotron_h(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    hidden, vocab = config.integer("hidden_size", least=1), config.integer("vocab_size", least=1)
    eps = config.number("layer_norm_epsilon", config.number("rms_norm_eps", 1e-5))
    if config.optional_int("sliding_window"):
        raise ModelError(f"{config.where}: sliding_window is not supported for Nemotron-H")
    layers: list[LayerSpec] = []
    for i, kind in enumerate(_kinds(config)):
        prefix = f"backbone.layers.{i}"
        norm, name = RMSNormSpec(f"{prefix}.norm", hidden, eps), f"{prefix}.mixer"
        if kind == "mlp":
            size = config.integer("intermediate_size", least=1)
            layers.append(LayerSpec(None, _mlp(config, name, hidden, size), None, norm))
        elif kind == "moe":
            layers.append(LayerSpec(None, _mixture(config, name, hidden), None, norm))
        elif kind == "full_attention":
            layers.append(LayerSpec(_attention(config, name, hidden), None, norm, None))
        else:
            layers.append(LayerSpec(_mamba2(config, name, hidden, eps), None, norm, None))
    return with_head(
        Part("backbone.embeddings", (vocab, hidden)),
        layers,
        RMSNormSpec("backbone.norm_f", hidden, eps),
        tied=config.flag("tie_word_embeddings", False),
        # Heads that predict further tokens.
        ignored=("mtp.", f"backbone.layers.{len(layers)}."),
    )


def _kinds(config: ModelFields) -> list[str]:
    known = ("linear_attention", "full_attention", "mlp", "moe")
    if config.has("hybrid_override_pattern"):
        pattern = config.text("hybrid_override_pattern")
        kinds = [_LETTERS.get(letter, letter) for letter in pattern]
    else:
        listed = config.values.get("layers_block_type", config.values.get("layer_types"))
        kinds = listed if isinstance(listed, list) else []
    values = {**config.values, "layer_types": kinds}
    return layer_kinds(ModelFields(values, config.where), min(len(kinds), MAX_LAYERS), known)


def _mixture(config: ModelFields, name: str, hidden: int) -> MoESpec:
    """DeepSeek's routing; the experts may read a projection to fewer numbers."""
    routing = deepseek_routing(config)
    size = config.integer("moe_intermediate_size", least=1)
    shared = config.integer("moe_shared_expert_intermediate_size", 0)
    width = config.optional_int("moe_latent_size")
    latent = None
    if width is not None:
        down, up = (f"{name}.fc{i}_latent_proj" for i in (1, 2))
        bias = config.flag("mlp_bias", False)
        latent = (Part(down, (width, hidden)), Part(up, (hidden, width)), bias)
    inputs = width or hidden
    return MoESpec(
        router=Part(f"{name}.gate", (routing.experts, hidden)),
        routing=routing,
        gate=None,
        up=Part(f"{name}.experts.{{}}.up_proj", (size, inputs)),
        down=Part(f"{name}.experts.{{}}.down_proj", (inputs, size)),
        choice_bias=Part(f"{name}.gate.e_score_correction_bias", (routing.experts,)),
        activation=Activation.relu2,
        shared=_mlp(config, f"{name}.shared_experts", hidden, shared) if shared else None,
        latent=latent,
    )


def _mlp(config: ModelFields, name: str, hidden: int, size: int) -> PlainMLPSpec:
    config.require("mlp_hidden_act", "relu2", default="relu2")
    return PlainMLPSpec(
        up=Part(f"{name}.up_proj", (size, hidden)),
        down=Part(f"{name}.down_proj", (hidden, size)),
        activation="relu2",
        bias=config.flag("mlp_bias", False),
    )


def _attention(config: ModelFields, name: str, hidden: int) -> AttentionSpec:
    heads = config.integer("num_attention_heads", least=1, most=MAX_HEADS)
    kv_heads = config.integer("num_key_value_heads", heads, least=1, most=MAX_HEADS)
    d = config.integer("head_dim", config.integer("attention_head_dim", hidden // heads), least=2)
    if heads % kv_heads or d % 2 or d > MAX_HEAD_DIM:
        raise config.wrong("num_key_value_heads", f"a divisor of {heads}, with an even head_dim")
    return plain_attention(HeadSizes(hidden, heads, kv_heads, d), name, rotary=None)


def _mamba2(config: ModelFields, name: str, hidden: int, eps: float) -> Mamba2Spec:
    config.require("mamba_hidden_act", "silu", default="silu")
    heads = config.integer("mamba_num_heads", least=1, most=MAX_HEADS)
    groups = read_groups(config, "n_groups", heads)
    return Mamba2Spec(
        name=name,
        hidden=hidden,
        heads=heads,
        head_dim=config.integer("mamba_head_dim", least=1, most=MAX_HEAD_DIM),
        groups=groups,
        state_size=config.integer("ssm_state_size", 128, least=1, most=MAX_HEAD_DIM),
        taps=config.integer("conv_kernel", 4, least=2, most=64),
        bias=config.flag("use_bias", False),
        conv_bias=config.flag("use_conv_bias", True),
        dt_limits=read_limits(config, "time_step_limit"),
        eps=eps,
        norm_groups=groups,
    )
