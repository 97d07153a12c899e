"""InternLM 2 (q, k and v in one tensor by KV head, names of its own) and InternLM 3."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.norm import RMSNormSpec
from galley.layers.weight_specs import fuse_runs
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import attention, decoder, layer, mlp, read_sizes


def internlm2(model_info: ModelInfo) -> DecoderSpec:
    """InternLM 2 and 2.5."""
    config = model_fields(model_info)
    sizes = read_sizes(config)
    bias = config.flag("bias", False)

    def layer_of(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}"
        apart = attention(sizes, f"{prefix}.attention", qkv_bias=bias, out_bias=bias)
        q, k, v = fuse_runs(f"{prefix}.attention.wqkv", (apart.q, apart.k, apart.v), sizes.kv_heads)
        out = replace(apart.out, name=f"{prefix}.attention.wo")
        block = mlp(sizes, f"{prefix}.feed_forward")
        gate, up, down = (
            replace(part, name=f"{prefix}.feed_forward.{name}")
            for part, name in zip(
                (block.gate, block.up, block.down), ("w1", "w3", "w2"), strict=True
            )
        )
        return LayerSpec(
            mixer=replace(apart, q=q, k=k, v=v, out=out),
            mlp=replace(block, gate=gate, up=up, down=down),
            mixer_norm=RMSNormSpec(f"{prefix}.attention_norm", sizes.hidden, sizes.eps),
            mlp_norm=RMSNormSpec(f"{prefix}.ffn_norm", sizes.hidden, sizes.eps),
        )

    spec = decoder(sizes, [layer_of(i) for i in range(sizes.layers)])
    return replace(
        spec,
        embedding=replace(spec.embedding, name="model.tok_embeddings"),
        head=None if spec.head is None else replace(spec.head, name="output"),
        ignored=("output.",) if sizes.tied else (),
    )


def internlm3(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config, eps=1e-5)
    qkv_bias = config.flag("qkv_bias", config.flag("attention_bias", False))
    bias = config.flag("bias", config.flag("mlp_bias", False))
    layers = [
        layer(sizes, i, qkv_bias=qkv_bias, out_bias=bias, mlp_bias=bias)
        for i in range(sizes.layers)
    ]
    return decoder(sizes, layers)
