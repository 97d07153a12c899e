"""GPT-J: interleaved rotary on a part of each head, attention and MLP in parallel behind one norm,
and an output head with a bias.

CodeGen is the same with q, k and v in one tensor."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.attention import AttentionSpec
from galley.layers.weight_specs import fuse_runs
from galley.models.config import ModelFields, model_fields, read_rotary
from galley.models.decoder import DecoderSpec, ParallelLayerSpec
from galley.models.gpt import attention, decoder, mlp, read_sizes

#: CodeGen's tensors hold q, v and k in so many parts, one for each device of its training.
_SHARDS = 4


def gptj(model_info: ModelInfo) -> DecoderSpec:
    return _decoder(model_fields(model_info), lambda mixer, prefix: mixer)


def codegen(model_info: ModelInfo) -> DecoderSpec:
    def fused(mixer: AttentionSpec, prefix: str) -> AttentionSpec:
        q, v, k = fuse_runs(f"{prefix}.qkv_proj", (mixer.q, mixer.v, mixer.k), _SHARDS)
        return replace(mixer, q=q, k=k, v=v)

    config = model_fields(model_info)
    if config.integer("hidden_size", least=1) % _SHARDS:
        raise config.wrong("hidden_size", f"a multiple of {_SHARDS}")
    return _decoder(config, fused)


def _decoder(
    config: ModelFields, stored: Callable[[AttentionSpec, str], AttentionSpec]
) -> DecoderSpec:
    """`stored`: attention with tensors apart, and its prefix → with those of the checkpoint."""
    sizes = read_sizes(
        config,
        eps_key="layer_norm_epsilon",
        activation_key="activation_function",
        activation="gelu_new",
    )
    dim = config.integer("rotary_dim", sizes.head_dim, least=2, most=sizes.head_dim)
    config = config.with_defaults(partial_rotary_factor=dim / sizes.head_dim)
    rotary = replace(read_rotary(config, sizes.head_dim, 10000.0, partial=True), interleaved=True)

    def layer(index: int) -> ParallelLayerSpec:
        prefix = f"transformer.h.{index}"
        mixer = attention(
            sizes,
            f"{prefix}.attn",
            out="out_proj",
            rotary=rotary,
            qkv_bias=False,
            out_bias=False,
        )
        return ParallelLayerSpec(
            mixer=stored(mixer, f"{prefix}.attn"),
            mlp=mlp(sizes, f"{prefix}.mlp.fc_in", f"{prefix}.mlp.fc_out"),
            norm=sizes.norm(f"{prefix}.ln_1"),
        )

    spec = decoder(sizes, layer, embedding="transformer.wte", norm=sizes.norm("transformer.ln_f"))
    return replace(spec, head_bias="lm_head.bias")
