"""How a model writes a call that a grammar makes it write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from galley.chat.tool_parsers.values import parameter_types, string_piece

#: The schema of arguments that nothing is said of.
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class CallSpelling(Protocol):
    """The spelling of calls in a format.

    Attributes:
        trigger: the text that begins every call.
        separator: the text between two calls.
        marked: no JSON begins as a call does.
    """

    @property
    def trigger(self) -> str: ...
    @property
    def separator(self) -> str: ...
    @property
    def marked(self) -> bool: ...

    def tag(self, name: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
        """A call as a structural tag; `parameters` is the schema of the arguments."""
        ...


@dataclass(frozen=True)
class JsonSpelling:
    """`trigger before NAME between {ARGUMENTS} end`."""

    trigger: str
    before: str
    between: str
    end: str
    separator: str = "\n"
    marked: bool = True

    def tag(self, name: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
        content = {"type": "json_schema", "json_schema": parameters or ANY_OBJECT}
        begin = f"{self.trigger}{self.before}{string_piece(name)}{self.between}"
        return {"type": "tag", "begin": begin, "content": content, "end": self.end}


@dataclass(frozen=True)
class TaggedSpelling:
    """`trigger before NAME after {key_begin KEY key_end VALUE value_end} end`.

    Parameters come in the order of the schema. A text ends at the first `value_end`; texts of an
    enumeration are the only ones that their schema limits.
    """

    trigger: str
    before: str
    after: str
    key_begin: str
    key_end: str
    value_end: str
    end: str
    separator: str = "\n"
    marked: bool = True

    def tag(self, name: str, parameters: dict[str, Any] | None) -> dict[str, Any]:
        begin = f"{self.trigger}{self.before}{name}{self.after}"
        if parameters is None:
            content: dict[str, Any] = {"type": "any_text"}
        else:
            required = parameters.get("required") or ()
            members = []
            for key, schema in (parameters.get("properties") or {}).items():
                member = self._member(key, schema, parameters)
                if key not in required:
                    member = {"type": "optional", "content": member}
                members.append(member)
            empty = {"type": "const_string", "value": ""}
            content = {"type": "sequence", "elements": members} if members else empty
        return {"type": "tag", "begin": begin, "content": content, "end": self.end}

    def _member(self, key: str, schema: Any, root: dict[str, Any]) -> dict[str, Any]:
        content: dict[str, Any]
        if parameter_types(root, key) != {"string"}:
            definitions = {k: root[k] for k in ("$defs", "definitions") if k in root}
            content = {"type": "json_schema", "json_schema": {**schema, **definitions}}
        elif "enum" in schema:
            texts = [{"type": "const_string", "value": text} for text in schema["enum"]]
            content = {"type": "or", "elements": texts}
        else:
            content = {"type": "any_text"}
        begin = f"{self.key_begin}{key}{self.key_end}"
        return {"type": "tag", "begin": begin, "content": content, "end": self.value_end}
