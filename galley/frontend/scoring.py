"""Scores of pairs of texts: how a cross-encoder is given a pair, and how vectors are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from galley.config.pooling import PoolingSettings
from galley.errors import InvalidRequest, Unsupported

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from galley.request import PoolingTask
    from galley.text import Tokenizer

#: Renders a pair by a template: messages of the roles "query" and "document" → text.
Render = Callable[[list[dict[str, Any]]], str]


def as_texts(given: Any, field: str) -> list[str]:
    """One text or several; an object with `content` of text parts is a text. Raises
    InvalidRequest, Unsupported.
    """
    items = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if not items:
        raise InvalidRequest(f"{field} must not be empty.", field=field)
    return [_text(item, field) for item in items]


def _text(item: Any, field: str) -> str:
    if isinstance(item, str):
        return item
    parts = None
    if isinstance(item, Mapping):
        if isinstance(item.get("text"), str):
            return str(item["text"])
        parts = item.get("content")
    if not isinstance(parts, Sequence):
        raise InvalidRequest(f"{field} must be a text or a list of texts.", field=field)
    if isinstance(parts, str):
        return parts
    texts = []
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            raise Unsupported(f"{field}: only parts of text are supported.", field=field)
        texts.append(part["text"])
    return "".join(texts)


def check_pairs(first: Sequence[str], second: Sequence[str], fields: tuple[str, str]) -> None:
    """Raise InvalidRequest unless there is one first text, or one for each second."""
    if len(first) not in (1, len(second)):
        raise InvalidRequest(
            f"Input lengths must be either 1:1, 1:N or N:N: {fields[0]} has {len(first)}, "
            f"{fields[1]} {len(second)}.",
            field=fields[0],
        )


def task_of(settings: PoolingSettings) -> PoolingTask:
    """The task that scores are made with. Raises Unsupported for a model that gives none."""
    kinds: dict[str | None, PoolingTask] = {
        "cross-encoder": "classify",
        "bi-encoder": "embed",
        "late-interaction": "token_embed",
    }
    kind = settings.score_kind
    if kind is None:
        raise Unsupported(
            "this model gives no scores: that needs vectors, or a classifier with one label "
            f"(this one has {len(settings.labels)}).",
            field="model",
        )
    return kinds[kind]


class PairEncoder:
    """Makes the prompt of a pair for a cross-encoder.

    Args:
        segment: added to the tokens of the second text, whose embeddings are others; 0 = none.
        render: the template of pairs; None: the tokenizer's own way.
    """

    def __init__(self, tokenizer: Tokenizer, segment: int = 0, render: Render | None = None):
        self._tokenizer = tokenizer
        self._segment = segment
        self._render = render

    def __call__(
        self, query: str, document: str, most: int | None = None, cut_query: int = 0, cut: int = 0
    ) -> list[int]:
        """Token ids of the pair.

        Args:
            most: of all; the document is cut to it.
            cut_query, cut: most tokens of the query and of the document; 0 = all.
        """
        query, document = self._cut(query, cut_query), self._cut(document, cut)
        ids = self._encoded(query, document)
        if most is not None and len(ids) > most:
            room = len(self._tokenizer.encode(document, False)) - (len(ids) - most)
            if room > 0:
                ids = self._encoded(query, self._cut(document, room))
            ids = ids[:most]
        return ids

    def _encoded(self, query: str, document: str) -> list[int]:
        if self._render is not None:
            messages = [("query", query), ("document", document)]
            text = self._render([{"role": role, "content": text} for role, text in messages])
            return self._tokenizer.encode(text, False)
        ids, second = self._tokenizer.encode_pair(query, document)
        if not self._segment:
            return ids
        return [i + self._segment * s for i, s in zip(ids, second, strict=True)]

    def _cut(self, text: str, most: int) -> str:
        return self._tokenizer.first_tokens(text, most) if most > 0 else text


def compare(
    settings: PoolingSettings, first: NDArray[np.float32], second: NDArray[np.float32]
) -> float:
    """The score of two vectors (their cosine), or of two lists of vectors of tokens: the sum of
    the best product of each of the first.
    """
    import numpy as np

    if settings.score_kind == "late-interaction":
        return float((first @ second.T).max(axis=1).sum())
    a, b = first.astype(np.float64), second.astype(np.float64)
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / max(length, 1e-12))
