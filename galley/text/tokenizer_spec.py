"""Tokenizers of the `tokenizers` library with their checkpoint's settings, and its errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, processors

from galley.errors import InvalidRequest, ModelError


@dataclass(frozen=True)
class TokenizerSpec:
    """A library tokenizer and what the checkpoint declares besides it.

    Attributes:
        tokenizer: the library's, with every special and added token.
        bos, eos, unk, pad: tokens as text, None where the checkpoint names none.
        chat_templates: name → jinja source; "default" is the plain one.
        fim: role ("prefix", "suffix", "middle") → token id, if the checkpoint declares it.
        ends: ids besides `eos` that end a text or a turn.
    """

    tokenizer: tokenizers.Tokenizer
    bos: str | None = None
    eos: str | None = None
    unk: str | None = None
    pad: str | None = None
    chat_templates: dict[str, str] = field(default_factory=dict)
    fim: dict[str, int] = field(default_factory=dict)
    ends: tuple[int, ...] = ()


@contextmanager
def library_errors(path: Path) -> Iterator[None]:
    """Turn what the library raises for a bad vocabulary or file into a ModelError naming `path`."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises plain Exception for bad input
        raise ModelError(f"{path}: no usable tokenizer: {error}") from None
    except BaseException as error:
        # A panic inside the library is raised as a BaseException.
        if type(error).__name__ != "PanicException":
            raise
        raise ModelError(f"{path}: no usable tokenizer: {error}") from None


@contextmanager
def encoding_errors() -> Iterator[None]:
    """Turn what the library raises for a text that its vocabulary cannot take into an
    InvalidRequest."""
    try:
        yield
    except TypeError:
        raise InvalidRequest("The text is not valid Unicode.", field="prompt") from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidRequest(
            f"The model's tokenizer cannot encode this text: {error}", field="prompt"
        ) from None


def add_tokens(tokenizer: tokenizers.Tokenizer, tokens: Sequence[str], special: bool) -> None:
    """Have `tokens` recognised as a whole wherever they stand in a text."""
    added = [AddedToken(token, special=special, normalized=False) for token in tokens if token]
    if special:
        tokenizer.add_special_tokens(added)
    else:
        tokenizer.add_tokens(added)


def surround(
    tokenizer: tokenizers.Tokenizer,
    first: str | None,
    last: str | None,
    between: str | None = None,
) -> None:
    """Let `encode(add_special_tokens=True)` put `first` before and `last` after each text; of a
    pair, `between` before the second text and `last` after it.
    """
    tokens = [token for token in (first, last) if token is not None]
    named = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys(tokens)]
    template = [*([first] if first else []), "$A", *([last] if last else [])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template,
        pair=[*template, between, "$B", last] if between and last else [*template, "$B"],
        special_tokens=named,
    )
