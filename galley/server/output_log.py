"""--enable-log-outputs: logs each answer once it is complete."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from galley.messages import Outputs, Ready
from galley.request import FinishReason, Request

if TYPE_CHECKING:
    from galley.frontend.output_processor import RequestState, Sequence

logger = logging.getLogger(__name__)


class OutputLog:
    """A `RequestObserver` that logs the outputs of the requests it follows.

    Args:
        longest: most characters of an answer; None: all.
    """

    def __init__(self, longest: int | None) -> None:
        self._longest = longest
        self._followed: dict[int, Sequence] = {}

    def follow(self, state: RequestState) -> None:
        """Log the answers of this request when they end."""
        for sequence in state.sequences:
            self._followed[sequence.request.handle] = sequence

    # ------------------------------------------------------------------ RequestObserver

    def ready(self, message: Ready) -> None:
        """Nothing to log."""

    def added(self, request: Request, index: int, n: int) -> None:
        """`follow` is called after it."""

    def outputs(self, message: Outputs) -> None:
        """Answers are logged whole."""

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        sequence = self._followed.pop(handle, None)
        if sequence is not None:
            logger.info(
                "Generated response %s: output: %r, tokens: %d, finish_reason: %s",
                sequence.request.request_id,
                "".join(sequence.pieces)[: self._longest],
                num_tokens,
                reason,
            )
