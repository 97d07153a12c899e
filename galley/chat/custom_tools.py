"""Tools whose input is a free text: for the model, functions of one text called `input`."""

from __future__ import annotations

import json
import re

from galley.chat.tools import FunctionTool

_HEAD = re.compile(r'\s*\{\s*"input"\s*:\s*"')
#: Whole characters of a JSON text: a high surrogate is none without what follows it.
_CHARACTERS = re.compile(
    r'(?:[^"\\]++|\\["\\/bfnrt]|\\u(?![dD][89abAB])[0-9a-fA-F]{4}'
    r"|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[0-9a-fA-F]{4})*+"
)


def function_of(name: str, description: str | None) -> FunctionTool:
    """The function that stands for a tool."""
    text = {"type": "string", "description": "The input of this tool, as free text."}
    parameters = {
        "type": "object",
        "properties": {"input": text},
        "required": ["input"],
        "additionalProperties": False,
    }
    return FunctionTool(name, description, parameters)


def arguments_of(text: str) -> str:
    """The arguments of a call with this input, as JSON."""
    return json.dumps({"input": text}, ensure_ascii=False)


class InputReader:
    """Reads the input of a call from its arguments, as they come."""

    def __init__(self) -> None:
        self._arguments: list[str] = []
        self._pending = ""
        self._begun = False
        self._read: list[str] = []

    def push(self, arguments: str) -> str:
        """The characters of the input that are complete with these."""
        self._arguments.append(arguments)
        self._pending += arguments
        if not self._begun:
            head = _HEAD.match(self._pending)
            if head is None:
                return ""
            self._begun, self._pending = True, self._pending[head.end() :]
        found = _CHARACTERS.match(self._pending)
        assert found is not None
        self._pending = self._pending[found.end() :]
        new = _without_surrogates(json.loads(f'"{found[0]}"', strict=False))
        self._read.append(new)
        return new

    def finish(self) -> tuple[str, str]:
        """The whole input, and its end, which `push` has not returned.

        Arguments of another form are the input themselves.
        """
        arguments, read = "".join(self._arguments), "".join(self._read)
        try:
            given = json.loads(arguments, strict=False)["input"]
        except (ValueError, KeyError, TypeError, RecursionError):
            given = None
        if isinstance(given, str):
            whole = _without_surrogates(given)
        else:
            whole = read if self._begun else arguments
        return whole, whole[len(read) :] if whole.startswith(read) else ""


def _without_surrogates(text: str) -> str:
    """`text` with U+FFFD for surrogates without a partner."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
