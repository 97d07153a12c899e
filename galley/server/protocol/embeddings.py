"""Wire types of /v1/embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.errors import InvalidRequest, Unsupported
from galley.server.protocol.base import BodyReader, Int, TokenId, Usage
from galley.server.protocol.fields import EMBEDDING
from galley.server.protocol.generation import Caps, CountOrAll, Positive, Text

_INPUTS = [
    {"type": "string"},
    {"type": "array", "minItems": 1, "items": {"type": "string"}},
    {"type": "array", "minItems": 1, "items": {"type": "integer"}},
    {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1}},
]
Input = Annotated[
    str | list[str | TokenId | list[TokenId]],
    msgspec.Meta(extra_json_schema={"allOf": [{"anyOf": _INPUTS}]}),
]
#: Formats and number formats of vLLM that are refused by name.
_NO_ENCODINGS = ("bytes", "bytes_only")
_NO_DTYPES = ("bfloat16", "fp8_e4m3", "fp8_e5m2")


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """Embed a text or several (vLLM's names, types and defaults).

    `input` is a text, a list of texts, a list of token ids, or a list of lists of token ids.
    `embed_dtype` and `endianness` are those of the numbers in base64.
    """

    input: Input
    model: str | None = None
    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"] = "float32"
    endianness: Literal["native", "big", "little"] = "native"
    dimensions: Positive | None = None
    use_activation: bool | None = None
    add_special_tokens: bool = True
    truncate_prompt_tokens: CountOrAll | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Int = 0
    cache_salt: Text | None = None
    request_id: str | None = None


reader = BodyReader(EmbeddingRequest, EMBEDDING)


def check_embedding(request: EmbeddingRequest, caps: Caps) -> list[str | list[int]]:
    """The inputs of a request, each a text or token ids.

    Raises:
        InvalidRequest, Unsupported: with the field at fault.
    """
    if request.encoding_format in _NO_ENCODINGS:
        raise Unsupported(
            f"encoding_format {request.encoding_format} is not supported yet; use float or base64.",
            field="encoding_format",
        )
    if request.embed_dtype in _NO_DTYPES:
        raise Unsupported(
            f"embed_dtype {request.embed_dtype} is not supported yet; use float32 or float16.",
            field="embed_dtype",
        )
    return _inputs(request.input, caps)


def _inputs(given: Any, caps: Caps) -> list[str | list[int]]:
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequest("input must not be empty.", field="input")
    kinds = {type(item) for item in given}
    if kinds == {int}:
        return [given]
    if len(kinds) > 1:
        raise InvalidRequest(
            "input must be a text, a list of texts, token ids, or a list of token-id lists; it "
            "cannot be a mixture.",
            field="input",
        )
    if len(given) > caps.prompts:
        raise InvalidRequest(
            f"input is limited to {caps.prompts} entries a call, got {len(given)}.", field="input"
        )
    return list(given)


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
