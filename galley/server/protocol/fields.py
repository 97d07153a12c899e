"""Treatment of the request fields that do not act: a table.

A field of the API either acts (it is in the request's struct), has no effect on the answer, or is
refused with a 400 that names it until it acts. A test holds the three together against the list
of the API's fields; documentation is generated from here.
"""

from __future__ import annotations

from typing import Any, Literal

from galley.server.protocol.base import FieldTable, Int, NoEffect, Refused

_TRANSFER = Refused("no KV connector is configured.")
_EXTENSION = Refused("it is not available yet.")

#: Fields of both generation endpoints.
GENERATION: FieldTable = {
    "user": NoEffect(str | None, "identifies the end user"),
    "metadata": NoEffect(dict[str, Any] | None, "for the caller's own records"),
    "store": NoEffect(bool | None, "nothing is stored"),
    "service_tier": NoEffect(str | None, "there is one tier"),
    "safety_identifier": NoEffect(str | None, "identifies the end user"),
    "prompt_cache_key": NoEffect(str | None, "the prefix cache finds prompts by content"),
    "prompt_cache_retention": NoEffect(str | None, "the prefix cache keeps what fits"),
    "session_id": NoEffect(str | None, "routes between engines; there is one"),
    "mm_payload": NoEffect(Literal["tensors", "none"], "of multimodal answers alone"),
    "routed_experts_prompt_start": NoEffect(Int, "of routed experts alone"),
    "best_of": Refused("ask for `n` answers instead.", (1,)),
    "guided_decoding_backend": NoEffect(
        str | None, "--structured-outputs-config.backend chooses for all requests"
    ),
    "watermarking": _EXTENSION,
    "return_mm_kwargs": Refused("only text is available yet."),
    "ec_transfer_params": _TRANSFER,
}

#: Further fields of chat requests.
CHAT: FieldTable = {
    **GENERATION,
    "media_io_kwargs": NoEffect(dict[str, dict[str, Any]] | None, "of media alone"),
    "mm_processor_kwargs": NoEffect(dict[str, Any] | None, "of media alone"),
    "prediction": NoEffect(dict[str, Any] | None, "a hint on speed"),
    "functions": Refused("send `tools`."),
    "function_call": Refused("send `tool_choice`.", ("none",)),
    "modalities": Refused("only text is available yet.", (["text"],)),
    "audio": Refused("only text is available yet."),
    "web_search_options": Refused("there is no web search."),
}

#: Further fields of batches of chats.
CHAT_BATCH: FieldTable = {
    **CHAT,
    "early_stopping": NoEffect(bool, "of beam search alone, which batches do not have"),
}

#: Fields of Anthropic's count_tokens.
ANTHROPIC_COUNT: FieldTable = {}

#: Further fields of Anthropic's messages.
ANTHROPIC: FieldTable = {
    **ANTHROPIC_COUNT,
    "metadata": NoEffect(dict[str, Any] | None, "identifies the end user"),
    "service_tier": NoEffect(str | None, "there is one tier"),
    "mm_payload": NoEffect(Literal["tensors", "none"], "of multimodal answers alone"),
    "return_mm_kwargs": Refused("only text is available yet."),
    "watermarking": _EXTENSION,
    "ec_transfer_params": _TRANSFER,
    "container": Refused("the server runs no tools itself."),
    "mcp_servers": Refused("the server runs no tools itself."),
    "context_management": Refused("it is not available yet."),
}

#: Further fields of responses.
RESPONSES: FieldTable = {
    "prompt_cache_key": NoEffect(str | None, "the prefix cache finds prompts by content"),
    "safety_identifier": NoEffect(str | None, "identifies the end user"),
    "session_id": NoEffect(str | None, "routes between engines; there is one"),
    "max_tool_calls": NoEffect(Int | None, "of tools that the server itself runs"),
    "media_io_kwargs": NoEffect(dict[str, dict[str, Any]] | None, "of media alone"),
    "mm_processor_kwargs": NoEffect(dict[str, Any] | None, "of media alone"),
    "mm_payload": NoEffect(Literal["tensors", "none"], "of multimodal answers alone"),
    "prompt": Refused("there are no stored prompts."),
    "conversation": Refused("use `previous_response_id`."),
    "watermarking": _EXTENSION,
    "stream_options": Refused("it is not available yet.", ({"include_obfuscation": False},)),
    "return_mm_kwargs": Refused("only text is available yet."),
    "ec_transfer_params": _TRANSFER,
}

#: Further fields of completion requests.
COMPLETION: FieldTable = {
    **GENERATION,
    "thinking_token_budget": Refused("completions have no reasoning."),
}

#: Further fields of the routes that pool.
POOLING: FieldTable = {
    "user": NoEffect(str | None, "identifies the end user"),
    "mm_processor_kwargs": NoEffect(dict[str, Any] | None, "of media alone"),
    "media_io_kwargs": NoEffect(dict[str, dict[str, Any]] | None, "of media alone"),
    "padding": Refused("inputs are not padded.", ("do_not_pad",)),
    "normalize": Refused("use `use_activation`.", always=True),
}

#: Further fields of /v1/embeddings.
EMBEDDING: FieldTable = {**POOLING}

#: Further fields of /score and /rerank.
SCORING: FieldTable = {name: POOLING[name] for name in ("user", "mm_processor_kwargs", "padding")}

#: Further fields of /v2/embed.
COHERE_EMBED: FieldTable = {"images": Refused("only text is available yet.")}

#: Further fields of /tokenize and /detokenize.
TOKENIZE: FieldTable = {
    "media_io_kwargs": NoEffect(dict[str, dict[str, Any]] | None, "of media alone"),
    "mm_processor_kwargs": NoEffect(dict[str, Any] | None, "of media alone"),
}
