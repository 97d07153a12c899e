"""Measures the coverage of JSON Schema by keyword: the table of docs/structured-output.md.

    python -m tests.structured.coverage

Each schema of the corpus is given to both backends as Galley hands it over, and to both libraries
alone; random walks over what they allow are validated against the schema as it was given. The
result is written to docs/generate/structured_coverage.json. Needs xgrammar.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xgrammar
from jsonschema import Draft202012Validator, validators
from referencing.exceptions import Unresolvable

from galley.config.structured import structured_outputs_settings
from galley.errors import InvalidRequest
from galley.request import Constraint, StructuredOutputsParams
from galley.structured.check import ConstraintChecker
from galley.structured.xgrammar_backend import _grammar as galley_xgrammar
from tests.structured.corpus import Case, hand_written, real
from tests.structured.walks import END, Grammar, NotCompiled, walk

RESULT = Path(__file__).parents[2] / "docs/generate/structured_coverage.json"
SEEDS = range(10)
KEYWORDS = (
    *("type", "enum", "const"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("minLength", "maxLength", "pattern", "format"),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems"),
    *("contains", "minContains", "maxContains", "unevaluatedItems"),
    *("properties", "required", "additionalProperties", "patternProperties", "propertyNames"),
    *("minProperties", "maxProperties", "unevaluatedProperties"),
    *("dependentRequired", "dependentSchemas", "dependencies"),
    *("allOf", "anyOf", "oneOf", "not", "if"),
    *("$ref", "$defs", "definitions", "$id", "$anchor", "$dynamicRef", "$recursiveRef"),
)
_NAMES = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
Walker = Callable[[int], str | None]


class _XGrammar:
    def __init__(self) -> None:
        tokens = [bytes([i]) for i in range(256)] + [b""]
        info = xgrammar.TokenizerInfo(tokens, vocab_size=320, stop_token_ids=[END])
        self._compiler = xgrammar.GrammarCompiler(info)

    def walker(self, grammar: Any) -> Walker:
        compiled = self._compiler.compile_grammar(grammar)

        def one(seed: int) -> str | None:
            matcher = xgrammar.GrammarMatcher(compiled)
            bits = np.zeros((1, 10), np.int32)

            def mask() -> np.ndarray:
                matcher.fill_next_token_bitmask(bits, 0)
                return bits.view(np.uint8)[0]

            return walk(mask, matcher.accept_token, random.Random(seed))

        return one


def _ways() -> dict[str, Callable[[Any], Walker]]:
    """How a schema may be handed to a library; each raises what means that it is refused."""
    library = _XGrammar()
    checkers = {
        name: ConstraintChecker(structured_outputs_settings({"backend": name}))
        for name in ("guidance", "xgrammar")
    }

    def constraint(schema: Any, backend: str) -> Constraint:
        schema = schema if isinstance(schema, dict) else {"allOf": [schema]}
        return checkers[backend].check(StructuredOutputsParams(json=schema))

    return {
        "guidance": lambda s: Grammar.of_schema(constraint(s, "guidance").text).walk,
        "xgrammar": lambda s: library.walker(galley_xgrammar(constraint(s, "xgrammar"))),
        "llguidance alone": lambda s: Grammar.of_schema(json.dumps(s)).walk,
        "xgrammar alone": lambda s: library.walker(
            xgrammar.Grammar.from_json_schema(json.dumps(s), strict_mode=False)
        ),
    }


def keywords_of(schema: Any) -> set[str]:
    found: set[str] = set()
    stack = [(schema, True)]
    while stack:
        value, is_schema = stack.pop()
        if isinstance(value, list):
            stack.extend((item, True) for item in value)
        elif isinstance(value, dict):
            for key, item in value.items():
                if is_schema and key in KEYWORDS:
                    found.add(key)
                if not (is_schema and key in ("const", "enum")):
                    stack.append((item, not (is_schema and key in _NAMES)))
    return found


def _outcome(case: Case, way: Callable[[Any], Walker]) -> str:
    """ "refused", "valid" or "invalid"."""
    try:
        walker = way(case.schema)
        texts = [walker(seed) for seed in SEEDS]
    except (InvalidRequest, NotCompiled, RuntimeError, ValueError, AssertionError):
        return "refused"
    validator = validators.validator_for(case.schema, default=Draft202012Validator)(case.schema)
    for text in texts:
        if text is not None and not _is_valid(validator, text):
            return "invalid"
    return "valid"


def _is_valid(validator: Any, text: str) -> bool:
    try:
        return bool(validator.is_valid(json.loads(text)))
    except (ValueError, Unresolvable):
        return False


def measure() -> dict[str, Any]:
    ways = _ways()
    hand = [case for case in hand_written() if not case.invalid]
    result: dict[str, Any] = {"hand": {}, "real": {}, "keywords": {}}
    for group, cases in (("hand", hand), ("real", real())):
        totals = {name: {"accepted": 0, "invalid": 0} for name in ways}
        for case in cases:
            keywords = keywords_of(case.schema) if group == "hand" else set()
            for keyword in keywords:
                row = result["keywords"].setdefault(keyword, {"schemas": 0})
                row["schemas"] += 1
            for name, way in ways.items():
                outcome = _outcome(case, way)
                counts = [totals[name]]
                counts += [
                    result["keywords"][k].setdefault(name, {"accepted": 0, "invalid": 0})
                    for k in keywords
                ]
                for count in counts:
                    count["accepted"] += outcome != "refused"
                    count["invalid"] += outcome == "invalid"
        result[group] = {"schemas": len(cases), **totals}
        print(group, result[group], flush=True)
    order = {keyword: i for i, keyword in enumerate(KEYWORDS)}
    result["keywords"] = dict(sorted(result["keywords"].items(), key=lambda kv: order[kv[0]]))
    return result


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    RESULT.write_text(json.dumps(measure(), indent=1) + "\n")
