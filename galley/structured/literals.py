"""Values of a JSON schema in another spelling than JSON's, as rules of llguidance's Lark.

For the arguments of tool calls in formats that write them as Python does, or with marks of their
own around texts. Schemas come in the form that `schema.normalise` returns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from galley.structured.regex import Automaton, TooManyStates, other_than, render
from galley.structured.regex.anchors import ANYTHING
from galley.structured.regex.charset import ALL
from galley.structured.regex.syntax import Chars, Concat, Either, Repeat, Tree, parse
from galley.structured.schema import Refused
from galley.structured.schema.patterns import automaton_of

#: Numbers without a bound stay within these: readers of literals take no others as they are.
_LARGE, _LARGEST = 10**15, 10**300
_NUMBER = r"-?(0|[1-9][0-9]{0,15})(\.[0-9]{1,16})?([eE][+-]?[0-9]{1,2})?"
_ESCAPES = 'nrbtf\\"'
_IN_SINGLE_QUOTES = r"([^'\\\x00-\x1F\x7F]|\\[nrbtf\\'\"])"
#: Names without quotes.
_NAME = "[A-Za-z_][A-Za-z0-9_]*"


@dataclass(frozen=True)
class Style:
    """A spelling of values.

    Attributes:
        true, false, null: the words for these.
        comma: an expression of Lark, between items.
        colon: the same, between the name of a member of an object and its value.
        equals: the same, between the name of an argument and its value.
        quote: stands before and after a text, which has no escapes; "": texts are as in JSON, or in
            single quotes.
        ordered: members come in the order of their names, not in that of the schema.
    """

    true: str
    false: str
    null: str
    comma: str
    colon: str
    equals: str
    quote: str = ""
    ordered: bool = False

    @property
    def bare(self) -> bool:
        """Names of members have no quotes."""
        return bool(self.quote)


_PYTHON = Style("True", "False", "None", "/, ?/", "/: ?/", '"="')
_WORDS = ("true", "false", "null")
#: An open set.
STYLES: dict[str, Style] = {
    "python": _PYTHON,
    "python_json_words": Style(*_WORDS, _PYTHON.comma, _PYTHON.colon, _PYTHON.equals),
    "gemma": Style(*_WORDS, '","', '":"', '":"', '<|"|>', ordered=True),
}


class LiteralRules:
    """Writes one schema; `rules` are those that its expression needs.

    Args:
        schema: normalised.
        prefix: of the names of the rules.
        literal: a text, which may have special tokens → an expression of Lark.
    """

    def __init__(
        self, schema: dict[str, Any], style: Style, prefix: str, literal: Callable[[str], str]
    ) -> None:
        self.rules: list[str] = []
        self._schema = schema
        self._style = style
        self._prefix = prefix
        self._literal = literal
        self._names: dict[str, str] = {}
        self._count = 0

    def arguments(self) -> str:
        """The expression of an object's members, without brackets.

        Raises:
            Refused: what the spelling cannot keep.
        """
        objects = [s for s in self._alternatives(self._schema) if s.get("type") == "object"]
        if not objects:
            raise Refused("has no object", "type", "")
        try:
            return self._either([self._members(schema, arguments=True) for schema in objects])
        except TooManyStates:
            raise Refused("is too complex in this spelling", "pattern", "") from None
        except RecursionError:
            raise Refused("nests too deep for this spelling", "schema", "") from None

    def _alternatives(self, schema: Any) -> list[dict[str, Any]]:
        if schema == {} or not isinstance(schema, dict):
            return [{"type": "object"}]
        if "$ref" in schema:
            return self._alternatives(self._definition(schema["$ref"]))
        if "anyOf" in schema:
            return [a for option in schema["anyOf"] for a in self._alternatives(option)]
        body = {key: value for key, value in schema.items() if key not in ("x-guidance", "$defs")}
        return [body] if body else [{"type": "object"}]

    def _definition(self, reference: str) -> Any:
        return self._schema["$defs"][reference.rpartition("/")[2]]

    def _rule(self, body: str, *, lazy: bool = False) -> str:
        self._count += 1
        name = f"{self._prefix}_{self._count}"
        self.rules.append(f"{name}{'[lazy]' if lazy else ''}: {body}")
        return name

    def _either(self, options: Sequence[str]) -> str:
        return self._rule(" | ".join(option or '""' for option in options))

    # ------------------------------------------------------------------ values

    def _value(self, schema: Any) -> str:
        """The expression of a schema, one name."""
        if schema is True or schema == {}:
            return self._shared("any", self._anything)
        if "$ref" in schema:
            reference = schema["$ref"]
            return self._shared(reference, lambda: self._value(self._definition(reference)))
        if "anyOf" in schema:
            return self._either([self._value(option) for option in schema["anyOf"]])
        if "const" in schema:
            return self._either([self._constant(schema["const"])])
        kind = schema.get("type")
        if kind == "string" or "allOf" in schema:
            return self._text(schema)
        if "enum" in schema:
            return self._either([self._constant(value) for value in schema["enum"]])
        if kind == "null":
            return self._rule(json.dumps(self._style.null))
        if kind == "boolean":
            return self._either([self._constant(True), self._constant(False)])
        if kind == "array":
            return self._rule(f'"[" {self._items(schema)} "]"')
        if kind == "object":
            return self._rule(f'"{{" {self._members(schema)} "}}"')
        return self._number(schema)

    def _shared(self, key: str, make: Callable[[], str]) -> str:
        """The rule of a schema that is written once, and may refer to itself."""
        name = self._names.get(key)
        if name is None:
            self._count += 1
            name = self._names[key] = f"{self._prefix}_{self._count}"
            self.rules.append(f"{name}: {make()}")
        return name

    def _anything(self) -> str:
        kinds = ("null", "boolean", "number", "string", "array", "object")
        return " | ".join(self._value({"type": kind}) for kind in kinds)

    def _constant(self, value: Any) -> str:
        style = self._style
        if isinstance(value, bool):
            return json.dumps(style.true if value else style.false)
        return json.dumps(json.dumps(value))

    def _number(self, schema: dict[str, Any]) -> str:
        if schema == {"type": "number"}:
            return self._rule(f"/{_NUMBER}/")
        low = schema.get("minimum", schema.get("exclusiveMinimum"))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        bounds = dict(schema)
        if low is None:
            bounds["minimum"] = -_LARGE if high is None or high > -_LARGE else -_LARGEST
        if high is None:
            bounds["maximum"] = _LARGE if low is None or low < _LARGE else _LARGEST
        return self._json(bounds)

    def _json(self, schema: dict[str, Any]) -> str:
        guidance = {"json_allowed_escapes": _ESCAPES, "whitespace_flexible": False}
        return self._rule(f"%json {json.dumps({**schema, 'x-guidance': guidance})}")

    # ------------------------------------------------------------------ texts

    def _text(self, schema: dict[str, Any]) -> str:
        if self._style.quote:
            quote, text = self._literal(self._style.quote), render(self._plain(schema).tree())
            if not quote.startswith('"'):  # it has special tokens, which no text has
                return self._rule(f"{quote} /{text}/ {quote}")
            return self._rule(f"{quote} {self._rule(f'/{text}/ {quote}', lazy=True)}")
        if "enum" in schema:
            spelt = [spell(value) for value in schema["enum"] for spell in (_quoted, repr)]
            return self._either([json.dumps(text) for text in dict.fromkeys(spelt)])
        options = [self._json(schema)]
        if schema.keys() <= {"type", "minLength", "maxLength"}:
            least, most = schema.get("minLength", 0), schema.get("maxLength", "")
            options.append(f"/'{_IN_SINGLE_QUOTES}{{{least},{most}}}'/")
        return self._either(options)

    def _plain(self, schema: dict[str, Any]) -> Automaton:
        """Texts that stand as they are between quotes. Raises TooManyStates, Refused."""
        quote = _tree_of(self._style.quote)
        found = Automaton.of(Concat((ANYTHING, quote, ANYTHING))).complement()
        for part in schema.get("allOf", [schema]):
            if "format" in part:
                raise Refused("cannot be kept in this spelling", "format", "")
            if "pattern" in part:
                found = found.intersection(automaton_of(part["pattern"]))
            if "enum" in part:
                found = found.intersection(Automaton.of(Either(tuple(map(_tree_of, part["enum"])))))
            if "minLength" in part or "maxLength" in part:
                length = Repeat(Chars(ALL), part.get("minLength", 0), part.get("maxLength"))
                found = found.intersection(Automaton.of(length))
        if found.empty:
            raise Refused("has no text that can be written in this spelling", "string", "")
        return found

    # ------------------------------------------------------------------ arrays and objects

    def _items(self, schema: dict[str, Any]) -> str:
        comma = self._style.comma
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        prefix = schema.get("prefixItems", [])[:most]
        rest = schema.get("items", {})
        if rest is False or most == len(prefix):
            tail = first = None
        else:
            one = self._value(rest)
            low = max(0, least - len(prefix))
            high = None if most is None else most - len(prefix)
            tail = _times(f"{comma} {one}", low, high)
            some = f"{one} {_times(f'{comma} {one}', low - 1, None if high is None else high - 1)}"
            first = some if low else f"({some})?"
        if not prefix:
            return first or '""'
        values = [self._value(item) for item in prefix]
        expression = tail or '""'
        for place in reversed(range(len(values))):
            lead = values[place] if not place else f"{comma} {values[place]}"
            expression = self._rule(f"{lead} {expression}")
            if place >= least:
                expression = f"{expression}?"
        return expression

    def _members(self, schema: dict[str, Any], arguments: bool = False) -> str:
        """Named members in order, then others; each may be missing unless it is required."""
        style = self._style
        sign = style.equals if arguments else style.colon
        names = schema.get("properties", {})
        required = schema.get("required", [])
        least = max(0, schema.get("minProperties", 0) - len(required))
        most = schema["maxProperties"] - len(required) if "maxProperties" in schema else None
        written = [(n, value) for n, value in names.items() if value is not False]
        others = self._others(schema, arguments, sign)
        if others is None:
            none_yet = later = '""'
        else:
            member = f"{style.comma} {others}"
            later = _times(member, least, most)
            more = _times(member, least - 1, None if most is None else most - 1)
            none_yet = f"{others} {more}" if least else f"({others} {more})?"
        if style.ordered:
            written.sort()
        for name, value in reversed(written):
            member = f"{self._name(name, arguments)} {sign} {self._value(value)}"
            first = self._rule(f"{member} {later}")
            after = self._rule(f"{style.comma} {member} {later}")
            if name in required:
                none_yet, later = first, after
            else:
                none_yet, later = self._either([first, none_yet]), self._either([after, later])
        return none_yet

    def _name(self, name: str, arguments: bool) -> str:
        if not (arguments or self._style.bare):
            return json.dumps(_quoted(name))
        if not name or not all(c.isalnum() or c in "_-." for c in name):
            raise Refused(f"has the name {name!r:.100}, which needs quotes", "properties", "")
        return json.dumps(name)

    def _others(self, schema: dict[str, Any], arguments: bool, sign: str) -> str | None:
        """Members that the schema does not name; None: there are none."""
        bare = arguments or self._style.bare
        options = []
        additional = schema.get("additionalProperties", {})
        if additional is False and not schema.get("patternProperties"):
            return None
        named = list(schema.get("properties", {}))
        rest = Automaton.of(other_than(named) if named else ANYTHING)
        if bare:
            rest = rest.intersection(Automaton.of(parse(_NAME)))
        for pattern, value in schema.get("patternProperties", {}).items():
            automaton = automaton_of(pattern)
            if value is not False:
                options.append((rest.intersection(automaton), value))
            if additional is not False:
                rest = rest.intersection(automaton.complement())
        if additional is not False:
            options.append((rest, additional))
        members = [
            f"{self._other_name(names, bare)} {sign} {self._value(value)}"
            for names, value in options
            if not names.empty
        ]
        return self._either(members) if members else None

    def _other_name(self, names: Automaton, bare: bool) -> str:
        text = render(names.tree())
        if bare:
            return self._rule(f"/{text}/")
        return self._json({"type": "string", "pattern": f"^(?:{text})$"})


def _times(expression: str, least: int, most: int | None) -> str:
    if most == 0:
        return '""'
    return f"({expression}){{{max(0, least)},{'' if most is None else most}}}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _tree_of(text: str) -> Tree:
    return Concat(tuple(Chars(((ord(c),) * 2,)) for c in text))
