"""Baichuan and Baichuan 2: q, k and v in one tensor; 7B rotary, 13B with ALiBi."""

from __future__ import annotations

from msgspec.structs import replace

from galley.config import ModelInfo
from galley.layers.alibi import alibi_slopes
from galley.layers.weight_specs import fuse
from galley.models.config import model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import attention, decoder, layer, read_sizes

#: Configs do not name the kind of position embedding; the 7B models are those with so many heads.
ROTARY_HEADS = 32
#: Nor the head that normalises its rows; Baichuan 2 is what has this vocabulary.
NORM_HEAD_VOCABULARY = 125_696


def baichuan(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    sizes = read_sizes(config)
    slopes = None if sizes.heads == ROTARY_HEADS else alibi_slopes(sizes.heads)

    def layer_of(index: int) -> LayerSpec:
        prefix = f"model.layers.{index}.self_attn"
        apart = attention(sizes, prefix)
        q, k, v = apart.q, apart.k, apart.v
        if not config.flag("split_qkv", False):  # as in GGUF files
            q, k, v = fuse(f"{prefix}.W_pack", (q, k, v))
        mixer = replace(apart, q=q, k=k, v=v, slopes=slopes)
        if slopes is not None:
            mixer = replace(mixer, rotary=None)
        return replace(layer(sizes, index), mixer=mixer)

    spec = decoder(sizes, [layer_of(i) for i in range(sizes.layers)])
    if spec.head is not None and sizes.vocab == NORM_HEAD_VOCABULARY:
        spec = replace(spec, head=replace(spec.head, unit_rows=True))
    return spec
