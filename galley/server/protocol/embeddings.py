"""Wire types of /v1/embeddings and of Cohere's /v2/embed."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from galley.errors import InvalidRequest, Unsupported
from galley.server.protocol.base import BodyReader, Int, Usage
from galley.server.protocol.fields import COHERE_EMBED, EMBEDDING
from galley.server.protocol.generation import Caps, Positive
from galley.server.protocol.pooling import EncodingFields, check_count


class EmbeddingRequest(EncodingFields, kw_only=True):
    """Embed a text or several (vLLM's names, types and defaults)."""


reader = BodyReader(EmbeddingRequest, EMBEDDING)


class EmbeddingData(msgspec.Struct, kw_only=True):
    """One vector: numbers, or base64 of their bytes."""

    index: int
    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str


class EmbeddingResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[EmbeddingData]
    usage: Usage


EmbeddingType = Literal["float", "binary", "ubinary", "base64"]


class CohereEmbedRequest(msgspec.Struct, kw_only=True):
    """Embed texts (Cohere's names).

    `input_type` names a text of the checkpoint that stands before each: one of its own, or
    `search_query` and `search_document`. `inputs` are objects with `content` of text parts.
    """

    model: str | None = None
    input_type: str | None = None
    texts: list[str] | None = None
    inputs: list[dict[str, Any]] | None = None
    output_dimension: Positive | None = None
    embedding_types: list[EmbeddingType] | None = None
    truncate: Literal["NONE", "START", "END"] = "END"
    max_tokens: Positive | None = None
    priority: Int = 0

    def contents(self, caps: Caps) -> list[str]:
        """The texts. Raises InvalidRequest, Unsupported."""
        if (self.texts is None) == (self.inputs is None):
            raise InvalidRequest("exactly one of texts and inputs is required.", field="texts")
        field = "texts" if self.texts is not None else "inputs"
        items: list[Any] = self.texts if self.texts is not None else self.inputs or []
        if not items:
            raise InvalidRequest(f"{field} must not be empty.", field=field)
        check_count(items, field, caps)
        return [item if isinstance(item, str) else _content(item) for item in items]


def _content(item: dict[str, Any]) -> str:
    parts = item.get("content")
    if not isinstance(parts, list):
        raise InvalidRequest("inputs: content must be a list of parts.", field="inputs")
    for part in parts:
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise Unsupported("inputs: only parts of text are supported.", field="inputs")
    return "".join(part["text"] for part in parts)


cohere_reader = BodyReader(CohereEmbedRequest, COHERE_EMBED)


class CohereVersion(msgspec.Struct):
    version: str = "2"


class CohereUnits(msgspec.Struct):
    input_tokens: int


class CohereMeta(msgspec.Struct):
    billed_units: CohereUnits
    api_version: CohereVersion = msgspec.field(default_factory=CohereVersion)


class CohereEmbedResponse(msgspec.Struct, kw_only=True):
    """Vectors by type: numbers, signs of eight components a number, or base64 of float32."""

    id: str
    embeddings: dict[EmbeddingType, list[list[float | int] | str]]
    texts: list[str]
    meta: CohereMeta
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
