"""SentencePiece vocabularies: a BPE of the `tokenizers` library from pieces and scores.

The same data comes in two containers: GGUF metadata (`tokenizer.ggml.model` = "llama") and a
`tokenizer.model` file, of whose protobuf only the needed fields are read.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers

from galley.errors import ModelError
from galley.text.tokenizer_spec import add_tokens

SPACE = "▁"


class TokenKind(enum.IntEnum):
    """Token types, numbered alike in GGUF and in SentencePiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_MERGEABLE = (TokenKind.NORMAL, TokenKind.UNUSED)


@dataclass
class SentencePieceVocab:
    """A SentencePiece vocabulary.

    Attributes:
        tokens, scores, kinds: parallel, by token id.
        add_space_prefix: a text begins with a space of its own.
        squeeze_spaces: runs of spaces count as one.
        charsmap: compiled Unicode normalisation, b"" for none.
        merges: the pairs to merge, best first; None = those that the scores imply.
        unigram: merge by likelihood of the whole, not by score of each merge.
        bos_id, eos_id, unk_id, pad_id: -1 or None where there is none.
    """

    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    add_space_prefix: bool = True
    squeeze_spaces: bool = False
    charsmap: bytes = b""
    unigram: bool = False
    merges: list[tuple[str, str]] | None = None
    bos_id: int | None = 1
    eos_id: int | None = 2
    unk_id: int | None = 0
    pad_id: int | None = None

    def token(self, token_id: int | None) -> str | None:
        """The text of an id that may be absent or out of range."""
        if token_id is None or not 0 <= token_id < len(self.tokens):
            return None
        return self.tokens[token_id]


def build(pieces: SentencePieceVocab) -> tokenizers.Tokenizer:
    """The library tokenizer of a vocabulary. Raises what the library raises for a broken one."""
    unk = pieces.token(pieces.unk_id)
    if pieces.unigram:
        scored = list(zip(pieces.tokens, pieces.scores, strict=True))
        model: models.Model = models.Unigram(
            scored, pieces.unk_id, byte_fallback=_has_bytes(pieces)
        )
    else:
        vocab = {token: i for i, token in enumerate(pieces.tokens)}
        model = models.BPE(
            vocab=vocab,
            merges=merges_by_score(pieces) if pieces.merges is None else pieces.merges,
            unk_token=unk,
            fuse_unk=True,
            byte_fallback=_has_bytes(pieces),
        )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(_normalizers(pieces))
    tail = [decoders.Strip(" ", 1, 0)] if pieces.add_space_prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *tail]
    )
    of_kind: dict[int, list[str]] = {}
    for token, kind in zip(pieces.tokens, pieces.kinds, strict=True):
        of_kind.setdefault(kind, []).append(token)
    control = of_kind.get(TokenKind.UNKNOWN, []) + of_kind.get(TokenKind.CONTROL, [])
    add_tokens(tokenizer, control, special=True)
    add_tokens(tokenizer, of_kind.get(TokenKind.USER_DEFINED, []), special=False)
    return tokenizer


def merges_by_score(pieces: SentencePieceVocab) -> list[tuple[str, str]]:
    """The merges that a scored vocabulary implies, best first.

    SentencePiece merges the neighbours whose union has the highest score. The library wants pairs
    in order: every way to cut a piece into two pieces, by the piece's score.
    """
    numbers = {
        token: i
        for i, (token, kind) in enumerate(zip(pieces.tokens, pieces.kinds, strict=True))
        if kind in _MERGEABLE
    }
    merges: list[tuple[str, str]] = []
    unions: list[int] = []
    prefixes: list[str] = []  # the pieces that the current one begins with, shortest first
    for token in sorted(numbers):
        while prefixes and not token.startswith(prefixes[-1]):
            prefixes.pop()
        for left in prefixes:
            right = token[len(left) :]
            if right in numbers:
                merges.append((left, right))
                unions.append(numbers[token])
        prefixes.append(token)
    union = np.array(unions, np.intp)
    left_size, right_size = (
        np.fromiter((len(merge[side]) for merge in merges), np.intp, len(merges)) for side in (0, 1)
    )
    score = np.array(pieces.scores, np.float64)[union]
    order = np.lexsort((union, -right_size, -left_size, -score))
    return [merges[i] for i in order.tolist()]


def read_model_file(path: Path) -> SentencePieceVocab:
    """The vocabulary of a tokenizer.model. Raises ModelError naming the file and what is wrong."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from None
    pieces = SentencePieceVocab()
    try:
        for number, value in _fields(raw):
            if number == 1 and isinstance(value, bytes):
                _read_piece(value, pieces)
            elif number == 2 and isinstance(value, bytes):
                _read_trainer(value, pieces)
            elif number == 3 and isinstance(value, bytes):
                _read_normalizer(value, pieces)
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise ModelError(f"{path}: not a SentencePiece model: {error}") from None
    if not pieces.tokens:
        raise ModelError(f"{path}: not a SentencePiece model: it has no pieces")
    return pieces


def _normalizers(pieces: SentencePieceVocab) -> list[normalizers.Normalizer]:
    steps: list[normalizers.Normalizer] = []
    if pieces.charsmap:
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.squeeze_spaces:
        steps.append(normalizers.Strip(left=True, right=True))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if pieces.add_space_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _has_bytes(pieces: SentencePieceVocab) -> bool:
    return TokenKind.BYTE in pieces.kinds


def _read_piece(message: bytes, pieces: SentencePieceVocab) -> None:
    token, score, kind = "", 0.0, int(TokenKind.NORMAL)
    for number, value in _fields(message):
        if number == 1 and isinstance(value, bytes):
            token = value.decode()
        elif number == 2 and isinstance(value, bytes):
            score = struct.unpack("<f", value)[0]
        elif number == 3 and isinstance(value, int):
            kind = value
    pieces.tokens.append(token)
    pieces.scores.append(score)
    pieces.kinds.append(kind)


def _read_trainer(message: bytes, pieces: SentencePieceVocab) -> None:
    numbers = {number: value for number, value in _fields(message) if isinstance(value, int)}
    # model_type: 1 unigram (the default), 2 BPE, 3 word, 4 character
    pieces.unigram = numbers.get(3, 1) == 1
    if numbers.get(3, 1) not in (1, 2):
        raise OverflowError("only its unigram and BPE models are supported")
    ids = {number: _signed(numbers[number]) for number in (40, 41, 42, 43) if number in numbers}
    pieces.unk_id = ids.get(40, 0)
    pieces.bos_id = ids.get(41, 1)
    pieces.eos_id = ids.get(42, 2)
    pieces.pad_id = ids.get(43)


def _read_normalizer(message: bytes, pieces: SentencePieceVocab) -> None:
    fields = dict(_fields(message))
    pieces.add_space_prefix = bool(fields.get(3, 1))
    pieces.squeeze_spaces = bool(fields.get(4, 1))
    charsmap = fields.get(2, b"")
    pieces.charsmap = charsmap if isinstance(charsmap, bytes) else b""


def _signed(value: int) -> int:
    """Protobuf writes negative int32 as ten-byte two's complement."""
    return value - (1 << 64) if value >> 63 else value


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: varints as int, all else as bytes."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise IndexError(f"wire type {wire}")
        if size > end - at:
            raise IndexError("it is truncated")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise IndexError("a number of more than ten bytes")
