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
from numpy.typing import NDArray
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


#: Plain numbers: members of an enum compare slowly.
_MERGEABLE = frozenset((int(TokenKind.NORMAL), int(TokenKind.UNUSED)))


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
    kinds = np.array(pieces.kinds)

    def of_kind(kind: TokenKind) -> list[str]:
        return [pieces.tokens[i] for i in np.flatnonzero(kinds == int(kind)).tolist()]

    control = of_kind(TokenKind.UNKNOWN) + of_kind(TokenKind.CONTROL)
    add_tokens(tokenizer, control, special=True)
    add_tokens(tokenizer, of_kind(TokenKind.USER_DEFINED), special=False)
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
    tokens = list(numbers)
    whole, left, right = _cuts(tokens)
    size = np.fromiter(map(len, tokens), np.intp, len(tokens))
    union = np.fromiter(numbers.values(), np.intp, len(tokens))[whole]
    score = np.array(pieces.scores, np.float64)[union]
    order = np.lexsort((union, -size[right], -size[left], -score))
    lefts, rights = (map(tokens.__getitem__, side[order].tolist()) for side in (left, right))
    return list(zip(lefts, rights, strict=True))


#: Odd, so that it has an inverse modulo 2**64.
_BASE = 0x9E3779B97F4A7C15


def _cuts(tokens: list[str]) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Every way to cut one of these distinct texts into two of them: numbers of the whole, of its
    left and of its right part.

    Parts are found by polynomial hashes modulo 2**64, of all parts at once. Two texts of one hash
    would make a merge that the library refuses: its result is no token.
    """
    size = np.fromiter(map(len, tokens), np.intp, len(tokens))
    end = np.cumsum(size)
    start, total = end - size, int(size.sum())
    letters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), np.uint32)
    power, inverse = (
        np.cumprod(np.r_[np.uint64(1), np.full(total, base, np.uint64)])
        for base in (_BASE, pow(_BASE, -1, 1 << 64))
    )
    sums = np.cumsum(np.r_[np.uint64(0), (letters.astype(np.uint64) + np.uint64(1)) * power[:-1]])

    def hashes(first: NDArray[np.intp], last: NDArray[np.intp]) -> NDArray[np.uint64]:
        """Of letters [first, last)."""
        return (sums[last] - sums[first]) * inverse[first]

    of_token = hashes(start, end)
    by_hash = np.argsort(of_token)
    known = of_token[by_hash]
    exists = np.zeros(1 << 22, np.bool_)  # of the upper bits of a hash: most parts are no token
    shift = np.uint64(42)
    exists[known >> shift] = True

    whole = np.repeat(np.arange(len(tokens)), np.maximum(size - 1, 0))
    first = np.cumsum(np.maximum(size - 1, 0))[whole] - np.maximum(size - 1, 0)[whole]
    cut = start[whole] + 1 + np.arange(len(whole)) - first
    for side in (0, 1):
        part = hashes(start[whole], cut) if side == 0 else hashes(cut, end[whole])
        found = exists[part >> shift]
        whole, cut = whole[found], cut[found]
    parts = hashes(start[whole], cut), hashes(cut, end[whole])
    left, right = (np.minimum(np.searchsorted(known, part), len(known) - 1) for part in parts)
    same = (known[left] == parts[0]) & (known[right] == parts[1])
    return whole[same], by_hash[left[same]], by_hash[right[same]]


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
        _check_charsmap(pieces.charsmap)
        steps.append(normalizers.Precompiled(pieces.charsmap))
    if pieces.squeeze_spaces:
        steps.append(normalizers.Strip(left=True, right=True))
        steps.append(normalizers.Replace(tokenizers.Regex(" {2,}"), " "))
    if pieces.add_space_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return [*steps, normalizers.Replace(" ", SPACE)]


def _check_charsmap(data: bytes) -> None:
    """Raise ValueError where the table at its beginning is longer than `data`: the library
    allocates as many bytes as the first number says before it reads them."""
    size = int.from_bytes(data[:4], "little")
    if size + 4 > len(data):
        raise ValueError(f"a charsmap of {len(data)} bytes has a table of {size} bytes")


def _has_bytes(pieces: SentencePieceVocab) -> bool:
    return int(TokenKind.BYTE) in pieces.kinds


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
