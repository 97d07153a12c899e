"""Datasets: prompts and lengths of requests. An open set of files, listed in `DATASETS`.

A dataset is a file with `load(flags, tokenizer, rng) -> list[Sample]`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from galley.errors import ConfigError

if TYPE_CHECKING:
    from galley.text.tokenizer import Tokenizer

#: name → module with `load`.
DATASETS = {
    "random": "galley.cli.bench.datasets.random_tokens",
    "sharegpt": "galley.cli.bench.datasets.sharegpt",
    "prefix_repetition": "galley.cli.bench.datasets.prefix_repetition",
    "custom": "galley.cli.bench.datasets.custom",
    "text": "galley.cli.bench.datasets.text",
}


@dataclass(frozen=True)
class Sample:
    """A request to send. Lengths are in tokens."""

    prompt: str
    prompt_len: int
    output_len: int
    messages: list[dict[str, Any]] | None = None
    """A conversation, for chat backends; None: the prompt is the user's message."""
    client: int = 0


@dataclass(frozen=True)
class DataFlags:
    """Requests"""

    dataset_name: Literal["random", "sharegpt", "prefix_repetition", "custom", "text"] = "random"
    """random: random tokens. sharegpt: a JSON file of conversations. prefix_repetition: groups of
    prompts with a common beginning. custom: a JSONL file of prompts. text: windows of real English
    of exact lengths, from a book that comes with Galley, or from --dataset-path."""
    dataset_path: str | None = None
    """File of the sharegpt, custom and text datasets."""
    num_prompts: int = 1000
    """Number of requests."""
    seed: int = 0
    """Random seed of prompts, lengths and arrivals."""
    input_len: int | None = None
    """Prompt tokens, for any dataset that generates its prompts."""
    output_len: int | None = None
    """Tokens to generate, for any dataset."""
    disable_shuffle: bool = False
    """Use a file's entries in order."""
    no_oversample: bool = False
    """Do not repeat entries when a file has fewer than --num-prompts."""
    skip_chat_template: bool = False
    """custom: send prompts to the completions API as they are."""
    custom_output_len: int = 256
    """custom: tokens to generate; -1 takes each line's `output_tokens`."""
    sharegpt_output_len: int | None = None
    """sharegpt: tokens to generate; default: as long as the file's answer."""
    random_input_len: int = 1024
    """random: prompt tokens."""
    random_output_len: int = 128
    """random: tokens to generate."""
    random_range_ratio: str = "0.0"
    """random: lengths vary by ± this share (0 … 1), or JSON {"input": X, "output": Y}."""
    random_prefix_len: int = 0
    """random: tokens of a prefix common to all prompts, in addition to --random-input-len."""
    prefix_repetition_prefix_len: int = 256
    """prefix_repetition: tokens of each prefix."""
    prefix_repetition_suffix_len: int = 256
    """prefix_repetition: tokens after the prefix, unique to each prompt."""
    prefix_repetition_num_prefixes: int = 10
    """prefix_repetition: number of prefixes."""
    prefix_repetition_output_len: int = 128
    """prefix_repetition: tokens to generate."""
    text_prefix_len: int = 0
    """text: tokens of a prefix common to all prompts."""
    text_input_len: int = 128
    """text: tokens after the prefix, unique to each prompt."""
    text_output_len: int = 128
    """text: tokens to generate."""


def load_samples(flags: DataFlags, tokenizer: Tokenizer | None) -> list[Sample]:
    """The requests described by the flags: `num_prompts`, or fewer with --no-oversample.

    Raises:
        ConfigError: a flag or file is invalid or yields no request.
    """
    if flags.num_prompts < 1:
        raise ConfigError("--num-prompts must be at least 1.", field="num_prompts")
    makes_prompts = flags.dataset_name in ("random", "prefix_repetition")
    if makes_prompts and flags.dataset_path is not None:
        raise ConfigError(
            f"--dataset-name {flags.dataset_name} reads no file; for {flags.dataset_path} choose "
            "sharegpt, custom or text.",
            field="dataset_path",
        )
    module = importlib.import_module(DATASETS[flags.dataset_name])
    rng = np.random.default_rng(flags.seed)
    samples: list[Sample] = module.load(flags, tokenizer, rng)
    if not samples:
        raise ConfigError(
            f"{flags.dataset_path or flags.dataset_name}: no usable prompts.", field="dataset_path"
        )
    return samples


def with_clients(samples: list[Sample], num_clients: int) -> list[Sample]:
    """The same requests, assigned to clients round-robin."""
    return [replace(sample, client=i % num_clients) for i, sample in enumerate(samples)]


def needs(tokenizer: Tokenizer | None, name: str) -> Tokenizer:
    """Return the tokenizer. Raises ConfigError if there is none."""
    if tokenizer is None:
        raise ConfigError(
            f"--dataset-name {name} needs a tokenizer: leave out --skip-tokenizer-init.",
            field="skip_tokenizer_init",
        )
    return tokenizer


def count_tokens(tokenizer: Tokenizer | None, text: str) -> int:
    """Number of tokens in a text, or of words without a tokenizer."""
    if tokenizer is None:
        return len(text.split())
    return len(tokenizer.encode(text, add_special_tokens=False))


def pick(entries: list[Sample], flags: DataFlags, rng: np.random.Generator) -> list[Sample]:
    """`num_prompts` of a file's entries, shuffled, and repeated if there are too few."""
    if not entries:
        return []
    order = np.arange(len(entries)) if flags.disable_shuffle else rng.permutation(len(entries))
    count = flags.num_prompts
    if flags.no_oversample:
        count = min(count, len(entries))
    return [entries[order[i % len(order)]] for i in range(count)]
