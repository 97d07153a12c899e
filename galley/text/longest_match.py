"""Vocabularies of byte strings of which a text takes the longest that fits, as RWKV "world" has it.

The vocabulary's trie becomes one regular expression that splits a text into tokens.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from galley.errors import ModelError
from galley.text.byte_level import BYTE_OF_CHAR

#: In the folders of RWKV checkpoints; a line is a number, a string as Python writes it, its bytes.
RWKV_VOCABULARY = "rwkv_vocab_v20230424.txt"

_CHAR_OF_BYTE = {byte: char for char, byte in BYTE_OF_CHAR.items()}
#: Ends a token in the trie.
_END = ""
_ESCAPE = re.compile(rb"\\(x[0-9a-f]{2}|.)", re.DOTALL)
_ESCAPED = {b"t": b"\t", b"n": b"\n", b"r": b"\r"}


def build(tokens: Mapping[bytes, int], others: Mapping[str, int]) -> tokenizers.Tokenizer:
    """A tokenizer of `tokens`; `others` are ids by their names, which are matched only where they
    are added as special ones."""
    vocab = {"".join(map(_CHAR_OF_BYTE.__getitem__, token)): i for token, i in tokens.items()}
    trie: dict[str, Any] = {}
    for token in filter(None, vocab):
        node = trie
        for char in token:
            node = node.setdefault(char, {})
        node[_END] = {}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab={**others, **vocab}, unk_token=""))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = pre_tokenizers.Split(Regex(_pattern(trie)), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([to_bytes, split])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pattern(node: dict[str, Any]) -> str:
    """The longest of a trie's strings: at most one child of a node matches."""
    branches = [re.escape(char) + _pattern(child) for char, child in node.items() if char != _END]
    if not branches:
        return ""
    choice = branches[0] if len(branches) == 1 else f"(?:{'|'.join(branches)})"
    return f"(?:{choice})?" if _END in node else choice


def unescaped(text: str) -> bytes:
    """The bytes of a token that a GGUF file writes as Python writes bytes."""

    def one(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPED.get(code, code)

    return _ESCAPE.sub(one, text.encode())


def read_vocabulary(path: Path) -> dict[bytes, int]:
    """The tokens of an RWKV vocabulary file. Raises ModelError for a line that is none."""
    tokens: dict[bytes, int] = {}
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                token_id, rest = line.split(" ", 1)
                literal, size = rest.rsplit(" ", 1)
                token = ast.literal_eval(literal)
                token = token.encode() if isinstance(token, str) else token
                if not isinstance(token, bytes) or len(token) != int(size):
                    raise ValueError("not so many bytes")
                tokens[token] = int(token_id)
            except (ValueError, SyntaxError) as error:
                raise ModelError(f"{path}: line {number} is no token: {error}") from None
    return tokens
