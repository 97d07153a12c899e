"""A tiny model with random weights, whose tokenizer knows JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from galley import LLM
from galley.outputs import CompletionOutput, RequestOutput

VOCAB = 400
TEXTS = (
    '{"name": "Ada", "description": "a long text", "identifier": 12345, "tags": ["a", "b"]}',
    "the quick brown fox jumps over the lazy dog, yes or no, true or false, null",
    '{"another_long_property_name":1.5e3,"nested":{"value":-7,"items":[1,2,3]}}',
)


def write_tiny(folder: Path, **config: Any) -> Path:
    """A Llama of two layers without weights (--load-format dummy), and a byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 8,
        special_tokens=["<s>", "</s>", "<think>", "</think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    sizes = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": VOCAB,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": "float32",
        **config,
    }
    (folder / "config.json").write_text(json.dumps(sizes))
    return folder


def open_tiny(folder: Path, **flags: Any) -> LLM:
    common = {"load_format": "dummy", "max_num_seqs": 64, "kv_cache_memory_bytes": 16 << 20}
    return LLM(str(folder), **{**common, "num_threads": 1, **flags})


def answer(output: RequestOutput) -> list[Any]:
    """All that must be equal."""
    return [
        (o.index, o.token_ids, o.text, logprobs(o), o.finish_reason, o.stop_reason)
        for o in output.outputs
    ]


def logprobs(output: CompletionOutput) -> Any:
    if output.logprobs is None:
        return None
    return [{k: (v.logprob, v.rank) for k, v in c.items()} for c in output.logprobs]
