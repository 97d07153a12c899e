"""Random walks over what a grammar allows: the quickest way to see what it lets through.

The vocabulary is the 256 bytes and an end token. A walk takes bytes that the grammar allows at
random until the grammar is satisfied; from some length on it prefers those that close what is open.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

END = 256
_CLOSING = [ord(c) for c in '"]},:']
_USUAL = set(b'abcxyz019 -._/:,"[]{}tfn@')


class _Bytes:
    """A tokenizer with a token for each byte."""

    eos_token_id = END
    bos_token_id = None
    tokens = [bytes([i]) for i in range(256)] + [b"<|end|>"]
    special_token_ids = [END]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


TOKENIZER = LLTokenizer(TokenizerWrapper(_Bytes()))


class NotCompiled(Exception):
    """llguidance refuses a grammar."""


class SpecialTokens:
    """A vocabulary of bytes and special tokens."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.ids = {name: END + 1 + i for i, name in enumerate(names)}
        self.native = TOKENIZER
        if names:
            spelling = _Bytes()
            spelling.tokens = [*_Bytes.tokens, *(name.encode() for name in names)]
            spelling.special_token_ids = [END, *self.ids.values()]
            self.native = LLTokenizer(TokenizerWrapper(spelling))

    def encode(self, text: str, spell: bool = False) -> list[int]:
        """Args: spell: special tokens are written as text."""
        if spell or not self.ids:
            return list(text.encode())
        names = "|".join(map(re.escape, self.ids))
        pieces = re.split(f"({names})", text)
        return [t for p in pieces for t in ([self.ids[p]] if p in self.ids else p.encode())]


class Grammar:
    """A grammar compiled by llguidance; raises NotCompiled."""

    def __init__(self, grammar: str, special: SpecialTokens | None = None) -> None:
        self._tokens = special or SpecialTokens()
        self._matcher = LLMatcher(self._tokens.native, grammar, log_level=0)
        if self._matcher.is_error():
            raise NotCompiled(self._matcher.get_error())

    def has_special(self, text: str) -> bool:
        return self._tokens.encode(text) != self._tokens.encode(text, spell=True)

    @classmethod
    def of_schema(cls, schema: Any) -> Grammar:
        return cls(LLMatcher.grammar_from_json_schema(schema))

    def accepts(self, text: str, spell: bool = False) -> bool:
        matcher = self._matcher.deep_copy()
        encoded = self._tokens.encode(text, spell)
        return matcher.try_consume_tokens(encoded) == len(encoded) and matcher.is_accepting()

    def walk(self, seed: int, usual: int = 120, most: int = 3000, closing: str = "") -> str | None:
        """A text that the grammar allows, or None if it has not ended after `most` bytes.

        Args:
            closing: characters that close something in another language than JSON.
        """
        rng = random.Random(seed)
        matcher = self._matcher.deep_copy()
        return walk(
            lambda: np.frombuffer(matcher.compute_bitmask(), np.uint8),
            matcher.consume_token,
            rng,
            usual,
            most,
            closing,
        )


def walk(
    mask: Callable[[], np.ndarray],
    consume: Callable[[int], bool],
    rng: random.Random,
    usual: int = 120,
    most: int = 3000,
    closing: str = "",
) -> str | None:
    """One walk. `mask` gives the allowed tokens as bits, `consume` takes one of them."""
    text = bytearray()
    while len(text) < most:
        bits = np.unpackbits(mask(), bitorder="little")[: END + 1]
        allowed = np.flatnonzero(bits).tolist()
        if not allowed:
            raise AssertionError(f"nothing is allowed after {bytes(text)!r}")
        close = len(text) > usual
        others = [ord(c) for c in closing if ord(c) in allowed]
        if close and END not in allowed and others and rng.random() < 0.7:
            token = rng.choice(others)
        else:
            token = _choice(allowed, rng, close)
        if token == END:
            return text.decode()
        assert consume(token)
        text.append(token)
    return None


def _choice(allowed: list[int], rng: random.Random, close: bool) -> int:
    if allowed[-1] == END and (len(allowed) == 1 or close or rng.random() < 0.4):
        return END
    if close or rng.random() < 0.3:
        closing = [token for token in _CLOSING if token in allowed]
        if closing and rng.random() < (0.95 if close else 0.7):
            # When it is time to end, what closes goes before what opens more.
            return closing[0] if close else rng.choice(closing)
    if close or rng.random() < 0.9:
        usual = [token for token in allowed if token in _USUAL]
        if usual:
            return rng.choice(usual)
    options = [token for token in allowed if token != END]
    return rng.choice(options or allowed)


def parsed(text: str) -> Any:
    return json.loads(text)
