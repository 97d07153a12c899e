"""Random schemas, regular expressions and grammars at a high temperature: no answer is invalid."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema_rs
import pytest

from tests.structured.test_answers import prompts, structured
from tests.structured.tiny import open_tiny, write_tiny

COUNT = 40


def schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A small random schema; every one has an instance of few characters."""
    low = rng.randint(-20, 20)
    leaves: list[dict[str, Any]] = [
        {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 40)},
        {"type": "string", "minLength": rng.randint(0, 2), "maxLength": rng.randint(2, 6)},
        {"type": "string", "pattern": f"^{regex(rng)}$"},
        {"enum": rng.sample([None, True, 3, -1.5, "a", "b c", [1], {"k": 0}], rng.randint(1, 4))},
        {"type": "boolean"},
        {"type": "number", "exclusiveMinimum": 0, "multipleOf": rng.choice([0.5, 2]), "maximum": 9},
    ]
    if not depth:
        return rng.choice(leaves)
    names = rng.sample(["name", "value", "items", "a long name", "ß"], rng.randint(1, 3))
    least = rng.randint(0, 2)
    nested: list[dict[str, Any]] = [
        {
            "type": "object",
            "properties": {name: schema(rng, depth - 1) for name in names},
            "required": names[: rng.randint(0, len(names))],
            "additionalProperties": False,
        },
        {
            "type": "array",
            "items": schema(rng, depth - 1),
            "minItems": least,
            "maxItems": least + rng.randint(0, 2),
        },
        {"anyOf": [schema(rng, depth - 1), schema(rng, depth - 1)]},
        {"type": "array", "prefixItems": [schema(rng, 0), schema(rng, 0)], "items": False},
        {"type": "object", "patternProperties": {"^[xy]$": schema(rng, 0)}, "maxProperties": 1},
    ]
    return rng.choice(nested + leaves[:2])


def regex(rng: random.Random, depth: int = 2) -> str:
    if not depth:
        return rng.choice(["a", "[b-d]", "[0-9]", "x", "é", r"\.", '[^a-z"\\\\\\s]', "_"])
    parts = [regex(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    joined = "".join(parts) if rng.random() < 0.6 else f"({'|'.join(parts)})"
    return f"({joined}){rng.choice(['', '', '?', '{1,3}', '{2}'])}"


def grammar(rng: random.Random) -> tuple[str, str]:
    """A grammar in EBNF or Lark, and a regular expression of the same language."""
    words = rng.sample(["yes", "no", "per haps", 'a "b"', "e"], 3)
    first, other, end = (json.dumps(word) for word in words)
    pattern = f"(({re.escape(words[0])}|{re.escape(words[1])}),)*{re.escape(words[2])}"
    if rng.random() < 0.5:
        return f'root ::= item* {end}\nitem ::= ({first} | {other}) ","', pattern
    return f'start: item* {end}\nitem: ({first} | {other}) ","', pattern


@pytest.mark.parametrize("seed", [1, 2])
def test_no_finished_answer_is_invalid(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    schemas = [schema(rng) for _ in range(COUNT)]
    regexes = [regex(rng, 3) for _ in range(COUNT // 2)]
    grammars = [grammar(rng) for _ in range(COUNT // 4)]
    forms = [{"json": own} for own in schemas] + [{"regex": own} for own in regexes]
    forms += [{"grammar": text} for text, _ in grammars]
    params = [structured(form, seed=i, max_tokens=200) for i, form in enumerate(forms)]
    with open_tiny(write_tiny(tmp_path_factory.mktemp("tiny"))) as llm:
        outputs = llm.generate(prompts(len(params)), params, use_tqdm=False)
    texts = {
        i: o.outputs[0].text for i, o in enumerate(outputs) if o.outputs[0].finish_reason == "stop"
    }
    assert len(texts) > 0.8 * len(forms)
    for i, text in texts.items():
        if i < len(schemas):
            jsonschema_rs.validate(schemas[i], json.loads(text))
        elif i < len(schemas) + len(regexes):
            assert re.fullmatch(regexes[i - len(schemas)], text)
        else:
            assert re.fullmatch(grammars[i - len(schemas) - len(regexes)][1], text)
