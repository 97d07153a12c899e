"""Windows of real English that encode to exactly the requested number of tokens.

Draft acceptance, prefix caches and tokenizers behave on real text as they do for users, and exact
lengths make engines comparable. The text is a book shipped with Galley, or a file.
"""

from __future__ import annotations

import gzip
import random
from importlib.resources import files
from pathlib import Path

import numpy as np

from galley.cli.bench.datasets import DataFlags, Sample, needs
from galley.errors import ConfigError
from galley.text.tokenizer import Tokenizer

#: Windows start at least this many tokens before the end of the text.
_MARGIN = 5000


def load(flags: DataFlags, tokenizer: Tokenizer | None, rng: np.random.Generator) -> list[Sample]:
    corpus = Corpus(read_text(flags.dataset_path), needs(tokenizer, "text"))
    own = flags.input_len or flags.text_input_len
    texts = corpus.prompts(flags.num_prompts, flags.text_prefix_len, own, flags.seed)
    output_len = flags.output_len or flags.text_output_len
    return [Sample(text, flags.text_prefix_len + own, output_len) for text in texts]


def read_text(path: str | None = None) -> str:
    """Read the file's text, or the book shipped with Galley. Raises ConfigError."""
    if path is None:
        packed = files("galley.cli.bench").joinpath("data/opticks.txt.gz").read_bytes()
        return gzip.decompress(packed).decode()
    try:
        return Path(path).read_text(encoding="utf-8", errors="ignore")
    except OSError as e:
        raise ConfigError(f"--dataset-path {path}: {e.strerror}.", field="dataset_path") from e


class Corpus:
    """A text with the character offset of each of its tokens.

    text   O p t i c k s :   o r   …       whitespace runs are single spaces
    edge   0       4     7 8   10          token i is text[edge[i]:edge[i + 1]]
    """

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.text = " ".join(text.split())
        pieces = [tokenizer.token_bytes(i) for i in self._encode(self.text)]
        data = b"".join(pieces)
        if data.decode(errors="replace").strip() != self.text:
            raise ConfigError(
                "the tokenizer changes the text, so that windows of exact length cannot be cut; "
                "choose another --dataset-name.",
                field="dataset_name",
            )
        self.edge = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
        self.data = data

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def count(self, text: str) -> int:
        return len(self._encode(text))

    def window(self, start: int, length: int) -> tuple[str, int]:
        """The first window at or after token `start` that begins at a word and encodes, by
        itself, to `length` tokens; and the token after it. Wraps around at the end.

        Raises ConfigError if the text has fewer tokens.
        """
        last = len(self.edge) - 1
        if length + 1 >= last:
            raise ConfigError(
                f"the text has {last} tokens, too few for {length}.", field="input_len"
            )
        token = start
        while True:
            if token + length + 1 >= last:
                token = 0
            begin, end = self.edge[token], self.edge[token + length]
            if token == 0 or self.data[begin : begin + 1] == b" ":
                text = self.data[begin:end].decode(errors="replace").removeprefix(" ")
                if text and self.count(text) == length:
                    return text, token + length
            token += 1

    def prompts(self, count: int, prefix_len: int, own_len: int, seed: int) -> list[str]:
        """`count` prompts: a common prefix of `prefix_len` tokens, then `own_len` distinct ones.
        The same seed gives the same prompts."""
        last = len(self.edge) - 1
        token = random.Random(seed).randrange(min(1000, last // 4), max(last - _MARGIN, last // 2))
        prefix = ""
        if prefix_len:
            prefix, token = self.window(token, prefix_len)
        prompts: list[str] = []
        while len(prompts) < count:
            own, after = self.window(token, own_len)
            whole = f"{prefix} {own}" if prefix else own
            if self.count(whole) == prefix_len + own_len:
                prompts.append(whole)
                token = after
            else:
                token = after + 1
        return prompts
