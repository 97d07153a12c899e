"""Fill-in-the-middle: the tokens that mark a prefix, a suffix and the middle to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: (prefix, suffix, middle) as vocabularies spell them.
KNOWN: tuple[tuple[str, str, str], ...] = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ("<|prefix|>", "<|suffix|>", "<|middle|>"),
)


@dataclass(frozen=True)
class FimTokens:
    """Token ids of the three marks."""

    prefix: int
    suffix: int
    middle: int

    def prompt(self, prefix: list[int], suffix: list[int]) -> list[int]:
        """Token ids that ask for the middle:  PREFIX prefix SUFFIX suffix MIDDLE."""
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle]


def find_fim(
    token_to_id: Callable[[str], int | None], declared: dict[str, int]
) -> FimTokens | None:
    """The marks that the checkpoint declares or that its vocabulary spells in a known way."""
    if declared.keys() >= {"prefix", "suffix", "middle"}:
        return FimTokens(declared["prefix"], declared["suffix"], declared["middle"])
    for names in KNOWN:
        ids = [token_to_id(name) for name in names]
        if None not in ids:
            prefix, suffix, middle = (i for i in ids if i is not None)
            return FimTokens(prefix, suffix, middle)
    return None
