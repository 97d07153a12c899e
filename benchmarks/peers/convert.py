"""Converts a GGUF of SmolLM2 to a Hugging Face directory in bf16: convert.py FILE.gguf FOLDER

Runs in vLLM's environment (transformers, gguf, torch).
"""

import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig


def main() -> None:
    source, out = sys.argv[1:3]
    folder, name = os.path.split(os.path.abspath(source))
    fields = GGUFReader(source).fields

    def field(key: str) -> object:
        entry = fields.get(key)
        return None if entry is None else entry.contents()

    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    template = field("tokenizer.chat_template")
    ids = {k: field(f"tokenizer.ggml.{v}_token_id") for k, v in _SPECIAL.items()}
    if ids["pad_token_id"] is None:
        ids["pad_token_id"] = ids["eos_token_id"]
    for key, value in ids.items():
        setattr(model.config, key, value)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    _mend(os.path.join(out, "tokenizer_config.json"), chat_template=template, model_max_length=8192)
    _mend(os.path.join(out, "config.json"))


_SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_PATHS = ("is_local", "local_files_only", "_name_or_path", "_model_name_or_path")


def _mend(path: str, **more: object) -> None:
    """Add keys, and leave out those that hold a place on this machine."""
    with open(path) as file:
        data = json.load(file)
    data = {key: value for key, value in {**data, **more}.items() if key not in _PATHS}
    with open(path, "w") as file:
        json.dump(data, file, indent=2)


if __name__ == "__main__":
    main()
