"""Rules that end a sequence: an open set, one file each.

To add a rule: write a class with `ending` in its own file and add its constructor to `END_RULES`.
"""

from __future__ import annotations

from collections.abc import Callable

from galley.request import Request
from galley.scheduler.end_rules.length import LengthLimit
from galley.scheduler.end_rules.prompt_computed import PromptComputed
from galley.scheduler.end_rules.repetition import Repetition
from galley.scheduler.end_rules.rule import Ending, EndRule
from galley.scheduler.end_rules.stop_tokens import StopTokens

#: In order: the first rule that ends a sequence gives the reason.
END_RULES: tuple[Callable[[Request, int], EndRule | None], ...] = (
    StopTokens.of,
    LengthLimit.of,
    Repetition.of,
    PromptComputed.of,
)


def end_rules(request: Request, max_model_len: int) -> list[EndRule]:
    """The rules that may end this request."""
    return [rule for make in END_RULES if (rule := make(request, max_model_len)) is not None]


__all__ = [
    "EndRule",
    "Ending",
    "LengthLimit",
    "PromptComputed",
    "Repetition",
    "StopTokens",
    "end_rules",
]
