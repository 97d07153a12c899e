"""Rules that restrict the next token of a row: an open set, one file each.

To add a rule: write a class with `allowed` in its own file and add its constructor to `MASK_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable

from galley.batch import NewRow
from galley.runner.mask_rules.allowed_ids import AllowedIds
from galley.runner.mask_rules.bad_words import BadWords
from galley.runner.mask_rules.min_tokens import MinTokens
from galley.runner.mask_rules.reasoning import ReasoningEnd
from galley.runner.mask_rules.rule import MaskRule, TokenSets, Words

MASK_RULES: tuple[Callable[[NewRow, TokenSets], MaskRule | None], ...] = (
    AllowedIds.of,
    MinTokens.of,
    BadWords.of,
    ReasoningEnd.of,
)


def mask_rules(row: NewRow, sets: TokenSets) -> list[MaskRule]:
    """The rules that restrict this row."""
    rules = (make(row, sets) for make in MASK_RULES)
    return [rule for rule in rules if rule is not None]


__all__ = ["MaskRule", "TokenSets", "Words", "mask_rules"]
