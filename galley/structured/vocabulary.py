"""A backend's view of the model's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from galley.text import Tokenizer


class Vocabulary(msgspec.Struct, frozen=True, eq=False):
    """The tokens of a model.

    Attributes:
        size: of the logits; ids above the tokenizer's are never allowed.
        tokens: [size] bytes that each token adds to a text; of special tokens their spelling, of
            unknown ids b"".
        special_ids: tokens that no text is made of.
        end_ids: tokens that may end a text; the first is the tokenizer's own.
        encode: text → ids, without special tokens around it.
    """

    size: int
    tokens: list[bytes]
    special_ids: frozenset[int]
    end_ids: tuple[int, ...]
    encode: Callable[[str], list[int]]


def vocabulary_of(tokenizer: Tokenizer, size: int, end_ids: tuple[int, ...]) -> Vocabulary:
    """The vocabulary of a model whose logits have `size` entries and that ends at `end_ids`."""
    special = tokenizer.special_ids
    tokens = [
        (tokenizer.id_to_token(i) or "").encode() if i in special else tokenizer.token_bytes(i)
        for i in range(min(size, tokenizer.vocab_size))
    ]
    tokens += [b""] * (size - len(tokens))

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, False)

    unused = [i for i, token in enumerate(tokens) if not token]
    return Vocabulary(size, tokens, frozenset((*special, *unused)), end_ids, encode)
