"""Wire types of /generative_scoring."""

from __future__ import annotations

from typing import Literal

import msgspec

from galley.errors import InvalidRequest
from galley.server.protocol.base import BodyReader, Int, TokenId, Usage
from galley.server.protocol.generation import Caps, Text
from galley.server.protocol.pooling import check_count


class GenerativeScoringRequest(msgspec.Struct, kw_only=True):
    """The probability of label tokens after a query and each item."""

    query: str | list[TokenId]
    items: list[str | list[TokenId]]
    label_token_ids: list[TokenId]
    model: str | None = None
    apply_softmax: bool = True
    item_first: bool = False
    add_special_tokens: bool = True
    cache_salt: Text | None = None
    priority: Int = 0
    request_id: str | None = None

    def check(self, vocab_size: int, caps: Caps) -> None:
        """Raise InvalidRequest for an empty list, too many items, and an unknown token."""
        for name in ("items", "label_token_ids"):
            if not getattr(self, name):
                raise InvalidRequest(f"{name} must not be empty.", field=name)
        check_count(self.items, "items", caps)
        for token in self.label_token_ids:
            if token >= vocab_size:
                raise InvalidRequest(
                    f"label_token_ids: {token} is out of vocabulary (size {vocab_size}).",
                    field="label_token_ids",
                )


class GenerativeScore(msgspec.Struct, kw_only=True):
    """The probability of the first label after one item."""

    index: int
    object: Literal["score"] = "score"
    score: float


class GenerativeScoringResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[GenerativeScore]
    usage: Usage


reader = BodyReader(GenerativeScoringRequest, {})
