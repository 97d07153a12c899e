"""Groups of prompts with a common prefix, to exercise a prefix cache."""

from __future__ import annotations

import numpy as np

from galley.cli.bench.datasets import DataFlags, Sample, needs
from galley.cli.bench.datasets.random_tokens import ordinary_tokens, random_text
from galley.errors import ConfigError
from galley.text.tokenizer import Tokenizer


def load(flags: DataFlags, tokenizer: Tokenizer | None, rng: np.random.Generator) -> list[Sample]:
    tokens = needs(tokenizer, "prefix_repetition")
    num_prefixes = flags.prefix_repetition_num_prefixes
    if not 1 <= num_prefixes <= flags.num_prompts:
        raise ConfigError(
            f"--prefix-repetition-num-prefixes must be from 1 to --num-prompts "
            f"({flags.num_prompts}); got {num_prefixes}.",
            field="prefix_repetition_num_prefixes",
        )
    vocabulary = ordinary_tokens(tokens)
    prefix_len = flags.prefix_repetition_prefix_len
    total = prefix_len + flags.prefix_repetition_suffix_len
    output_len = flags.output_len or flags.prefix_repetition_output_len
    samples = []
    for group in range(num_prefixes):
        prefix = rng.choice(vocabulary, prefix_len).tolist()
        count = len(range(group, flags.num_prompts, num_prefixes))
        for _ in range(count):
            text = random_text(tokens, vocabulary, prefix, total, rng)
            samples.append(Sample(text, total, output_len))
    order = np.arange(len(samples)) if flags.disable_shuffle else rng.permutation(len(samples))
    return [samples[i] for i in order]
