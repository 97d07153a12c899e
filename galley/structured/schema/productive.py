"""Definitions that no finite value satisfies, such as an object that must contain itself."""

from __future__ import annotations

from typing import Any


def prune(schema: Any, definitions: dict[str, Any]) -> Any:
    """The schema without parts that no finite value satisfies; False if nothing is left.

    `definitions` is changed in place. Schemas are in the form that `Emitter` writes.
    """
    finite: set[str] = set()
    users: dict[str, set[str]] = {}
    for name, body in definitions.items():
        for used in _references(body):
            users.setdefault(used, set()).add(name)
    waiting = list(definitions)
    while waiting:
        name = waiting.pop()
        if name not in finite and _has_value(definitions[name], finite):
            finite.add(name)
            waiting.extend(users.get(name, ()))
    for name in list(definitions):
        if name in finite:
            definitions[name] = _pruned(definitions[name], finite)
        else:
            del definitions[name]
    return _pruned(schema, finite) if _has_value(schema, finite) else False


def _name(schema: dict[str, Any]) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _references(schema: Any) -> list[str]:
    found = []
    stack = [schema]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found.append(_name(value))
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    return found


def _has_value(schema: Any, finite: set[str]) -> bool:
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        return _name(schema) in finite
    if "anyOf" in schema:
        return any(_has_value(option, finite) for option in schema["anyOf"])
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        extra = schema.get("minProperties", 0) - len(schema.get("required", []))
        if extra > 0:
            rest = [schema.get("additionalProperties", {})]
            rest.extend(schema.get("patternProperties", {}).values())
            if not any(_has_value(value, finite) for value in rest):
                return False
        return all(_has_value(properties[n], finite) for n in schema.get("required", []))
    if schema.get("type") == "array":
        prefix = schema.get("prefixItems", [])
        least = schema.get("minItems", 0)
        if not all(_has_value(item, finite) for item in prefix[:least]):
            return False
        return least <= len(prefix) or _has_value(schema.get("items", {}), finite)
    return True


def _pruned(schema: Any, finite: set[str]) -> Any:
    """A schema that has values, without its parts that have none."""
    if isinstance(schema, bool) or "$ref" in schema:
        return schema
    if "anyOf" in schema:
        options = [_pruned(o, finite) for o in schema["anyOf"] if _has_value(o, finite)]
        return options[0] if len(options) == 1 else {"anyOf": options}

    def part(value: Any) -> Any:
        return _pruned(value, finite) if _has_value(value, finite) else False

    result = dict(schema)
    for keyword in ("properties", "patternProperties"):
        if keyword in schema:
            result[keyword] = {name: part(value) for name, value in schema[keyword].items()}
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            result[keyword] = part(schema[keyword])
    if "prefixItems" in schema:
        prefix = [part(value) for value in schema["prefixItems"]]
        if False in prefix:
            # No array is as long as this.
            result["maxItems"] = min(prefix.index(False), schema.get("maxItems", len(prefix)))
            prefix, result["items"] = prefix[: result["maxItems"]], False
        result["prefixItems"] = prefix
        if not prefix:
            del result["prefixItems"]
    return result
