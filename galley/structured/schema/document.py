"""A JSON schema document: its size limits, its dialect, and what its references mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from galley.errors import InvalidRequest

#: Most objects, arrays and values in a schema, and its deepest nesting.
MAX_VALUES = 200_000
MAX_DEPTH = 100
#: Dialects in which keywords beside `$ref` have no effect.
_REF_ALONE = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")
#: Keywords whose value holds instances, not schemas: nothing inside them is an anchor.
_DATA = frozenset({"const", "enum", "default", "examples", "example"})


class Refused(InvalidRequest):
    """A schema, or a part of it, that cannot be kept; names the keyword and its JSON pointer."""

    def __init__(self, reason: str, keyword: str, pointer: str) -> None:
        super().__init__(
            f"JSON schema: {keyword} at {pointer or '#'} {reason}.", field="json_schema"
        )
        self.keyword = keyword
        self.pointer = pointer


@dataclass(frozen=True, eq=False)
class Node:
    """A schema inside a document, or its negation.

    Attributes:
        schema: the schema itself; two nodes with the same object are the same schema.
        base: URI that its references are relative to.
        pointer: where it stands, for messages.
        negative: whether instances must not be valid.
    """

    schema: Any
    base: str
    pointer: str
    negative: bool = False

    @property
    def key(self) -> tuple[int, bool]:
        return id(self.schema), self.negative

    def negated(self) -> Node:
        return Node(self.schema, self.base, self.pointer, not self.negative)


class Document:
    """Resolves references within one schema document.

    Raises:
        Refused: the document is too large or nests too deep.
    """

    def __init__(self, schema: Any) -> None:
        self._resources: dict[str, Node] = {}
        self._anchors: dict[tuple[str, str], Node] = {}
        self._dynamic: dict[str, list[Node]] = {}
        self._nodes: dict[int, Node] = {}
        self._made: list[Any] = []
        self.unevaluated = False
        dialect = schema.get("$schema", "") if isinstance(schema, dict) else ""
        self.dialect = dialect if isinstance(dialect, str) else ""
        self.ref_alone = any(name in self.dialect for name in _REF_ALONE)
        self.root = Node(schema, "", "")
        self._resources[""] = self.root
        self._index(schema)

    def _index(self, schema: Any) -> None:
        """Record the position of every object, and each `$id` and anchor."""
        stack: list[tuple[Any, str, str, int, bool]] = [(schema, "", "", 0, True)]
        values = 0
        while stack:
            value, base, pointer, depth, is_schema = stack.pop()
            values += 1
            if values > MAX_VALUES:
                raise Refused(f"has more than {MAX_VALUES} values", "schema", "")
            if depth > MAX_DEPTH:
                raise Refused(f"nests deeper than {MAX_DEPTH}", "schema", "")
            if isinstance(value, dict):
                if is_schema:
                    base = self._record(value, base, pointer)
                for key, item in value.items():
                    if not isinstance(key, str):
                        raise Refused("has a key that is not a string", "schema", pointer)
                    if isinstance(item, dict | list):
                        inner = f"{pointer or '#'}/{_escaped(key)}"
                        # Inside `properties`, names are no keywords.
                        named = pointer.endswith("/properties")
                        data = not named and key in _DATA
                        stack.append((item, base, inner, depth + 1, is_schema and not data))
                    else:
                        values += 1
            elif isinstance(value, list):
                values += len(value)
                for i, item in enumerate(value):
                    if isinstance(item, dict | list):
                        stack.append((item, base, f"{pointer}/{i}", depth + 1, is_schema))
            elif not isinstance(value, bool | None | int | float | str):
                raise Refused("is not JSON", "schema", pointer)

    def _record(self, value: dict[str, Any], base: str, pointer: str) -> str:
        """Returns the base of what is inside."""
        for keyword in ("$id", "id"):
            name = value.get(keyword)
            if not isinstance(name, str):
                continue
            if name.startswith("#"):  # Draft 7's form of an anchor.
                self._anchors.setdefault((base, name[1:]), Node(value, base, pointer))
            elif keyword == "$id" or "draft-04" in self.dialect or "draft-03" in self.dialect:
                base = urldefrag(_join(base, name))[0]
                self._resources.setdefault(base, Node(value, base, pointer))
                if not pointer:
                    self.root = Node(value, base, pointer)
        node = Node(value, base, pointer)
        self._nodes[id(value)] = node
        for keyword in ("$anchor", "$dynamicAnchor"):
            if isinstance(name := value.get(keyword), str):
                self._anchors.setdefault((base, name), node)
        if isinstance(name := value.get("$dynamicAnchor"), str):
            self._dynamic.setdefault(name, []).append(node)
        if value.get("$recursiveAnchor") is True:
            self._dynamic.setdefault("", []).append(node)
        if "unevaluatedProperties" in value or "unevaluatedItems" in value:
            self.unevaluated = True
        return base

    def made(self, schema: Any, near: Node) -> Node:
        """A node for a schema that a rewrite has made. It is kept as long as the document."""
        self._made.append(schema)
        return Node(schema, near.base, near.pointer)

    def child(self, schema: Any, parent: Node, *path: str | int) -> Node:
        """The node of a schema inside `parent`."""
        if isinstance(schema, dict):
            if known := self._nodes.get(id(schema)):
                return known
        elif not isinstance(schema, bool):
            raise Refused("is not a schema (an object or a boolean)", str(path[0]), parent.pointer)
        pointer = "/".join([parent.pointer or "#", *(_escaped(str(step)) for step in path)])
        return Node(schema, parent.base, pointer)

    def resolve(self, node: Node, reference: Any, keyword: str = "$ref") -> Node:
        """The node that a `$ref` of `node` names.

        Raises:
            Refused: it names nothing in this document. Nothing is fetched.
        """
        if not isinstance(reference, str):
            raise Refused("is not a string", keyword, node.pointer)
        if keyword == "$recursiveRef":
            return self._only(self._dynamic.get("", []), node, keyword) or self.root
        target, fragment = urldefrag(_join(node.base, reference))
        if keyword == "$dynamicRef" and fragment in self._dynamic:
            # With one anchor of this name, the dynamic scope cannot choose another.
            found = self._only(self._dynamic[fragment], node, keyword)
            if found is not None:
                return found
        resource = self._resources.get(target)
        if resource is None and target == self.root.base:
            resource = self.root
        if resource is None:
            shown = reference if len(reference) <= 200 else reference[:200] + "…"
            raise Refused(
                f"names {shown!r}, which is not in this document; no other one is fetched",
                keyword,
                node.pointer,
            )
        if not fragment:
            return resource
        if fragment.startswith("/"):
            return self._at(resource, unquote(fragment), node, keyword)
        anchor = self._anchors.get((resource.base, fragment))
        if anchor is None:
            raise Refused(f"names the unknown anchor {fragment!r}", keyword, node.pointer)
        return anchor

    @staticmethod
    def _only(nodes: list[Node], node: Node, keyword: str) -> Node | None:
        if len(nodes) > 1:
            raise Refused("has several possible targets", keyword, node.pointer)
        return nodes[0] if nodes else None

    def _at(self, resource: Node, pointer: str, node: Node, keyword: str) -> Node:
        value = resource.schema
        for step in pointer[1:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
                value = value[int(step)]
            else:
                raise Refused(f"names #{pointer}, which does not exist", keyword, node.pointer)
        if not isinstance(value, dict | bool):
            raise Refused(f"names #{pointer}, which is not a schema", keyword, node.pointer)
        known = self._nodes.get(id(value)) if isinstance(value, dict) else None
        return known or Node(value, resource.base, f"#{pointer}")


def _join(base: str, reference: str) -> str:
    if not base or reference.startswith("#"):
        return urldefrag(base)[0] + reference if reference.startswith("#") else reference
    if base.startswith("urn:"):
        return reference
    return urljoin(base, reference)


def _escaped(step: str) -> str:
    return step.replace("~", "~0").replace("/", "~1")
