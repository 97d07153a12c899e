"""The table of request fields as a page: `python -m galley.server.protocol.describe`."""

from __future__ import annotations

from types import NoneType
from typing import Any

import msgspec

from galley.server.protocol import (
    anthropic,
    chat,
    completions,
    embeddings,
    generative_scoring,
    pooling,
    responses,
    scale_out,
    tokenize,
)
from galley.server.protocol.base import BodyReader, NoEffect, Refused

PAGES: dict[str, BodyReader[Any]] = {
    "/v1/chat/completions": chat.reader,
    "/v1/chat/completions/batch": chat.batch_reader,
    "/v1/completions": completions.reader,
    "/v1/embeddings": embeddings.reader,
    "/v2/embed": embeddings.cohere_reader,
    "/pooling": pooling.pooling_reader,
    "/classify": pooling.classification_reader,
    "/score": pooling.score_reader,
    "/rerank": pooling.rerank_reader,
    "/v1/responses": responses.reader,
    "/v1/messages": anthropic.messages_reader,
    "/v1/messages/count_tokens": anthropic.count_reader,
    "/generative_scoring": generative_scoring.reader,
    "/tokenize": tokenize.tokenize_reader,
    "/detokenize": tokenize.detokenize_reader,
    "/inference/v1/generate": scale_out.generate_reader,
}
#: Why a field must be null.
ALWAYS_NULL = "only text is available yet."
_HEAD = """# Request fields

The effect of each field of a request. A field that *acts* does what its name says in OpenAI's and
vLLM's APIs. A field *without effect* is checked for its type and changes nothing. A field that
would change the answer and cannot yet is *refused* with a 400 that names it, unless its value asks
for nothing (null, false, empty). A field that is not in the table is ignored, with one warning in
the log.

This page is made from `galley/server/protocol/`; a test keeps it true.
"""


def page() -> str:
    """The whole page, in Markdown."""
    parts = [_HEAD]
    for path, reader in PAGES.items():
        parts.append(f"\n## {path}\n\n| field | | |\n|---|---|---|\n")
        parts.extend(_row(*row) for row in sorted(_rows(reader)))
    return "".join(parts)


def _rows(reader: BodyReader[Any]) -> list[tuple[str, str, str]]:
    rows = [
        (f.encode_name, "refused", ALWAYS_NULL)
        if f.type is NoneType
        else (f.encode_name, "acts", _default(f))
        for f in msgspec.structs.fields(reader.type)
    ]
    for name, field in reader.others.items():
        if isinstance(field, NoEffect):
            rows.append((name, "without effect", field.why))
        else:
            rows.append((name, "refused", _refusal(field)))
    return rows


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    return "" if field.default is None else f"default {field.default!r}".lower()


def _refusal(field: Refused) -> str:
    accepted = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in field.inert)
    return field.why + (f" Accepted: {accepted}." if accepted else "")


def _row(name: str, fate: str, note: str) -> str:
    return f"| `{name}` | {fate} | {note} |\n"


if __name__ == "__main__":
    print(page(), end="")
