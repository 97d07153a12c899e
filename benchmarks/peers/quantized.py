"""Files that llama-quantize writes, in Galley and in llama.cpp: perplexities and greedy tokens.

    LAB=~/lab python -m benchmarks.peers.quantized [--models smollm2 gemma3] [--types Q4_K_M Q6_K]

`smollm2` is the built-in model, from its weights in bf16. `gemma3` has random weights in the shape
of Gemma 3: windows of 128 tokens in five of six layers, norms of queries and keys, a vocabulary of
262,144 pieces; its rows are multiples of 256, so that nearly all of them become K-quants. The text
is the book shipped with Galley, cut into tokens by each program itself. Perplexities follow
llama-perplexity's rule; "exact" is the PyTorch backend on the dequantised weights in float32.
Galley's greedy answers to the windows' beginnings are read by llama.cpp: where it would first have
chosen another token, by how many nats that one is likelier to it.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from benchmarks.peers.engines import lab, llama
from benchmarks.peers.perplexity import WINDOW, of_llama_file, of_llm, of_reference
from galley import LLM, SamplingParams
from galley.cli.bench.datasets.text import read_text
from galley.cli.bench.tables import print_table
from galley.loader.gguf import GGUFFile
from tests.models.llama_cpp import logits_of

TYPES = ("Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS", "Q3_K_M", "Q2_K")
MODELS = ("smollm2", "gemma3")
_PROMPT, _ANSWER = 64, 64
_HIDDEN, _LAYERS, _INNER, _HEADS, _HEAD_DIM, _VOCAB = 768, 6, 2048, 4, 256, 262_144


def write_gemma3(path: Path, text: str) -> None:
    """Random weights in float16. The pieces: bytes, characters and words of the text, and of each
    word what is left of it; the rest is made up."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(8192)
    writer.add_embedding_length(_HIDDEN)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(1)
    writer.add_key_length(_HEAD_DIM)
    writer.add_value_length(_HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(128)
    fixed = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = sorted({f"\u2581{word}" for word in text.split()})
    parts = dict.fromkeys(word[:end] for word in words for end in range(1, len(word) + 1))
    parts |= dict.fromkeys(sorted({char for word in words for char in word}))
    tokens = [*fixed, *sorted(parts, key=len)]
    tokens += [f"<made up {i}>" for i in range(_VOCAB - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(_VOCAB)])
    writer.add_token_types([3, 3, 3, 2, *[6] * 256, *[1] * (_VOCAB - len(fixed))])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_space_prefix(False)

    def matrix(name: str, rows: int, columns: int, scale: float = 0.03) -> None:
        values = rng.standard_normal((rows, columns), np.float32) * scale
        writer.add_tensor(f"{name}.weight", values.astype(np.float16))

    def norm(name: str, size: int) -> None:
        writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, size).astype(np.float32))

    matrix("token_embd", _VOCAB, _HIDDEN, 0.06)
    norm("output_norm", _HIDDEN)
    wide = _HEADS * _HEAD_DIM
    for at in (f"blk.{layer}" for layer in range(_LAYERS)):
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            norm(f"{at}.{name}", _HIDDEN)
        for name in ("attn_q_norm", "attn_k_norm"):
            norm(f"{at}.{name}", _HEAD_DIM)
        matrix(f"{at}.attn_q", wide, _HIDDEN)
        matrix(f"{at}.attn_k", _HEAD_DIM, _HIDDEN)
        matrix(f"{at}.attn_v", _HEAD_DIM, _HIDDEN)
        matrix(f"{at}.attn_output", _HIDDEN, wide)
        matrix(f"{at}.ffn_gate", _INNER, _HIDDEN)
        matrix(f"{at}.ffn_up", _INNER, _HIDDEN)
        matrix(f"{at}.ffn_down", _HIDDEN, _INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(source: Path, kind: str, folder: Path) -> Path:
    out = folder / f"{source.stem}-{kind}.gguf"
    command = [str(llama("llama-quantize")), str(source), str(out), kind, "2"]
    subprocess.run(command, capture_output=True, check=True)
    return out


def parts(path: Path, vocab: int, ids: Sequence[int], start: int) -> float | None:
    """Nats by which llama.cpp finds its own choice likelier than the first of the tokens from
    `start` on that it would not have chosen; None if it would have chosen all."""
    library = llama("llama-perplexity").with_name("libllama.so")
    logits = logits_of(library, path, np.asarray(ids), vocab)[start - 1 : -1]
    nats = logits.max(-1) - logits[np.arange(len(logits)), ids[start:]]
    return float(nats[nats > 0][0]) if nats.any() else None


def row(path: Path, text: str, windows: int) -> dict[str, Any]:
    theirs = of_llama_file(path, text, windows)
    with LLM(str(path), max_model_len=2 * WINDOW, max_num_seqs=windows) as llm:
        tokenizer = llm.get_tokenizer()
        ids = tokenizer.encode(text)
        some = [ids[i * WINDOW : (i + 1) * WINDOW] for i in range(windows)]
        if tokenizer.encode(""):  # begins each window, as in llama-perplexity
            some = [[ids[0], *window[1:]] for window in some]
        ours = of_llm(llm, some)
        greedy = SamplingParams(max_tokens=_ANSWER, temperature=0, ignore_eos=True)
        prompts = [window[:_PROMPT] for window in some]
        texts = [
            [*output.prompt_token_ids, *output.outputs[0].token_ids]
            for output in llm.generate(prompts, greedy, use_tqdm=False)
        ]
    exact = of_reference(str(path), some)
    vocab = GGUFFile(path).tensors["token_embd.weight"].shape[0]
    apart = [nats for nats in (parts(path, vocab, t, _PROMPT) for t in texts) if nats is not None]
    return {
        "file": path.stem,
        "exact": f"{exact:.3f}",
        "Galley": f"{ours:.3f}",
        "": f"{100 * (ours / exact - 1):+.2f} %",
        "llama.cpp": f"{theirs:.3f}",
        " ": f"{100 * (theirs / exact - 1):+.2f} %",
        "texts that part": f"{len(apart)} of {windows}",
        "nat": " ".join(f"{nats:.3f}" for nats in apart),
    }


def rows(names: Sequence[str], kinds: Sequence[str], windows: int) -> Iterator[dict[str, Any]]:
    text = " ".join(read_text().split())[: 8 * WINDOW * (windows + 1)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in names:
            source = lab() / "weights" / "smollm2-bf16.gguf"
            if name == "gemma3":
                source = folder / "gemma3.gguf"
                write_gemma3(source, text)
            for kind in kinds:
                path = quantized(source, kind, folder)
                yield row(path, text, windows)
                path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--types", nargs="+", default=list(TYPES))
    parser.add_argument("--windows", type=int, default=4, help="of 512 tokens")
    flags = parser.parse_args()
    print_table("Quantised by llama.cpp", list(rows(flags.models, flags.types, flags.windows)))


if __name__ == "__main__":
    main()
