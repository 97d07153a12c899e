"""Conversations from a ShareGPT-format file: the first question, and the length of its answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from galley.cli.bench.datasets import DataFlags, Sample, count_tokens, pick
from galley.errors import ConfigError
from galley.text.tokenizer import Tokenizer

#: vLLM's limits: shorter or longer entries are dropped.
_SHORTEST, _LONGEST_PROMPT, _LONGEST = 4, 1024, 2048


def load(flags: DataFlags, tokenizer: Tokenizer | None, rng: np.random.Generator) -> list[Sample]:
    entries = read_conversations(flags.dataset_path)
    answer_len = flags.output_len or flags.sharegpt_output_len
    samples = []
    for question, answer in entries:
        prompt_len = count_tokens(tokenizer, question)
        output_len = answer_len or count_tokens(tokenizer, answer)
        fits = _SHORTEST <= prompt_len <= _LONGEST_PROMPT and prompt_len + output_len <= _LONGEST
        if fits and (answer_len or output_len >= _SHORTEST):
            samples.append(Sample(question, prompt_len, output_len))
    return pick(samples, flags, rng)


def read_conversations(path: str | None) -> list[tuple[str, str]]:
    """(question, answer) of each conversation with two turns or more. Raises ConfigError."""
    if path is None:
        raise ConfigError("--dataset-name sharegpt needs --dataset-path.", field="dataset_path")
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"--dataset-path {path}: {e}.", field="dataset_path") from e
    if not isinstance(data, list):
        raise ConfigError(
            f"--dataset-path {path}: a list of conversations is expected.", field="dataset_path"
        )
    conversations = []
    for entry in data:
        turns = entry.get("conversations", entry.get("conversation", []))
        if len(turns) >= 2:
            conversations.append((str(turns[0]["value"]), str(turns[1]["value"])))
    return conversations
