"""Token by token to text: each push returns what may be shown now.

Shown is all text but the longest suffix that is an incomplete character or a proper prefix of a
stop string. The pieces shown, with what `finish` returns, are the text that `Tokenizer.decode`
gives for all tokens at once.

A stream is made by `Tokenizer.stream`; which one depends on the tokenizer's decoder:

    PieceStream    bytes per token, one look-up a token
    WindowStream   the library decodes the last few tokens with and without the new one
    StopStream     around either, where there are stop strings
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Callable, Sequence
from typing import Protocol

from galley.text.pieces import PieceDecoder
from galley.text.stop import StopMatcher

#: A character has at most four bytes, so a decoder that still shows "�" after this many tokens
#: shows a real one.
MAX_INCOMPLETE_TOKENS = 6
#: Tokens of the prompt that the library sees before the first new one.
CONTEXT_TOKENS = 5


class TextStream(Protocol):
    """Text of one sequence as it grows.

    Attributes:
        matched: the stop string that was completed, if one was.
    """

    matched: str | None

    def push(self, token_id: int) -> str:
        """The text that may be shown after this token."""
        ...

    def finish(self) -> str:
        """The text that was held back, at the end of the sequence."""
        ...


class PieceStream:
    """For decoders that are a concatenation of bytes."""

    __slots__ = ("_pending", "_pieces", "_simple", "_strip", "_unclaimed", "matched")

    def __init__(
        self, decoder: PieceDecoder, prompt_token_ids: Sequence[int], skip_special_tokens: bool
    ) -> None:
        self.matched: str | None = None
        self._pieces = decoder.visible if skip_special_tokens else decoder.all
        self._pending = self._cut_off_bytes(prompt_token_ids)
        #: Pending bytes are the prompt's; they count only if the first new byte continues them.
        self._unclaimed = bool(self._pending)
        self._strip = decoder.strips_space and not any(
            self._pieces[token_id] for token_id in reversed(prompt_token_ids)
        )
        self._simple = not self._pending and not self._strip

    def push(self, token_id: int) -> str:
        piece = self._pieces[token_id]
        if self._simple and piece.__class__ is str:
            return piece
        return self._assemble(piece) if piece else ""

    def finish(self) -> str:
        pending, self._pending = self._pending, b""
        return "" if self._unclaimed else pending.decode(errors="replace")

    def _assemble(self, piece: str | bytes) -> str:
        raw = piece if isinstance(piece, bytes) else piece.encode()
        if self._unclaimed:
            self._unclaimed = False
            if not 0x80 <= raw[0] < 0xC0:
                self._pending = b""
        raw = self._pending + raw
        text, used = utf_8_decode(raw, "replace", False)
        self._pending = raw[used:]
        if self._strip:
            self._strip = False
            text = text.removeprefix(" ")
        self._simple = not self._pending
        return text

    def _cut_off_bytes(self, prompt_token_ids: Sequence[int]) -> bytes:
        """The bytes of an unfinished character at the prompt's end."""
        raw = b""
        for token_id in prompt_token_ids[:-5:-1]:
            piece = self._pieces[token_id]
            if isinstance(piece, str):
                if piece:
                    break
                continue
            raw = piece + raw
        return raw[utf_8_decode(raw, "replace", False)[1] :]


class WindowStream:
    """For any other decoder.

        tokens      … a b | c d | e        text shown ends after d
                      ^     ^     ^
                 window[0]  shown  the new token

    The text of a b c d e minus the text of a b c d is what e adds, spaces and all.
    """

    __slots__ = ("_added", "_decode", "_last_added", "_shown", "_window", "matched")

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        prompt_token_ids: Sequence[int],
        raw_added: dict[int, str],
    ) -> None:
        """
        Args:
            decode: the library's, special tokens skipped or not.
            raw_added: added token id → its text, to be shown bare after another added one;
                {} where spaces between them are wanted.
        """
        self.matched: str | None = None
        self._decode = decode
        self._added = raw_added
        self._window = list(prompt_token_ids[-CONTEXT_TOKENS:])
        self._shown = len(self._window)
        self._last_added = False

    def push(self, token_id: int) -> str:
        after_added, self._last_added = self._last_added, token_id in self._added
        self._window.append(token_id)
        text = self._updates()
        if text.endswith("�") and len(self._window) - self._shown <= MAX_INCOMPLETE_TOKENS:
            return ""
        self._advance()
        return self._added[token_id] if after_added and self._last_added else text

    def finish(self) -> str:
        text = self._updates()
        self._advance()
        return text

    def _updates(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._shown])) :]

    def _advance(self) -> None:
        keep = max(0, self._shown - CONTEXT_TOKENS)
        del self._window[:keep]
        self._shown = len(self._window)


class StopStream:
    """A stream that ends at a stop string."""

    __slots__ = ("_inner", "_matcher", "_min_tokens", "_num_tokens", "matched")

    def __init__(self, inner: TextStream, matcher: StopMatcher, min_tokens: int = 0) -> None:
        """`min_tokens`: a stop string that this many first tokens complete does not count."""
        self._inner = inner
        self._matcher = matcher
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self.matched: str | None = None

    def push(self, token_id: int) -> str:
        self._num_tokens += 1
        text = self._inner.push(token_id)
        return self._match(text) if text else ""

    def finish(self) -> str:
        """The text that was held back. It may complete a stop string (by the "�" of an unfinished
        character), so check `matched` afterwards."""
        shown = self._match(self._inner.finish())
        return shown + self._matcher.finish()

    def _match(self, text: str) -> str:
        shown = self._matcher.push(text, self._num_tokens > self._min_tokens)
        self.matched = self._matcher.matched
        return shown
