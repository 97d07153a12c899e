"""From schemas to unions of alternatives: every applicator and every negation is carried out.

A negation that cannot be carried out in full is replaced by a part of it: instances are then fewer
than the schema allows, never more. Where nothing is left, the schema is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

from galley.structured.regex import UnsupportedPattern, search_not
from galley.structured.schema.assertions import (
    Values,
    assertions,
    constant,
    matches,
    negated_assertions,
    only,
)
from galley.structured.schema.document import Document, Node, Refused
from galley.structured.schema.sets import (
    ANYTHING,
    Alternative,
    Conjunction,
    Evaluated,
    Objects,
    key_of,
    merged,
)

#: Most intersections of two alternatives for one schema document.
MAX_WORK = 50_000
#: Most alternatives of one schema.
MAX_ALTERNATIVES = 1_000
#: Alternatives that are kept where negations lead to more.
_KEPT = 100
#: Alternatives that are kept of a branch of an overlapping `oneOf`.
_MAX_BRANCH = 40
#: Properties inside properties that a proof of emptiness looks at.
_PROOF_DEPTH = 3


class _Loop(Refused):
    """A schema refers to itself without a value in between."""


class Expander:
    """Expands the schemas of one document, each once.

    Raises (all methods):
        Refused: a keyword's value is malformed, or cannot be kept, or the work exceeds MAX_WORK.
    """

    def __init__(self, document: Document) -> None:
        self.document = document
        self._known: dict[tuple[int, bool], tuple[list[Alternative], bool]] = {}
        self._conjunctions: dict[frozenset[tuple[int, bool]], tuple[list[Alternative], bool]] = {}
        self._open: set[tuple[int, bool]] = set()
        self._work = 0
        self._cuts = 0

    def alternatives(self, conjunction: Conjunction) -> list[Alternative]:
        """Alternatives whose union is what satisfies every node, or a part of it."""
        return self._conjunction(conjunction)[0]

    def _conjunction(self, conjunction: Conjunction) -> tuple[list[Alternative], bool]:
        """(alternatives, whether they are all there is)."""
        if not conjunction:
            return [ANYTHING], True
        if len(conjunction) == 1:
            return self._node(conjunction[0])
        key = key_of(conjunction)
        known = self._conjunctions.get(key)
        if known is None:
            result, exact = [ANYTHING], True
            cuts = self._cuts
            for node in conjunction:
                alternatives, all_of_them = self._node(node)
                exact = exact and all_of_them
                result = self.product(result, alternatives, node)
            exact = exact and cuts == self._cuts
            known = self._conjunctions[key] = result, exact
        return known

    def product(self, a: list[Alternative], b: list[Alternative], node: Node) -> list[Alternative]:
        """Every intersection of one of each that is not empty."""
        if len(a) == 1 and a[0] is ANYTHING:
            return b
        self._work += len(a) * len(b)
        if self._work > MAX_WORK:
            raise Refused("needs too many case distinctions", "schema", node.pointer)
        result = []
        for x in a:
            for y in b:
                both = x.both(y, self._matcher(node))
                if both is not None and not self._is_empty(both, 0):
                    result.append(both)
        if len(result) > MAX_ALTERNATIVES:
            # Those of negations are cases of one another's complement; some of them will do.
            kept = [a for a in result if not a.negation]
            if len(kept) < _KEPT:
                self._cuts += 1
                return kept + [a for a in result if a.negation][: _KEPT - len(kept)]
            raise Refused(
                f"leads to more than {MAX_ALTERNATIVES} alternatives", "schema", node.pointer
            )
        return result

    @staticmethod
    def _matcher(node: Node) -> Callable[[str, str], bool]:
        return lambda pattern, name: matches(pattern, name, node)

    # ------------------------------------------------------------------ one schema

    def _node(self, node: Node) -> tuple[list[Alternative], bool]:
        known = self._known.get(node.key)
        if known is not None:
            return known
        cuts = self._cuts
        if node.key in self._open:
            raise _Loop("refers to itself with no value in between", "$ref", node.pointer)
        self._open.add(node.key)
        try:
            known = self._negative(node) if node.negative else self._positive(node)
        except RecursionError:
            raise Refused("nests too deep", "schema", node.pointer) from None
        finally:
            self._open.discard(node.key)
        if cuts != self._cuts:
            known = known[0], False
        self._known[node.key] = known
        return known

    def _positive(self, node: Node) -> tuple[list[Alternative], bool]:
        schema = node.schema
        if isinstance(schema, bool):
            return ([ANYTHING] if schema else []), True
        if self.document.ref_alone and "$ref" in schema:
            return self._node(self.document.resolve(node, schema["$ref"]))
        base = assertions(self.document, node)
        result = [] if base is None else [base]
        exact = True
        for values in self._values(node):
            result = self.product(result, self._constants(values, node), node)
        for keyword, apply in _APPLICATORS.items():
            if keyword in schema:
                alternatives, all_of_them = apply(self, node)
                exact = exact and all_of_them
                result = self.product(result, alternatives, node)
        for keyword in ("unevaluatedProperties", "unevaluatedItems"):
            if keyword in schema:
                limit = [self._unevaluated(node, keyword, a) for a in result]
                result = [
                    both
                    for a, b in zip(result, limit, strict=True)
                    if (both := a.both(b, self._matcher(node))) is not None
                ]
        return result, exact

    def _values(self, node: Node) -> Iterable[list[Any]]:
        if "const" in node.schema:
            yield [node.schema["const"]]
        if "enum" in node.schema:
            values = node.schema["enum"]
            if not isinstance(values, list):
                raise Refused("is not an array", "enum", node.pointer)
            yield values

    def _constants(self, values: list[Any], node: Node) -> list[Alternative]:
        split = Values.of(values, node)
        result = split.scalars()
        result.extend(constant(self.document, value, node) for value in split.structures)
        return result

    # ------------------------------------------------------------------ applicators

    def _child(self, node: Node, *path: str | int) -> Node:
        schema = node.schema
        for step in path:
            schema = schema[step]
        return self.document.child(schema, node, *path)

    def _children(self, node: Node, keyword: str) -> list[Node]:
        schemas = node.schema[keyword]
        if not isinstance(schemas, list) or not schemas:
            raise Refused("is not an array of schemas", keyword, node.pointer)
        return [self._child(node, keyword, i) for i in range(len(schemas))]

    def _reference(self, node: Node, keyword: str) -> tuple[list[Alternative], bool]:
        return self._node(self.document.resolve(node, node.schema[keyword], keyword))

    def _ref(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._reference(node, "$ref")

    def _dynamic_ref(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._reference(node, "$dynamicRef")

    def _recursive_ref(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._reference(node, "$recursiveRef")

    def _all_of(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._conjunction(tuple(self._children(node, "allOf")))

    def _any_of(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._union((child,) for child in self._children(node, "anyOf"))

    def _union(self, members: Iterable[Conjunction]) -> tuple[list[Alternative], bool]:
        result: list[Alternative] = []
        exact = True
        for member in members:
            alternatives, all_of_them = self._conjunction(member)
            result.extend(alternatives)
            exact = exact and all_of_them
        result = merged(result)
        if any(alternative is ANYTHING for alternative in result) and not self.document.unevaluated:
            return [ANYTHING], True
        return result, exact

    def _one_of(self, node: Node) -> tuple[list[Alternative], bool]:
        children = self._children(node, "oneOf")
        result: list[Alternative] = []
        exact = True
        for i, child in enumerate(children):
            alternatives, all_of_them = self._node(child)
            exact = exact and all_of_them
            for j, other in enumerate(children):
                if i == j or not alternatives or self._disjoint(child, other, node):
                    continue
                if other.schema is child.schema or other.schema == child.schema:
                    alternatives = []
                    break
                negated, all_of_them = self._node(other.negated())
                alternatives = self.product(alternatives, negated, node)
                exact = exact and all_of_them
                if len(alternatives) > _MAX_BRANCH:
                    alternatives, exact = alternatives[:_MAX_BRANCH], False
            result.extend(alternatives)
        if not result and not exact:
            raise Refused("has branches that overlap", "oneOf", node.pointer)
        return result, exact

    def _disjoint(self, a: Node, b: Node, node: Node) -> bool:
        """Whether it is certain that no instance satisfies both."""
        try:
            left, left_exact = self._node(a)
            right, right_exact = self._node(b)
            if not (left_exact and right_exact):
                return False
            return not self.product(left, right, node)
        except _Loop:
            return False

    def _not(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._node(self._child(node, "not").negated())

    def _if(self, node: Node) -> tuple[list[Alternative], bool]:
        condition = self._child(node, "if")
        then = (self._child(node, "then"),) if "then" in node.schema else ()
        other = (self._child(node, "else"),) if "else" in node.schema else ()
        if not then and not other:
            return [ANYTHING], True
        return self._union([(condition, *then), (condition.negated(), *other)])

    def _dependent_required(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._dependent(node, "dependentRequired")

    def _dependent_schemas(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._dependent(node, "dependentSchemas")

    def _dependencies(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._dependent(node, "dependencies")

    def _dependent(self, node: Node, keyword: str) -> tuple[list[Alternative], bool]:
        rules = node.schema[keyword]
        if not isinstance(rules, dict):
            raise Refused("is not an object", keyword, node.pointer)
        result, exact = [ANYTHING], True
        for name, rule in rules.items():
            if isinstance(rule, str):
                rule = [rule]
            if isinstance(rule, list):
                rule = {"required": rule}
                then = self.document.made(rule, node)
            else:
                then = self._child(node, keyword, name)
            present = only("object", objects=Objects(required=(name,)))
            alternatives, all_of_them = self._node(then)
            alternatives = self.product([present], alternatives, node)
            exact = exact and all_of_them
            absent = Alternative(
                objects=Objects(properties={name: (self.document.made(False, node),)})
            )
            result = self.product(result, [absent, *alternatives], node)
        return result, exact

    # ------------------------------------------------------------------ unevaluated

    def _unevaluated(self, node: Node, keyword: str, found: Alternative) -> Alternative:
        limit = (self._child(node, keyword),)
        seen = found.evaluated
        if keyword == "unevaluatedItems":
            if seen.all_items:
                return Alternative(evaluated=Evaluated(all_items=True))
            arrays = ANYTHING.arrays.__class__(((),) * seen.items, limit)
            return Alternative(arrays=arrays, evaluated=Evaluated(all_items=True))
        if seen.all_names:
            return Alternative(evaluated=Evaluated(all_names=True))
        objects = Objects(
            dict.fromkeys(sorted(seen.names), ()), dict.fromkeys(sorted(seen.patterns), ()), limit
        )
        return Alternative(objects=objects, evaluated=Evaluated(all_names=True))

    # ------------------------------------------------------------------ negation

    def _negative(self, node: Node) -> tuple[list[Alternative], bool]:
        schema = node.schema
        if isinstance(schema, bool):
            return ([] if schema else [ANYTHING]), True
        if self.document.ref_alone and "$ref" in schema:
            return self._node(self.document.resolve(node, schema["$ref"]).negated())
        for keyword in ("unevaluatedProperties", "unevaluatedItems"):
            if keyword in schema:
                raise Refused("cannot be negated", keyword, node.pointer)
        result: list[Alternative] = []
        left_out: Refused | None = None
        exact = True
        for negate in self._negations(node):
            try:
                alternatives, all_of_them = negate()
            except _Loop:
                raise
            except Refused as error:
                left_out, exact = error, False
                continue
            result.extend(alternatives)
            exact = exact and all_of_them
        if not result and left_out is not None:
            raise left_out
        return [replace(a, negation=True) for a in result], exact

    def _negations(self, node: Node) -> list[Callable[[], tuple[list[Alternative], bool]]]:
        """For each keyword, the instances that violate it."""
        found = negated_assertions(self.document, node)
        found.extend(Values.of(values, node).others for values in self._values(node))
        positive = Node(node.schema, node.base, node.pointer)
        found.extend(
            partial(negate, self, positive)
            for keyword, negate in _NEGATIONS.items()
            if keyword in node.schema
        )
        return found

    def _not_reference(self, node: Node, keyword: str) -> tuple[list[Alternative], bool]:
        return self._node(self.document.resolve(node, node.schema[keyword], keyword).negated())

    def _not_ref(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._not_reference(node, "$ref")

    def _not_dynamic_ref(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._not_reference(node, "$dynamicRef")

    def _not_all_of(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._union((child.negated(),) for child in self._children(node, "allOf"))

    def _not_any_of(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._conjunction(tuple(c.negated() for c in self._children(node, "anyOf")))

    def _not_one_of(self, node: Node) -> tuple[list[Alternative], bool]:
        children = self._children(node, "oneOf")
        none = tuple(child.negated() for child in children)
        return self._union([none, *combinations(children, 2)])

    def _not_not(self, node: Node) -> tuple[list[Alternative], bool]:
        return self._node(self._child(node, "not"))

    def _not_if(self, node: Node) -> tuple[list[Alternative], bool]:
        condition = self._child(node, "if")
        members: list[Conjunction] = []
        if "then" in node.schema:
            members.append((condition, self._child(node, "then").negated()))
        if "else" in node.schema:
            members.append((condition.negated(), self._child(node, "else").negated()))
        return self._union(members)

    def _not_dependent(self, node: Node) -> tuple[list[Alternative], bool]:
        raise Refused("cannot be negated", "dependencies", node.pointer)

    def _not_pattern(self, node: Node) -> tuple[list[Alternative], bool]:
        pattern = node.schema["pattern"]
        try:
            parts = search_not(pattern)
        except (UnsupportedPattern, TypeError) as error:
            raise Refused(str(error), "pattern", node.pointer) from None
        strings = ANYTHING.strings.__class__(patterns=frozenset(parts))
        return [only("string", strings=strings)], True

    # ------------------------------------------------------------------ emptiness

    def _is_empty(self, alternative: Alternative, depth: int) -> bool:
        """Whether it is certain that no instance belongs to an alternative.

        Only objects and arrays are looked at, and of those only what they must have.
        """
        if alternative.types - {"object", "array"}:
            return False
        if "object" in alternative.types:
            objects = alternative.objects
            if not any(
                self.certainly_empty(objects.properties[name], depth + 1)
                for name in objects.required
                if name in objects.properties
            ):
                return False
        if "array" in alternative.types:
            arrays = alternative.arrays
            if not any(
                self.certainly_empty(arrays.item(i), depth + 1)
                for i in range(min(arrays.least, len(arrays.prefix) + 1))
            ):
                return False
        return True

    def certainly_disjoint(self, a: Conjunction, b: Conjunction) -> bool:
        """Whether it is certain that no instance satisfies both."""
        return bool(a) and bool(b) and self.certainly_empty(a + b, 0)

    def certainly_empty(self, conjunction: Conjunction, depth: int) -> bool:
        if any(
            isinstance(node.schema, bool) and node.schema == node.negative for node in conjunction
        ):
            return True
        if len(conjunction) < 2 or depth > _PROOF_DEPTH:
            return False
        try:
            alternatives, exact = self._conjunction(conjunction)
        except Refused:
            return False
        return exact and all(self._is_empty(a, depth) for a in alternatives)


_Apply = Callable[[Expander, Node], tuple[list[Alternative], bool]]
_APPLICATORS: dict[str, _Apply] = {
    "$ref": Expander._ref,
    "$dynamicRef": Expander._dynamic_ref,
    "$recursiveRef": Expander._recursive_ref,
    "allOf": Expander._all_of,
    "anyOf": Expander._any_of,
    "oneOf": Expander._one_of,
    "not": Expander._not,
    "if": Expander._if,
    "dependentRequired": Expander._dependent_required,
    "dependentSchemas": Expander._dependent_schemas,
    "dependencies": Expander._dependencies,
}
_NEGATIONS: dict[str, _Apply] = {
    "$ref": Expander._not_ref,
    "$dynamicRef": Expander._not_dynamic_ref,
    "allOf": Expander._not_all_of,
    "anyOf": Expander._not_any_of,
    "oneOf": Expander._not_one_of,
    "not": Expander._not_not,
    "if": Expander._not_if,
    "pattern": Expander._not_pattern,
    "dependentRequired": Expander._not_dependent,
    "dependentSchemas": Expander._not_dependent,
    "dependencies": Expander._not_dependent,
}
