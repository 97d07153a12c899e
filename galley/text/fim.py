"""Fill-in-the-middle: the tokens that mark a prefix, a suffix and the middle to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spelling:
    """The three marks as vocabularies spell them, and their order.

    Attributes:
        middle: None = the middle follows without a mark.
        suffix_first: SUFFIX suffix PREFIX prefix MIDDLE; otherwise PREFIX prefix SUFFIX suffix
            MIDDLE.
    """

    prefix: str
    suffix: str
    middle: str | None
    suffix_first: bool = False


KNOWN: tuple[Spelling, ...] = (
    # Qwen2.5-Coder, CodeGemma; StarCoder, StarCoder2, Granite; SantaCoder.
    Spelling("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    Spelling("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    Spelling("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    # DeepSeek-Coder; CodeLlama.
    Spelling("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    Spelling("▁<PRE>", "▁<SUF>", "▁<MID>"),
    Spelling("<PRE>", "<SUF>", "<MID>"),
    # CodeGeeX 4; Seed-Coder.
    Spelling("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>", suffix_first=True),
    Spelling("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>", suffix_first=True),
    Spelling("<|prefix|>", "<|suffix|>", "<|middle|>"),
    # Codestral and other Mistral models.
    Spelling("[PREFIX]", "[SUFFIX]", None, suffix_first=True),
)


@dataclass(frozen=True)
class FimTokens:
    """Token ids of the marks, and their order as in `Spelling`."""

    prefix: int
    suffix: int
    middle: int | None
    suffix_first: bool = False

    def prompt(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """Token ids that ask for the middle."""
        before, after = [self.prefix, *prefix], [self.suffix, *suffix]
        marked = [*after, *before] if self.suffix_first else [*before, *after]
        return marked if self.middle is None else [*marked, self.middle]


def find_fim(
    token_to_id: Callable[[str], int | None], declared: dict[str, int]
) -> FimTokens | None:
    """The marks that the vocabulary spells in a known way, or else that the checkpoint declares.

    A declaration does not say in which order they stand.
    """
    for known in KNOWN:
        names = [name for name in (known.prefix, known.suffix, known.middle) if name is not None]
        ids = [i for i in map(token_to_id, names) if i is not None]
        if len(ids) == len(names):
            middle = None if known.middle is None else ids[2]
            return FimTokens(ids[0], ids[1], middle, known.suffix_first)
    if declared.keys() >= {"prefix", "suffix", "middle"}:
        return FimTokens(declared["prefix"], declared["suffix"], declared["middle"])
    return None
