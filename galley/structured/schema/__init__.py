"""JSON schemas of requests, rewritten so that llguidance enforces them exactly.

    schema ── Document ──▶ nodes ── Expander ──▶ unions of alternatives ── Emitter ──▶ schema

llguidance refuses some keywords and enforces others only in part. `normalise` returns a schema with
the same instances, or with fewer, in the keywords that llguidance enforces; what can be written in
neither way is refused by the name of the keyword and its JSON pointer. Keywords that are no
assertions, unknown formats and unknown dialects have no effect, as the specification has it.

Nothing is fetched, and time and memory are bounded by the limits of each module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from galley.structured.schema.document import Document, Refused
from galley.structured.schema.emit import Emitter
from galley.structured.schema.expand import Expander
from galley.structured.schema.productive import prune

__all__ = ["Refused", "SchemaOptions", "normalise"]


@dataclass(frozen=True)
class SchemaOptions:
    """How a schema's instances are written.

    Attributes:
        any_whitespace: whether white space may stand between tokens of JSON.
        whitespace_pattern: a regular expression for it, in place of up to 64 characters.
        additional_properties: whether objects may have properties besides those that a schema
            names, if the schema does not say.
    """

    any_whitespace: bool = True
    whitespace_pattern: str | None = None
    additional_properties: bool = True


#: Without a bound, a model could write white space for ever.
_WHITESPACE = r"[ \t\n\r]{1,64}"


def normalise(schema: Any, options: SchemaOptions = SchemaOptions()) -> dict[str, Any]:
    """The schema in llguidance's terms.

    Args:
        schema: a JSON schema of draft 4 to 2020-12, as decoded from JSON. It is not changed.

    Raises:
        Refused: names the keyword and where it stands.
    """
    if not isinstance(schema, dict | bool):
        raise Refused("is not an object or a boolean", "schema", "")
    document = Document(schema)
    emitter = Emitter(Expander(document), closed=not options.additional_properties)
    try:
        body = prune(emitter.run(document.root), emitter.definitions)
    except RecursionError:
        raise Refused("nests too deep", "schema", "") from None
    if body is False:
        raise Refused("allows no value", "schema", "")
    guidance: dict[str, Any] = {
        # Names that are escaped needlessly would pass for additional properties.
        "json_allowed_escapes": 'nrbtf\\"',
        "whitespace_flexible": options.any_whitespace,
    }
    if options.any_whitespace:
        guidance["whitespace_pattern"] = options.whitespace_pattern or _WHITESPACE
    result: dict[str, Any] = {"x-guidance": guidance, **body}
    if emitter.definitions:
        result["$defs"] = emitter.definitions
    return result
