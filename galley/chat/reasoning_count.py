"""Counts the tokens of reasoning, wherever the text of an answer is cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence


class ReasoningCount:
    """A token counts if its first byte is in text that the parser has read as reasoning; the
    markers around it do not count.

    Args:
        width: the number of bytes that a token adds to the text.

    Attributes:
        tokens: counted so far.
    """

    def __init__(self, width: Callable[[int], int]) -> None:
        self.tokens = 0
        self._width = width
        self._end = 0
        self._starts: deque[int] = deque()
        self._spans: deque[tuple[int, int]] = deque()

    def take(self, token_ids: Sequence[int]) -> None:
        """The next tokens of the answer."""
        for token_id in token_ids:
            self._starts.append(self._end)
            self._end += self._width(token_id)

    def reasoning(self, start: int, end: int) -> None:
        """Bytes `start` to `end` of the text are reasoning; what comes next lies behind them."""
        self._spans.append((start, end))

    def settle(self, read: int | None) -> None:
        """The parser has read so many bytes; None: all."""
        starts, spans = self._starts, self._spans
        while starts and (read is None or starts[0] < read):
            start = starts.popleft()
            while spans and spans[0][1] <= start:
                spans.popleft()
            self.tokens += bool(spans) and spans[0][0] <= start
