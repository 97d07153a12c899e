"""Wire types of the routes that pool: what they share, /pooling, /classify, /score and /rerank."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from galley.errors import InvalidRequest
from galley.server.protocol.base import BodyReader, Int, TokenId, Usage
from galley.server.protocol.fields import POOLING, SCORING
from galley.server.protocol.generation import Caps, Count, CountOrAll, Positive, Text
from galley.server.protocol.turns import Turn

_INPUTS = [
    {"type": "string"},
    {"type": "array", "minItems": 1, "items": {"type": "string"}},
    {"type": "array", "minItems": 1, "items": {"type": "integer"}},
    {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1}},
    {"type": "array", "minItems": 1, "items": {"type": "object"}},
]
Input = Annotated[
    str | list[str | TokenId | list[TokenId] | Turn],
    msgspec.Meta(extra_json_schema={"allOf": [{"anyOf": _INPUTS}]}),
]
#: One text, or several; a text may be an object with `content` of text parts.
ScoreInput = str | dict[str, Any] | list[str | dict[str, Any]]
EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]


class PoolingFields(msgspec.Struct, kw_only=True):
    """Fields of every request that pools."""

    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: CountOrAll | None = None
    truncation_side: Literal["left", "right"] | None = None
    priority: Int = 0
    cache_salt: Text | None = None
    request_id: str | None = None


class InputFields(PoolingFields, kw_only=True):
    """Fields of requests with an `input`, or with `messages` that a chat template makes a text of.

    `input` is a text, a list of texts, a list of token ids, a list of lists of token ids, or a
    conversation. `messages` are a conversation, or a list of conversations.
    `prompt_name` is the name of a text of the checkpoint that stands before each input.
    """

    input: Input | None = None
    messages: list[Turn | list[Turn]] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool = False
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt_name: str | None = None

    def conversations(self) -> list[list[dict[str, Any]]] | None:
        """Its conversations; None where it has an `input` instead. Raises InvalidRequest."""
        given: Any = self.messages
        if given is None and isinstance(self.input, list) and self.input and _all(self.input, dict):
            given = self.input
        elif given is None and self.input is None:
            raise InvalidRequest("input is required.", field="input")
        if given is None:
            return None
        if self.messages is not None and self.input is not None:
            raise InvalidRequest("messages excludes input.", field="input")
        if not given:
            raise InvalidRequest("messages must not be empty.", field="messages")
        if _all(given, dict):
            return [given]
        if not _all(given, list) or not all(talk and _all(talk, dict) for talk in given):
            raise InvalidRequest(
                "messages must be a conversation or a list of conversations.", field="messages"
            )
        return list(given)

    def texts(self, caps: Caps) -> list[str | list[int]]:
        """Its inputs, each a text or token ids. Raises InvalidRequest."""
        return inputs_of(self.input, caps)


def _all(items: Any, type: type) -> bool:
    return all(isinstance(item, type) for item in items)


def inputs_of(given: Any, caps: Caps) -> list[str | list[int]]:
    """The texts and token ids of an `input`. Raises InvalidRequest."""
    if isinstance(given, str):
        return [given]
    if not given:
        raise InvalidRequest("input: You must pass at least one prompt.", field="input")
    kinds = {type(item) for item in given}
    if kinds == {int}:
        return [given]
    if len(kinds) > 1:
        raise InvalidRequest(
            "input must be a text, a list of texts, token ids, or a list of token-id lists; it "
            "cannot be a mixture.",
            field="input",
        )
    check_count(given, "input", caps)
    return list(given)


def check_count(items: Any, field: str, caps: Caps) -> None:
    """Raise InvalidRequest for more entries than a call may have."""
    if len(items) > caps.prompts:
        raise InvalidRequest(
            f"{field} is limited to {caps.prompts} entries a call, got {len(items)}.", field=field
        )


class EncodingFields(InputFields, kw_only=True):
    """Requests whose answers are numbers in one of several formats.

    `embed_dtype` and `endianness` are those of the numbers in base64 and bytes.
    """

    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] = "float"
    embed_dtype: EmbedDtype = "float32"
    endianness: Literal["native", "big", "little"] = "native"
    dimensions: Positive | None = None


class PoolingRequest(EncodingFields, kw_only=True):
    """Pool a text or several by a task (vLLM's names, types and defaults)."""

    task: Literal["embed", "classify", "token_embed", "token_classify"] | None = None


pooling_reader = BodyReader(PoolingRequest, POOLING)


class PoolingData(msgspec.Struct, kw_only=True):
    """The numbers of one input: a vector or one of each token, or base64 of their bytes."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float | list[float]] | str


class PoolingResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PoolingData]
    usage: Usage


class ClassificationRequest(InputFields, kw_only=True):
    """Classify a text or several (vLLM's names, types and defaults)."""


classification_reader = BodyReader(ClassificationRequest, POOLING)


class ClassificationData(msgspec.Struct, kw_only=True):
    """The numbers of all labels, and the name of that with the largest."""

    index: int
    label: str | None
    probs: list[float]
    num_classes: int


class ClassificationResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ClassificationData]
    usage: Usage


class ScoringFields(PoolingFields, kw_only=True):
    """Fields of /score and /rerank.

    `instruction` and `chat_template_kwargs` are variables of a template of pairs (--chat-template).
    """

    max_tokens_per_query: Count = 0
    max_tokens_per_doc: Count = 0
    instruction: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ScoreRequest(ScoringFields, kw_only=True):
    """Score pairs of texts: one with each of several, or each with the one at the same place.

    The two are called `text_1` and `text_2`, `data_1` and `data_2`, `queries` and `documents`, or
    `queries` and `items`.
    """

    text_1: ScoreInput | None = None
    text_2: ScoreInput | None = None
    data_1: ScoreInput | None = None
    data_2: ScoreInput | None = None
    queries: ScoreInput | None = None
    documents: ScoreInput | None = None
    items: ScoreInput | None = None

    def sides(self) -> tuple[str, ScoreInput, str, ScoreInput]:
        """The two, each with its name. Raises InvalidRequest."""
        for first, second in _SIDES:
            a, b = getattr(self, first), getattr(self, second)
            if a is not None and b is not None:
                return first, a, second, b
        for first, second in _SIDES:
            if getattr(self, first) is not None:
                raise InvalidRequest(f"{second} is required.", field=second)
        raise InvalidRequest("text_1 and text_2 are required.", field="text_1")


_SIDES = (
    ("text_1", "text_2"),
    ("data_1", "data_2"),
    ("queries", "documents"),
    ("queries", "items"),
)
score_reader = BodyReader(ScoreRequest, SCORING)


class ScoreData(msgspec.Struct, kw_only=True):
    index: int
    object: Literal["score"] = "score"
    score: float


class ScoreResponse(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[ScoreData]
    usage: Usage


class RerankRequest(ScoringFields, kw_only=True):
    """Order documents by how well they answer a query (Jina's and Cohere's names).

    `top_n` is the number of results, 0: all. `return_documents` false leaves their texts out.
    """

    query: str | dict[str, Any]
    documents: ScoreInput
    top_n: Count | None = 0
    return_documents: bool | None = None


rerank_reader = BodyReader(RerankRequest, SCORING)


class RerankDocument(msgspec.Struct):
    text: str
    multi_modal: None = None


class RerankResult(msgspec.Struct, kw_only=True, omit_defaults=True):
    index: int
    document: RerankDocument | None = None
    relevance_score: float


class RerankUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class RerankResponse(msgspec.Struct, kw_only=True):
    """Results, the best first."""

    id: str
    model: str
    usage: RerankUsage
    results: list[RerankResult]
