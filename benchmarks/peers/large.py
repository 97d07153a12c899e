"""Files of random weights in the shapes of Llama 3.2 1B and 3B, for the rows L1, L8 and LP.

Galley and llama.cpp read the same GGUF file. vLLM, in bfloat16, makes weights of its own
(`--load-format dummy`) and needs a folder with the config and a tokenizer, which is SmolLM2's:
its tokens are the first of the vocabulary.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable

from benchmarks.peers.engines import lab
from benchmarks.random_gguf import SHAPES, write


def make_files(models: Iterable[str]) -> None:
    """Write what is missing of the models, named like "1b-q4_k_m"."""
    for model in models:
        size, _, format = model.partition("-")
        file = lab() / "weights" / f"random-{model}.gguf"
        if not file.exists():
            print(f"writing {file.name} …", flush=True)
            part = file.with_suffix(".part")
            write(part, SHAPES[size.upper()], format.upper())
            part.rename(file)
        if format == "bf16":
            _make_folder(size.upper(), f"random-{model}")


def _make_folder(size: str, name: str) -> None:
    """A folder for vLLM, which makes the weights."""
    shape, folder = SHAPES[size], lab() / "weights" / name
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for file in (lab() / "weights" / "smollm2-bf16").glob("*token*"):
        shutil.copy(file, folder)
