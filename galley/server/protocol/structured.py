"""Wire types of structured output, and what they ask of an answer.

response_format        OpenAI's, of chat and completions; `text.format` in Responses
structured_outputs     vLLM's
guided_json …          vLLM's older names, with a notice in the log
"""

from __future__ import annotations

import json
import logging
from typing import Any, Literal

import msgspec

from galley.errors import InvalidRequest

logger = logging.getLogger(__name__)


class TextFormat(msgspec.Struct, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object"):
    """Any JSON object."""


class JsonSchema(msgspec.Struct):
    """A schema with a name. An answer always keeps to it, with `strict` or without."""

    name: str
    schema: dict[str, Any] | bool | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    """JSON of a schema."""

    json_schema: JsonSchema


class StructuralTagFormat(msgspec.Struct, tag_field="type", tag="structural_tag"):
    """Free text with constrained parts: `structures` and `triggers`, or `format`."""

    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    format: dict[str, Any] | None = None


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat | StructuralTagFormat


class NamedSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema"):
    """JSON of a schema, as Responses spells it."""

    name: str
    schema: dict[str, Any] | bool
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct):
    """The form of a response's text. `verbosity` is not passed to templates."""

    format: TextFormat | JsonObjectFormat | NamedSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @property
    def response_format(self) -> ResponseFormat | None:
        if isinstance(self.format, NamedSchemaFormat):
            return JsonSchemaFormat(JsonSchema(self.format.name, self.format.schema))
        return self.format


class SchemaFormat(msgspec.Struct):
    """JSON of a schema, as Anthropic spells it."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct):
    """Anthropic's: the form of the text, and the reasoning effort for the chat template."""

    format: SchemaFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None

    @property
    def response_format(self) -> ResponseFormat | None:
        if self.format is None:
            return None
        return JsonSchemaFormat(JsonSchema("output", self.format.schema))


#: Older field → `StructuredOutputsParams`.
OLDER = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_warned: set[str] = set()


def warn_older(name: str) -> None:
    """Log each name once."""
    if name not in _warned:
        _warned.add(name)
        logger.warning("%s is an older name: use structured_outputs.%s.", name, OLDER[name])


def params_of_format(format: ResponseFormat | None) -> dict[str, Any]:
    """The constraint of a format that has one. Raises InvalidRequest."""
    if isinstance(format, JsonSchemaFormat):
        schema = format.json_schema.schema
        if schema is None:
            raise InvalidRequest("json_schema.schema is missing.")
        return {"json": json.dumps(schema)}
    if isinstance(format, StructuralTagFormat):
        return {"structural_tag": msgspec.json.encode(format).decode()}
    return {"json_object": True}
