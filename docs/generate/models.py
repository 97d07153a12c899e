"""docs/models.md: the model families, from the registry and the catalogue."""

from __future__ import annotations

from galley.loader.text_part import TEXT_MODELS
from galley.models.catalogue import Kind, Row, catalogue

_HEAD = """# Models

Made by `make docs` from the registry (`galley/models/registry.py`). `galley models SEARCH` prints
the same list; `galley inspect MODEL` shows parameters, memory, KV cache and operations of a
checkpoint from its headers alone.

A checkpoint is found by the `architectures` of its config.json, or by `general.architecture` of
its GGUF file. `--hf-overrides '{{"architectures": ["LlamaForCausalLM"]}}'` has another family run
it. Any other model of the `transformers` library runs through that library on Galley's KV cache
(`--model-impl auto`, the default, where it is installed): slower, with the same API
([transformers.md](transformers.md)).

InternLM 2 and 3, Baichuan, MiniCPM, EXAONE 3 and Llama-Nemotron have no code in transformers: they
are compared with models of it that compute the same, under the names of the published checkpoints
(`tests/models/remote.py`).

How a family is tested (`tests/models/test_families.py`), on a tiny random checkpoint made by
transformers with the family's peculiarities switched on: float32 logits within 1e-4 of the largest;
greedy tokens over 64 steps with chunked prefill, preemption and prefix hits; bfloat16 no further
from float32 than transformers is; a request alone and in a batch of 32, and the rest of an answer
after a replay, equal to the last bit. Where a GGUF name is given, the same logits from a GGUF file
(`tests/models/test_gguf_*.py`). The named checkpoint has the architecture; it is an example, not
the test.

Code completion: with `suffix`, `/v1/completions` asks for what stands between `prompt` and it,
where the tokenizer has fill-in-the-middle tokens: Qwen2.5-Coder, CodeGemma, StarCoder, SantaCoder,
Granite, DeepSeek-Coder, CodeLlama, CodeGeeX 4, Seed-Coder, Codestral, and GGUF files that name
theirs. Other models refuse `suffix`.

`make compare-llama-cpp LLAMA_CPP=FOLDER/libllama.so` (`tests/models/test_llama_cpp.py`) has
llama.cpp compute the same tiny files. Of 85, of nearly all decoders with a GGUF name, it loads 69;
the others have what its code does not, such as biases (the test names it). In 63 the perplexity of
200 random tokens is within 1 % of its, and where the likeliest tokens part, they lie within 0.1 nat
of each other, but for up to three tokens of Mixtral and Qwen3-Next, where two experts are a tie
within the rounding of llama.cpp's f16 cache. In six llama.cpp computes something else, by its code
(`src/models/` there), and a run in which Galley does the same agrees likewise: `llama.cpp`, which
runs Mixtral, and `starcoder2.cpp` read no window; `phi3.cpp` reads it and switches it off with a
warning; `exaone4.cpp` has windows in the model of 64 layers alone; the ramp of gpt-oss's YaRN
begins and ends at whole dimensions; and `phimoe.cpp`, besides windows, has RMS norms in place of
layer norms and weighs the experts by a softmax over all, where the published model takes each
choice's softmax over those near it.

On 250 tokens of an English book, the built-in model (SmolLM2-135M-Instruct, Q4_1) has a perplexity
of 31.15 in float32 and of 31.17 in bfloat16; llama.cpp finds 31.29.
`LAB=~/lab python -m benchmarks.peers.quantized` has llama-quantize write K-quants of its weights,
and of a random model in the shape of Gemma 3 with 262,144 pieces, and compares perplexities and
greedy texts with llama.cpp's on the same files.

In checkpoints with images or audio, the text model runs where its config is of one of these types:
{nested}. Other inputs are refused.
"""
_NOTES: dict[Kind, str] = {
    "encoder": """
An encoder gives vectors of prompts and generates nothing. Each token sees the whole prompt, so a
prompt is computed in one step, shares no blocks and leaves none behind. All tokens have token type
0. Tested on tiny random checkpoints made by transformers (`tests/models/test_encoders.py`): the
first, the last and the mean of the hidden states within 1e-4 of the largest, and the same bits
alone and in a batch. `modules.json` of sentence-transformers names the pooling, its
`max_seq_length` the longest prompt.
""",
    "mixture": """
The router is computed in float32. A token's sum over its experts is in ascending order of their
ids, whatever else is in the batch; weights of experts that no token of a step chooses are not read.
Experts may have any weight format that a linear layer may have.

DeepSeek's latent attention stores one latent per token for all heads, and prompts are computed as
decoded tokens are, with the projections of keys and values absorbed into queries and outputs: one
definition, so that bits do not depend on how a prompt is cut. The sparse attention of V3.2 is
computed densely: beyond `index_topk` tokens, a token attends to all of them. Mixtral's GGUF files
name the architecture `llama`; `deepseek2` files with sigmoid scores are DeepSeek V3. Layers that
predict further tokens make drafts alone ([speculative decoding](speculative-decoding.md)).
""",
}
_TITLES: dict[Kind, str] = {
    "dense": "Dense",
    "encoder": "Encoders",
    "mixture": "Mixtures of experts",
    "recurrent": "Recurrent and hybrid",
}


def page() -> str:
    rows = list(catalogue())
    parts = [_HEAD.format(nested=", ".join(f"`{name}`" for name in TEXT_MODELS))]
    for kind, title in _TITLES.items():
        table = _table([row for row in rows if row.kind == kind])
        parts.append(f"\n## {title}\n{_NOTES.get(kind, '')}\n{table}")
    return "".join(parts)


def _table(rows: list[Row]) -> str:
    lines = ["| family | architecture | backends | GGUF | for example |", "|---|---|---|---|---|"]
    for row in rows:
        gguf = ", ".join(f"`{name}`" for name in row.gguf)
        lines.append(
            f"| {row.title} | `{row.architecture}` | {', '.join(row.backends)} | {gguf} "
            f"| `{row.checkpoint}` |"
        )
    return "\n".join(lines) + "\n"
