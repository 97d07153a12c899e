"""Prompts of random tokens: no prefix cache hits; lengths may vary."""

from __future__ import annotations

import json

import numpy as np

from galley.cli.bench.datasets import DataFlags, Sample, needs
from galley.errors import ConfigError
from galley.text.tokenizer import Tokenizer

_TRIES = 10


def load(flags: DataFlags, tokenizer: Tokenizer | None, rng: np.random.Generator) -> list[Sample]:
    tokens = needs(tokenizer, "random")
    by_input, by_output = range_ratios(flags.random_range_ratio)
    input_lens = lengths(flags.input_len or flags.random_input_len, by_input, flags, rng)
    output_lens = lengths(flags.output_len or flags.random_output_len, by_output, flags, rng)
    vocabulary = ordinary_tokens(tokens)
    prefix = rng.choice(vocabulary, flags.random_prefix_len).tolist()
    samples = []
    for input_len, output_len in zip(input_lens, output_lens, strict=True):
        total = len(prefix) + int(input_len)
        text = random_text(tokens, vocabulary, prefix, total, rng)
        samples.append(Sample(text, total, int(output_len)))
    return samples


def range_ratios(text: str) -> tuple[float, float]:
    """Relative variation of input and output lengths. Raises ConfigError."""
    try:
        value = json.loads(text)
        ratios = (value["input"], value["output"]) if isinstance(value, dict) else (value, value)
        by_input, by_output = (float(ratio) for ratio in ratios)
    except (ValueError, KeyError, TypeError):
        by_input = by_output = -1.0
    if not (0 <= by_input < 1 and 0 <= by_output < 1):
        raise ConfigError(
            '--random-range-ratio takes a number from 0 to below 1, or {"input": X, "output": Y}; '
            f"got {text!r}.",
            field="random_range_ratio",
        )
    return by_input, by_output


def lengths(mean: int, ratio: float, flags: DataFlags, rng: np.random.Generator) -> np.ndarray:
    """int [num_prompts], uniform in mean ± ratio · mean, at least 1."""
    low, high = int(mean * (1 - ratio)), int(np.ceil(mean * (1 + ratio)))
    return rng.integers(max(low, 1), max(high, 1) + 1, flags.num_prompts)


def ordinary_tokens(tokenizer: Tokenizer) -> np.ndarray:
    """Ids of tokens that represent text, without special tokens."""
    return np.setdiff1d(np.arange(tokenizer.vocab_size), sorted(tokenizer.added_tokens))


def random_text(
    tokenizer: Tokenizer,
    vocabulary: np.ndarray,
    prefix: list[int],
    length: int,
    rng: np.random.Generator,
) -> str:
    """A text that starts with the tokens `prefix` and encodes to `length` tokens.

    Concatenated random tokens often re-encode to a different number of tokens: truncate or pad
    until the length is right. After a few tries the nearest text is used.
    """
    ids = prefix + rng.choice(vocabulary, length - len(prefix)).tolist()
    text = tokenizer.decode(ids)
    for _ in range(_TRIES):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == length:
            break
        ids = ids[:length] + rng.choice(vocabulary, max(length - len(ids), 0)).tolist()
        text = tokenizer.decode(ids)
    return text
