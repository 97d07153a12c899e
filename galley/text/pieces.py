"""The text of each token, for decoders where it does not depend on neighbours.

Byte-level BPE and SentencePiece decoders are concatenations: every token has its bytes, and a
text is the bytes of its tokens read as UTF-8. Tables by token id are filled as tokens occur, so
that the work per token is one look-up. Other decoders (WordPiece …) have no such table.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from galley.text.byte_level import token_to_bytes

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceTable(dict[int, str | bytes]):
    """token id → its text, or its bytes where they are not whole characters.

    Filled on demand; an id outside the vocabulary and, in the table without special tokens, a
    special one add "".
    """

    def __init__(self, make: Callable[[int], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, token_id: int) -> str | bytes:
        raw = self._make(token_id)
        try:
            piece: str | bytes = raw.decode()
        except UnicodeDecodeError:
            piece = raw
        self[token_id] = piece
        return piece


class PieceDecoder:
    """The two tables of a tokenizer and its one rule about neighbours.

    Attributes:
        all, visible: with and without special tokens.
        strips_space: the first piece of a text loses one leading space.
    """

    def __init__(
        self,
        to_bytes: Callable[[str], bytes],
        token_of: Callable[[int], str | None],
        special: frozenset[int],
        strips_space: bool,
    ) -> None:
        self._to_bytes = to_bytes
        self._token_of = token_of
        self._special = special
        self.strips_space = strips_space
        self.all = PieceTable(self.token_bytes)
        self.visible = PieceTable(self._visible_bytes)

    def token_bytes(self, token_id: int) -> bytes:
        token = self._token_of(token_id)
        return b"" if token is None else self._to_bytes(token)

    def _visible_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._special else self.token_bytes(token_id)


def piece_rule(decoder: Any) -> tuple[Callable[[str], bytes], bool] | None:
    """(token text → bytes, whether a text loses its first space), or None if the library's
    decoder is not a concatenation."""
    if decoder is None:
        return None
    spec = json.loads(decoder.__getstate__())
    steps = spec["decoders"] if spec.get("type") == "Sequence" else [spec]
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return token_to_bytes, False
    if kinds in (["Replace", "ByteFallback", "Fuse"], ["Replace", "ByteFallback", "Fuse", "Strip"]):
        return _sentencepiece_rule(steps)
    return None


def _sentencepiece_rule(steps: list[dict[str, Any]]) -> tuple[Callable[[str], bytes], bool] | None:
    replace = steps[0]
    old = replace.get("pattern", {}).get("String")
    new = replace.get("content")
    strip = steps[3] if len(steps) == 4 else None
    if not old or not isinstance(new, str):
        return None
    if strip is not None and (strip.get("content"), strip.get("start"), strip.get("stop")) != (
        " ",
        1,
        0,
    ):
        return None

    def to_bytes(token: str) -> bytes:
        token = token.replace(old, new)
        match = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else token.encode()

    return to_bytes, strip is not None
