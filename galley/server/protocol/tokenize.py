"""Wire types of /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

import msgspec

from galley.errors import InvalidRequest
from galley.server.protocol.base import BodyReader, TokenId
from galley.server.protocol.fields import TOKENIZE
from galley.server.protocol.tools import ChatTool
from galley.server.protocol.turns import Turn


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A `prompt`, or `messages` with their options."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Turn] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = False
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[ChatTool] | None = None

    def check(self) -> None:
        """Raise InvalidRequest unless exactly one of the two is given."""
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest(
                "exactly one of `prompt` and `messages` must be given.",
                field="prompt" if self.messages is None else "messages",
            )


class TokenizeResponse(msgspec.Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    model: str | None = None
    tokens: list[TokenId]


class DetokenizeResponse(msgspec.Struct):
    prompt: str


class AddedToken(msgspec.Struct):
    """A token that is matched whole."""

    content: str
    special: bool


class TokenizerInfo(msgspec.Struct, kw_only=True):
    """Tokenizer settings for clients that build prompts, named as in tokenizer_config.json."""

    tokenizer_class: str = "PreTrainedTokenizerFast"
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    model_max_length: int
    vocab_size: int
    added_tokens_decoder: dict[int, AddedToken]
    chat_template: str | None


tokenize_reader = BodyReader(TokenizeRequest, TOKENIZE)
detokenize_reader = BodyReader(DetokenizeRequest, {})
