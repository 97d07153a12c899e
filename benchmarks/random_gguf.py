"""A GGUF file of random weights in the shape of a Llama, in Q4_K_M, Q4_1, Q8_0 or BF16.

    python -m benchmarks.random_gguf 1B|3B|8B OUT.gguf [--format Q4_K_M]

Blocks are random bytes whose scales are small, so that a file of gigabytes is written at the speed
of the disk. The tokenizer is byte-level BPE with as many tokens as the model has; its merges are
made up.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gguf
import ml_dtypes
import numpy as np

from galley.text.byte_level import BYTE_OF_CHAR

Type = gguf.GGMLQuantizationType


class Shape(NamedTuple):
    """Sizes of a Llama 3 whose embedding is its head as well, but for 8B."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int = 128_256
    tied: bool = True


SHAPES = {
    "1B": Shape(2048, 16, 8192, 32, 8, 64),
    "3B": Shape(3072, 28, 8192, 24, 8, 128),
    "8B": Shape(4096, 32, 14336, 32, 8, 128, tied=False),
}
#: Type → byte offset of each float16 scale in a block; the blocks' other bytes are random.
SCALES = {Type.Q4_K: (0, 2), Type.Q4_1: (0, 2), Type.Q6_K: (208,), Type.Q8_0: (0,)}
#: Type of all matrices; None: several, as llama.cpp mixes them.
FORMATS = {"Q4_K_M": None, "Q4_1": Type.Q4_1, "Q8_0": Type.Q8_0, "BF16": Type.BF16}
POOL_BLOCKS = 1 << 14


def matrices(shape: Shape) -> Iterator[tuple[str, int, int, Type]]:
    """Name, outputs, inputs and type in Q4_K_M."""
    h, i, kv = shape.hidden, shape.intermediate, shape.kv_heads * shape.head_dim
    yield "token_embd.weight", shape.vocab, h, Type.Q6_K if shape.tied else Type.Q4_K
    if not shape.tied:
        yield "output.weight", shape.vocab, h, Type.Q6_K
    eighth = shape.layers // 8
    for layer in range(shape.layers):
        # As llama.cpp chooses them: the first and the last eighth, and each third between.
        more = layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2
        large = Type.Q6_K if more else Type.Q4_K
        at = f"blk.{layer}"
        yield f"{at}.attn_q.weight", shape.heads * shape.head_dim, h, Type.Q4_K
        yield f"{at}.attn_k.weight", kv, h, Type.Q4_K
        yield f"{at}.attn_v.weight", kv, h, large
        yield f"{at}.attn_output.weight", h, shape.heads * shape.head_dim, Type.Q4_K
        yield f"{at}.ffn_gate.weight", i, h, Type.Q4_K
        yield f"{at}.ffn_up.weight", i, h, Type.Q4_K
        yield f"{at}.ffn_down.weight", h, i, large


def blocks(kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Random blocks, [POOL_BLOCKS, bytes]."""
    if kind == Type.BF16:
        values = (rng.standard_normal(POOL_BLOCKS) * 0.02).astype(ml_dtypes.bfloat16)
        return values.view(np.uint8).reshape(-1, 2)
    _, size = gguf.GGML_QUANT_SIZES[kind]
    made = rng.integers(0, 256, (POOL_BLOCKS, size), np.uint8)
    for offset in SCALES[kind]:
        scale = rng.uniform(1e-5, 3e-5, POOL_BLOCKS).astype(np.float16)
        made[:, offset : offset + 2] = scale.view(np.uint8).reshape(-1, 2)
    return made


def add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Bytes, then pieces that join two earlier ones, then 256 control tokens."""
    rng = np.random.default_rng(1)
    tokens, known, merges = list(BYTE_OF_CHAR), set(BYTE_OF_CHAR), []
    while len(tokens) < vocab - 256:
        left, right = (tokens[int(i)] for i in rng.integers(0, min(len(tokens), 4096), 2))
        if left + right not in known:
            known.add(left + right)
            tokens.append(left + right)
            merges.append(f"{left} {right}")
    kinds = [1] * len(tokens) + [3] * 256
    tokens += [f"<|special_{i}|>" for i in range(256)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocab - 256)
    writer.add_eos_token_id(vocab - 255)


def write(path: Path, shape: Shape, format: str = "Q4_K_M") -> None:
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_context_length(8192)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500_000.0)
    writer.add_vocab_size(shape.vocab)
    add_tokenizer(writer, shape.vocab)
    rng = np.random.default_rng(0)
    every = FORMATS[format]
    found = [(name, n, k, every or kind) for name, n, k, kind in matrices(shape)]
    pools = {kind: blocks(kind, rng) for kind in dict.fromkeys(kind for *_, kind in found)}
    norms = ["output_norm.weight"]
    for layer in range(shape.layers):
        norms += [f"blk.{layer}.{name}_norm.weight" for name in ("attn", "ffn")]
    sizes = {}
    for name, n, k, kind in found:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        sizes[name] = n * k // block
        row = (n, k // block * size)
        writer.add_tensor_info(name, row, np.dtype(np.uint8), n * row[1], raw_dtype=kind)
    for name in norms:
        writer.add_tensor_info(name, (shape.hidden,), np.dtype(np.float32), 4 * shape.hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, _, _, kind in found:
        pool = np.roll(pools[kind], int(rng.integers(0, POOL_BLOCKS)), axis=0)
        writer.write_tensor_data(np.resize(pool, (sizes[name], pool.shape[1])))
    for _ in norms:
        writer.write_tensor_data(np.ones(shape.hidden, np.float32))
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--format", choices=FORMATS, default="Q4_K_M")
    options = parser.parse_args()
    write(options.out, SHAPES[options.shape], options.format)


if __name__ == "__main__":
    main()
