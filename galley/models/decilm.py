"""DeciLM and Llama-Nemotron (51B, Super 49B, Ultra 253B): Llama whose layers differ in size, or
lack a block."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec.structs import replace

from galley.config import ModelInfo
from galley.models.config import ModelFields, model_fields
from galley.models.decoder import DecoderSpec, LayerSpec
from galley.models.llama import Sizes, decoder, layer, read_sizes


class _Block(msgspec.Struct, frozen=True):
    """KV heads and intermediate size of a layer; 0 = it has no such block."""

    kv_heads: int
    intermediate: int


def decilm(model_info: ModelInfo) -> DecoderSpec:
    config = model_fields(model_info)
    blocks = _blocks(config)
    largest = {
        "num_key_value_heads": max((b.kv_heads for b in blocks), default=0),
        "intermediate_size": max((b.intermediate for b in blocks), default=0),
    }
    sizes = read_sizes(config.replaced(**largest))
    layers = [_layer(config, sizes, i, block) for i, block in enumerate(blocks)]
    return decoder(sizes, layers)


def _blocks(config: ModelFields) -> list[_Block]:
    """By `block_configs`, or `num_key_value_heads_per_layer` (DeciLM-7B)."""
    layers = config.integer("num_hidden_layers", least=1)
    key = "block_configs" if config.has("block_configs") else "num_key_value_heads_per_layer"
    values: Any = config.values.get(key)
    if not isinstance(values, list) or len(values) != layers:
        raise config.wrong(key, f"a list of {layers}, one for each layer")
    if key == "block_configs":
        return [
            _block(config, ModelFields({"block": v}, f"{config.where}: {key}: {i}"))
            for i, v in enumerate(values)
        ]
    size = config.integer("intermediate_size", least=1)
    kv_heads = (ModelFields({key: n}, config.where).integer(key, least=1) for n in values)
    return [_Block(n, size) for n in kv_heads]


def _block(config: ModelFields, given: ModelFields) -> _Block:
    block = given.within("block")
    attention, ffn = block.within("attention"), block.within("ffn")
    for part in (attention, ffn):
        part.require("replace_with_linear", False, default=False)
        part.require("sparsify", None)
    kv_heads = intermediate = 0
    if not attention.flag("no_op", False):
        heads = config.integer("num_attention_heads", least=1)
        kv_heads = heads // attention.integer("n_heads_in_group", least=1, most=heads)
    if not ffn.flag("no_op", False):
        intermediate = ffn.integer("intermediate_size", _intermediate(config, ffn), least=1)
    return _Block(kv_heads, intermediate)


def _intermediate(config: ModelFields, ffn: ModelFields) -> int | None:
    """Two thirds of a multiple of the hidden size, rounded up to a multiple of 256."""
    if not ffn.has("ffn_mult"):
        return None
    size = int(2 * ffn.above_zero("ffn_mult") * config.integer("hidden_size", least=1) / 3)
    return -(-size // 256) * 256


def _layer(config: ModelFields, sizes: Sizes, index: int, block: _Block) -> LayerSpec:
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    own = replace(
        sizes, kv_heads=block.kv_heads or 1, intermediate=block.intermediate or sizes.intermediate
    )
    one = layer(own, index, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)
    if not block.kv_heads:
        one = replace(one, mixer=None, mixer_norm=None)
    if not block.intermediate:
        one = replace(one, mlp=None, mlp_norm=None)
    return one
