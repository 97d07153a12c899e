"""Prompts from a JSONL file, one request per line.

    {"prompt": "…", "output_tokens": 120}
    {"messages": [{"role": "user", "content": "…"}, …], "output_tokens": 120}

`output_tokens` is optional and used with --custom-output-len -1.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from galley.cli.bench.datasets import DataFlags, Sample, count_tokens, pick
from galley.errors import ConfigError
from galley.text.tokenizer import Tokenizer


def load(flags: DataFlags, tokenizer: Tokenizer | None, rng: np.random.Generator) -> list[Sample]:
    render = _renderer(flags, tokenizer)
    samples = []
    for number, entry in enumerate(read_lines(flags.dataset_path), 1):
        messages = entry.get("messages") or [{"role": "user", "content": entry.get("prompt")}]
        prompt = render(messages) if render else "\n".join(str(m["content"]) for m in messages)
        output_len = _output_len(flags, entry, number)
        prompt_len = count_tokens(tokenizer, prompt)
        samples.append(Sample(prompt, prompt_len, output_len, messages))
    return pick(samples, flags, rng)


def _renderer(flags: DataFlags, tokenizer: Tokenizer | None) -> Any:
    """Renders messages with the model's chat template; None: prompts are sent unchanged."""
    if flags.skip_chat_template or tokenizer is None:
        return None
    from galley.chat.templates import ChatRenderer

    renderer = ChatRenderer.of(tokenizer)
    return None if renderer is None else renderer.render


def _output_len(flags: DataFlags, entry: dict[str, Any], number: int) -> int:
    length_flag = flags.output_len or flags.custom_output_len
    if length_flag > 0:
        return length_flag
    length = entry.get("output_tokens")
    if not isinstance(length, int) or length < 1:
        raise ConfigError(
            f"line {number} has no `output_tokens`, which --custom-output-len {length_flag} needs.",
            field="custom_output_len",
        )
    return length


def read_lines(path: str | None) -> list[dict[str, Any]]:
    """Read the objects of a JSONL file. Raises ConfigError naming the line."""
    if path is None:
        raise ConfigError("--dataset-name custom needs --dataset-path.", field="dataset_path")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"--dataset-path {path}: {e}.", field="dataset_path") from e
    entries = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict) or not ("prompt" in entry or "messages" in entry):
            raise ConfigError(
                f"--dataset-path {path}, line {number}: an object with `prompt` or `messages` "
                "is expected.",
                field="dataset_path",
            )
        entries.append(entry)
    return entries
