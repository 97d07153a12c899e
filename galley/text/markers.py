"""Markers in an answer, found however tokens spell them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from galley.request import TokenMarker

if TYPE_CHECKING:
    from galley.text.tokenizer import Tokenizer


def marker_of(tokenizer: Tokenizer, text: str) -> TokenMarker:
    """The marker `text`. One that is a token is that token; for any other, the whole vocabulary is
    gone through, which takes a tenth of a second.
    """
    ids = tuple(tokenizer.encode(text, False))
    if len(ids) == 1:
        return TokenMarker.of_tokens(ids)
    special = tokenizer.special_ids
    vocabulary = (
        (tokenizer.id_to_token(i) or "").encode() if i in special else tokenizer.token_bytes(i)
        for i in range(tokenizer.vocab_size)
    )
    search = _Search(text.encode())
    steps: list[tuple[int, int, int]] = []
    for token_id, piece in enumerate(vocabulary):
        if piece:
            steps += ((state, token_id, to) for state, to in search.steps(piece))
    return TokenMarker.of_steps(ids, len(text.encode()), steps)


class _Search:
    """The search for a text in bytes (Knuth, Morris and Pratt): a state is the number of its bytes
    that precede. A state above the length stands for a text with more behind it.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._back = [0] * (len(text) + 1)
        for end in range(2, len(text) + 1):
            self._back[end] = self._step(self._back[end - 1], text[end - 1])
        self._suffixes = tuple(text[i:] for i in range(1, len(text)))

    def _step(self, state: int, byte: int) -> int:
        while state and self._text[state] != byte:
            state = self._back[state]
        return state + 1 if self._text[state] == byte else 0

    def _run(self, state: int, piece: bytes) -> int:
        for place, byte in enumerate(piece):
            state = self._step(state, byte)
            if state == len(self._text):
                return state + (place + 1 < len(piece))
        return state

    def steps(self, piece: bytes) -> list[tuple[int, int]]:
        """(state before a token, state after it), where that is not 0 or what state 0 leads to."""
        text = self._text
        if not (text[0] in piece or piece in text or piece.startswith(self._suffixes)):
            return []
        first = self._run(0, piece)
        found = [(0, first)] if first else []
        for state in range(1, len(text)):
            if text[state] == piece[0] or self._back[state]:
                after = self._run(state, piece)
                if after != first:
                    found.append((state, after))
        return found
