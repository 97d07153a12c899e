"""From unions of alternatives to a schema in the part of JSON Schema that llguidance keeps.

The result has `anyOf`, `$ref` to `#/$defs`, and for each type the keywords that llguidance enforces
exactly. What llguidance would refuse or only partly enforce is rewritten here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from typing import Any

from galley.structured.regex import (
    Automaton,
    Language,
    TooManyStates,
    other_than,
    pattern_of,
    render,
    search,
)
from galley.structured.regex.anchors import language_lengths
from galley.structured.regex.charset import ALL
from galley.structured.regex.syntax import Chars, Concat, Either, Repeat
from galley.structured.schema.arrays import array_sets
from galley.structured.schema.document import Node, Refused
from galley.structured.schema.expand import Expander
from galley.structured.schema.numbers import NotExpressible, number_schemas
from galley.structured.schema.patterns import (
    automaton_of,
    automaton_of_languages,
    generous_automaton_of,
    languages_of,
)
from galley.structured.schema.sets import (
    ANYTHING,
    Alternative,
    Arrays,
    Conjunction,
    Numbers,
    Objects,
    Strings,
    conjoined,
    key_of,
)

#: Most schemas in the result.
MAX_SCHEMAS = 30_000
#: Longest array and string that counts are kept for. Upper bounds above are lowered to these.
MAX_ITEMS = 1_000
MAX_LENGTH = 100_000
#: Longest constant text: the time of a mask grows with it.
MAX_CONSTANT = 10_000
#: Names that a pattern of names may stand for, to be written as properties.
_MAX_NAMES = 50
#: Ways to choose which optional properties are present.
_MAX_CHOICES = 300

_DATE = (
    r"(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)-"
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
#: Formats that are enforced: a pattern of ours, or None for llguidance's own.
FORMATS: dict[str, str | None] = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": None,
    "email": None,
    "hostname": None,
    "ipv4": None,
    "ipv6": None,
    "uri": None,
    "uuid": None,
}


class Emitter:
    """Writes conjunctions as schemas; each that holds arrays or objects becomes a definition."""

    def __init__(self, expander: Expander, *, closed: bool) -> None:
        self._expander = expander
        self._closed = closed
        self._names: dict[frozenset[tuple[int, bool]], str] = {}
        self._waiting: list[tuple[str, Conjunction]] = []
        self._count = 0
        self.definitions: dict[str, Any] = {}

    def run(self, root: Node) -> Any:
        """The schema of the root; `definitions` holds what it refers to.

        Raises:
            Refused
        """
        schema = self.schema((root,))
        while self._waiting:
            name, conjunction = self._waiting.pop()
            self.definitions[name] = self._body(conjunction)
        return schema

    def schema(self, conjunction: Conjunction) -> Any:
        if not conjunction:
            return {}
        alternatives = self._expander.alternatives(conjunction)
        if not alternatives:
            return False
        if all(a.types.isdisjoint({"array", "object"}) for a in alternatives):
            return self._body(conjunction)
        if any(_is_anything(a) for a in alternatives) and not self._closed:
            return {}
        key = key_of(conjunction)
        name = self._names.get(key)
        if name is None:
            name = self._names[key] = f"s{len(self._names)}"
            self._waiting.append((name, conjunction))
        return {"$ref": f"#/$defs/{name}"}

    def _body(self, conjunction: Conjunction) -> Any:
        near = conjunction[-1]
        options: list[Any] = []
        seen = set()
        refused: Refused | None = None
        for alternative in self._expander.alternatives(conjunction):
            try:
                written = self._alternative(alternative, near)
            except Refused as error:
                if not alternative.negation:
                    raise
                refused = error
                continue
            for option in written:
                text = json.dumps(option)
                if text not in seen:
                    seen.add(text)
                    options.append(option)
        self._count += 1 + len(options)
        if self._count > MAX_SCHEMAS:
            raise Refused(f"leads to more than {MAX_SCHEMAS} schemas", "schema", near.pointer)
        if not options and refused is not None:
            raise refused
        if {} in options:
            return {}
        if not options:
            return False
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _alternative(self, alternative: Alternative, near: Node) -> list[Any]:
        if _is_anything(alternative):
            return [{}]
        options: list[Any] = []
        types = alternative.types
        if "null" in types:
            options.append({"type": "null"})
        if "boolean" in types:
            if len(alternative.booleans) == 2:
                options.append({"type": "boolean"})
            else:
                options.append({"const": next(iter(alternative.booleans))})
        for kind, write in (
            ("number", lambda: self._numbers(alternative.numbers, near)),
            ("string", lambda: self._strings(alternative.strings, near)),
            ("array", lambda: self._arrays(alternative.arrays, near)),
            ("object", lambda: self._objects(alternative.objects, near)),
        ):
            if kind in types:
                options.extend(write())
        return options

    # ------------------------------------------------------------------ scalars

    @staticmethod
    def _numbers(numbers: Numbers, near: Node) -> list[Any]:
        try:
            return list(number_schemas(numbers))
        except NotExpressible as error:
            raise Refused(str(error), "number", near.pointer) from None

    def _strings(self, strings: Strings, near: Node) -> list[Any]:
        try:
            return self._string(strings, near)
        except TooManyStates:
            raise Refused("is too complex", "pattern", near.pointer) from None

    def _string(self, strings: Strings, near: Node) -> list[Any]:
        if strings.values is not None:
            automata = [automaton_of_languages(p) for p in strings.patterns]
            values = [v for v in strings.values if all(a.matches(v) for a in automata)]
            for value in values:
                if len(value) > MAX_CONSTANT:
                    raise Refused(
                        f"has a text of more than {MAX_CONSTANT} characters", "enum", near.pointer
                    )
                if any(code < 32 and chr(code) not in "\n\r\t\b\f" for code in map(ord, value)):
                    raise Refused("has a control character", "enum", near.pointer)
                if "\x7f" in value or any("\ud800" <= c <= "\udfff" for c in value):
                    raise Refused("has a character that cannot be written", "enum", near.pointer)
            return [{"type": "string", "enum": sorted(values)}] if values else []
        if strings.least > MAX_LENGTH:
            raise Refused(f"is greater than {MAX_LENGTH}", "minLength", near.pointer)
        bounds: dict[str, Any] = {}
        # Bounds that a pattern implies are left out: llguidance would have to intersect them.
        implied = [language_lengths(languages) for languages in strings.patterns]
        if strings.least > max((low for low, _ in implied), default=0):
            bounds["minLength"] = strings.least
        if strings.most is not None and not any(
            high is not None and high <= strings.most for _, high in implied
        ):
            bounds["maxLength"] = min(strings.most, MAX_LENGTH)
        parts: list[dict[str, Any]] = [
            {"pattern": f"^(?:{text})$"}
            for languages in _ordered(strings.patterns)
            for text in _texts(languages)
        ]
        if strings.refused:
            parts.append({"pattern": f"^(?:{render(other_than(strings.refused))})$"})
        for name in sorted(strings.formats):
            if name in FORMATS:
                ours = FORMATS[name]
                parts.append({"format": name} if ours is None else {"pattern": ours})
        if len(parts) <= 1:
            return [{"type": "string", **bounds, **(parts[0] if parts else {})}]
        typed = [{"type": "string", **part} for part in parts]
        return [{"allOf": [{**typed[0], **bounds}, *typed[1:]]}]

    # ------------------------------------------------------------------ arrays

    def _arrays(self, arrays: Arrays, near: Node) -> list[Any]:
        return [
            schema
            for part in array_sets(arrays, self._expander, near)
            if (schema := self._array(part, near)) is not None
        ]

    def _array(self, arrays: Arrays, near: Node) -> Any:
        if arrays.least > MAX_ITEMS:
            raise Refused(f"is greater than {MAX_ITEMS}", "minItems", near.pointer)
        schema: dict[str, Any] = {"type": "array"}
        if arrays.prefix:
            schema["prefixItems"] = [self.schema(item) for item in arrays.prefix]
        if arrays.items:
            schema["items"] = self.schema(arrays.items)
        if arrays.least:
            schema["minItems"] = arrays.least
        if arrays.most is not None:
            schema["maxItems"] = max(arrays.least, min(arrays.most, MAX_ITEMS))
        return schema

    # ------------------------------------------------------------------ objects

    def _objects(self, objects: Objects, near: Node) -> list[Any]:
        return [
            schema
            for part in self._with_others(self._named(objects, near), near)
            for schema in self._object(part, near)
        ]

    def _with_others(self, objects: Objects, near: Node) -> list[Objects]:
        """Without `beyond`: for each entry, one of the named properties is required."""
        parts = [replace(objects, beyond=())]
        for names, schemas in objects.beyond:
            parts = [
                replace(
                    part,
                    properties={**part.properties, name: conjoined(value, schemas)},
                    required=part.required + (() if name in part.required else (name,)),
                )
                for part in parts
                for name, value in part.properties.items()
                if name not in names
            ]
            if len(parts) > _MAX_CHOICES:
                parts = parts[:_MAX_CHOICES]
        if not parts and (objects.patterns or self.schema(objects.additional) is not False):
            raise Refused("cannot be negated here", "additionalProperties", near.pointer)
        return parts

    def _object(self, objects: Objects, near: Node) -> list[Any]:
        properties = dict(objects.properties)
        for name in objects.required:
            if name not in properties:
                properties[name] = objects.of(name, _matches)
        additional = self.schema(objects.additional)
        if self._closed and properties and not objects.additional and not objects.patterns:
            additional = False
        written = {name: self.schema(value) for name, value in properties.items()}
        if any(written[name] is False for name in objects.required):
            return []
        patterns = self._patterns(objects, near)
        schema = {
            "type": "object",
            "properties": written,
            "patternProperties": patterns,
            "additionalProperties": additional,
            "required": list(objects.required),
        }
        choices = _counted(schema, objects.least, objects.most, near)
        return [_shortened(choice) for choice in choices]

    def _named(self, objects: Objects, near: Node) -> Objects:
        """The same objects without `propertyNames`."""
        if not objects.names:
            return objects
        alternatives = [
            a.strings for a in self._expander.alternatives(objects.names) if "string" in a.types
        ]
        if any(s == Strings() for s in alternatives):
            return objects
        try:
            allowed = _name_languages(alternatives)
            return self._filtered(objects, allowed, near)
        except TooManyStates:
            raise Refused("is too complex", "propertyNames", near.pointer) from None

    def _filtered(self, objects: Objects, allowed: tuple[Language, ...], near: Node) -> Objects:
        nothing = (self._expander.document.made(False, near),)
        if not (objects.properties or objects.required or objects.patterns):
            patterns = {f"^(?:{pattern_of(allowed)})$": objects.additional}
            return replace(objects, patterns=patterns, additional=nothing, names=())
        names = Automaton.of_languages(allowed)
        properties = {
            name: value if names.matches(name) else nothing
            for name, value in objects.properties.items()
        }
        for name in objects.required:
            if name not in properties:
                value = objects.of(name, _matches)
                properties[name] = value if names.matches(name) else nothing
        patterns, rest = {}, names
        for pattern, value in objects.patterns.items():
            automaton = automaton_of(pattern)
            text = render(automaton.intersection(names).tree())
            patterns[f"^(?:{text})$"] = value
            rest = rest.intersection(automaton.complement())
        if not objects.patterns:
            patterns[f"^(?:{pattern_of(allowed)})$"] = objects.additional
        elif not rest.empty:
            patterns[f"^(?:{render(rest.tree())})$"] = objects.additional
        return replace(
            objects, properties=properties, patterns=patterns, additional=nothing, names=()
        )

    def _patterns(self, objects: Objects, near: Node) -> dict[str, Any]:
        """Patterns of names that exclude each other, each with its schema."""
        try:
            cells = self._cells(objects)
            if objects.patterns and self.schema(objects.additional) is not False:
                cells.extend(self._doubtful(objects))
        except TooManyStates:
            raise Refused("is too complex", "patternProperties", near.pointer) from None
        written: dict[str, Any] = {}
        for text, value in cells:
            schema = self.schema(value)
            written[f"^(?:{text})$"] = schema
        return written

    def _doubtful(self, objects: Objects) -> list[tuple[str, Conjunction]]:
        """Names that match a pattern in one dialect and not in another: there are none of them.

        Raises TooManyStates.
        """
        nothing = (self._expander.document.made(False, self._expander.document.root),)
        doubtful: Automaton | None = None
        for pattern in objects.patterns:
            if search(pattern, generous=True) != languages_of(pattern):
                found = generous_automaton_of(pattern).complement()
                doubtful = found if doubtful is None else doubtful.intersection(found)
        if doubtful is None:
            return []
        doubtful = doubtful.complement()
        for pattern in objects.patterns:
            doubtful = doubtful.intersection(automaton_of(pattern).complement())
        return [] if doubtful.empty else [(render(doubtful.tree()), nothing)]

    @staticmethod
    def _cells(objects: Objects) -> list[tuple[str, Conjunction]]:
        patterns = list(objects.patterns.items())
        if len(patterns) == 1:
            pattern, value = patterns[0]
            return [(pattern_of(languages_of(pattern)), value)]
        cells: list[tuple[Automaton, Conjunction, str | None]] = []
        for pattern, value in patterns:
            left = automaton_of(pattern)
            text: str | None = pattern_of(languages_of(pattern))
            split: list[tuple[Automaton, Conjunction, str | None]] = []
            for automaton, other, known in cells:
                common = automaton.intersection(left)
                if common.empty:
                    split.append((automaton, other, known))
                    continue
                split.append((common, conjoined(other, value), None))
                outside = automaton.intersection(left.complement())
                if not outside.empty:
                    split.append((outside, other, None))
                left, text = left.intersection(automaton.complement()), None
            if not left.empty:
                split.append((left, value, text))
            cells = split
        return [
            (render(automaton.tree()) if known is None else known, value)
            for automaton, value, known in cells
        ]


def _matches(pattern: str, name: str) -> bool:
    return generous_automaton_of(pattern).matches(name)


def _is_anything(alternative: Alternative) -> bool:
    return alternative is ANYTHING or (
        alternative.types == ANYTHING.types
        and alternative.booleans == ANYTHING.booleans
        and alternative.numbers == ANYTHING.numbers
        and alternative.strings == Strings(formats=alternative.strings.formats)
        and not any(name in FORMATS for name in alternative.strings.formats)
        and alternative.arrays == ANYTHING.arrays
        and alternative.objects == ANYTHING.objects
    )


def _ordered(patterns: frozenset[tuple[Language, ...]]) -> list[tuple[Language, ...]]:
    return sorted(patterns, key=repr) if len(patterns) > 1 else list(patterns)


def _literal(text: str) -> Concat:
    return Concat(tuple(Chars(((ord(c), ord(c)),)) for c in text))


def _texts(languages: tuple[Language, ...]) -> list[str]:
    """Patterns that must all match, for the languages of which one must. Raises TooManyStates."""
    if len(languages) == 1:
        (language,) = languages
        texts = [render(tree) for tree in language.required]
        texts.extend(render(Automaton.of(tree).complement().tree()) for tree in language.excluded)
        return texts
    return [pattern_of(languages)]


def _name_languages(alternatives: list[Strings]) -> tuple[Language, ...]:
    """Languages of strings, for names of properties. Raises TooManyStates."""
    found: list[Language] = []
    for strings in alternatives:
        if strings.values is not None:
            whole = Language((Either(tuple(_literal(v) for v in sorted(strings.values))),))
        else:
            implied = [language_lengths(languages) for languages in strings.patterns]
            least = 0 if any(low >= strings.least for low, _ in implied) else strings.least
            most = strings.most
            if most is not None and any(high is not None and high <= most for _, high in implied):
                most = None
            any_length = strings.patterns and least == 0 and most is None
            whole = Language(() if any_length else (Repeat(Chars(ALL), least, most),))
        excluded = tuple(_literal(value) for value in sorted(strings.refused))
        parts = [Language(whole.required, excluded)]
        for languages in strings.patterns:
            parts = [
                Language(a.required + b.required, a.excluded + b.excluded)
                for a in parts
                for b in languages
            ]
        found.extend(parts)
    return tuple(found)


def _shortened(schema: dict[str, Any]) -> dict[str, Any]:
    """Without keywords that say nothing."""
    kept = {k: v for k, v in schema.items() if v not in ({}, [])}
    kept["type"] = "object"
    return kept


def _counted(
    schema: dict[str, Any], least: int, most: int | None, near: Node
) -> list[dict[str, Any]]:
    """Schemas for objects with a number of properties between bounds.

    llguidance counts additional properties, but only beside required ones; and it does not see
    that a name is repeated, so that no lower bound above 1 can rest on additional properties.
    """
    written, required = schema["properties"], schema["required"]
    open_ended = bool(schema["patternProperties"]) or schema["additionalProperties"] is not False
    optional = [n for n, v in written.items() if n not in required and v is not False]
    least = max(0, least - len(required))
    room = None if most is None else most - len(required)
    if room is not None and not open_ended and room >= len(optional):
        room = None
    if room is not None and room < 0:
        return []
    if least == 0 and room is None:
        return [schema]
    if room == 0:
        return [_chosen(schema, (), optional, open_ended=False)]
    if least <= 1 and not optional and open_ended:
        limits: dict[str, Any] = {}
        if least:
            limits["minProperties"] = least + len(required)
        if room is not None:
            limits["maxProperties"] = room + len(required)
        return [{**schema, **limits}]
    return _choices(schema, least, room, optional, open_ended, near)


def _choices(
    schema: dict[str, Any],
    least: int,
    room: int | None,
    optional: list[str],
    open_ended: bool,
    near: Node,
) -> list[dict[str, Any]]:
    """By which of the optional properties are present. Additional ones only where they may be."""
    if room is None:
        # The first `least` present ones are required; later ones stay optional.
        result = []
        for chosen in _some(optional, least, near, "minProperties"):
            last = optional.index(chosen[-1]) if chosen else -1
            absent = [n for n in optional[:last] if n not in chosen]
            result.append(_chosen(schema, chosen, absent, open_ended=open_ended))
        if least == 1 and open_ended:
            extra = _chosen(schema, (), optional, open_ended=True)
            result.append({**extra, "minProperties": 1 + len(extra["required"])})
        if not result:
            raise Refused(
                f"of {least} needs names that the schema does not give",
                "minProperties",
                near.pointer,
            )
        return result
    if room >= len(optional) and least <= len(optional):
        # Named properties alone: additional ones would have to be counted with them.
        return (
            _choices(
                {**schema, "patternProperties": {}, "additionalProperties": False},
                least,
                None,
                optional,
                False,
                near,
            )
            if least
            else [_chosen(schema, (), [], open_ended=False)]
        )
    result = []
    for chosen in _some(optional, min(room, len(optional)), near, "maxProperties"):
        others = [n for n in optional if n not in chosen]
        kept = _chosen(schema, (), others, open_ended=False)
        result.extend(
            _counted(kept, least + len(kept["required"]), None, near) if least else [kept]
        )
    return result


def _some(names: list[str], count: int, near: Node, keyword: str) -> list[tuple[str, ...]]:
    if count > len(names):
        return []
    result = []
    for chosen in combinations(names, count):
        result.append(chosen)
        if len(result) > _MAX_CHOICES:
            raise Refused("leads to too many choices of properties", keyword, near.pointer)
    return result


def _chosen(
    schema: dict[str, Any], required: tuple[str, ...], absent: list[str], *, open_ended: bool
) -> dict[str, Any]:
    written = {n: False if n in absent else v for n, v in schema["properties"].items()}
    return {
        **schema,
        "properties": written,
        "required": [*schema["required"], *required],
        "patternProperties": schema["patternProperties"] if open_ended else {},
        "additionalProperties": schema["additionalProperties"] if open_ended else False,
    }
