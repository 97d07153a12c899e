"""Answers under constraints: valid, and the same however they are computed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from galley import LLM, SamplingParams
from galley.errors import InvalidRequest
from galley.frontend.beam_search import BeamSearchParams
from galley.messages import Outputs
from galley.request import Constraint, StructuredOutputsParams, TokenMarker
from galley.structured.check import Job
from galley.structured.vocabulary import vocabulary_of
from tests.structured.tiny import VOCAB, answer, open_tiny, write_tiny

PERSON = {
    "type": "object",
    "properties": {
        "another_long_property_name": {"type": "string", "maxLength": 6},
        "identifier": {"type": "integer", "minimum": 0, "maximum": 999},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["another_long_property_name", "identifier", "tags"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    PERSON,
    {"enum": ["yes", 7, None, {"a": [1]}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-f]{2,5}$"}]},
    {
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
        "$ref": "#/$defs/node",
    },
    {"type": "number", "minimum": -3, "maximum": 3},
    {"type": "string", "format": "date"},
]
FORMS: list[dict[str, Any]] = [
    *({"json": schema} for schema in SCHEMAS),
    {"json": PERSON, "disable_any_whitespace": True},
    {"json_object": True},
    {"regex": r"[a-c]{2,6}@(x|yy)\.org"},
    {"choice": ["yes", "yes, sir", "no", 'a "quoted" one', "日本"]},
    {"grammar": 'root ::= "a" tail\ntail ::= "," root | "!"'},
    {"grammar": 'start: PAIR ("," PAIR)*\nPAIR: /[a-z]=[0-9]/'},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with open_tiny(folder) as made:
        yield made


def structured(form: dict[str, Any], **more: Any) -> SamplingParams:
    params = {"max_tokens": 300, "temperature": 2.0, "seed": 1, **more}
    return SamplingParams(structured_outputs=StructuredOutputsParams(**form), **params)


def run(llm: LLM, params: list[SamplingParams]) -> list[list[Any]]:
    return [answer(o) for o in llm.generate(prompts(len(params)), params, use_tqdm=False)]


def prompts(count: int) -> list[dict[str, list[int]]]:
    return [{"prompt_token_ids": [5 + i % 90] * (1 + i % 40)} for i in range(count)]


def assert_valid(form: dict[str, Any], text: str) -> None:
    if "json" in form:
        jsonschema_rs.validate(form["json"], json.loads(text))
    elif "json_object" in form:
        assert isinstance(json.loads(text), dict)
    elif "regex" in form:
        assert re.fullmatch(form["regex"], text)
    elif "choice" in form:
        assert text in form["choice"]
    elif form["grammar"].startswith("root"):
        assert re.fullmatch("a(,a)*!", text)
    else:
        assert re.fullmatch("[a-z]=[0-9](,[a-z]=[0-9])*", text)


def is_prefix(llm: LLM, params: SamplingParams, token_ids: list[int]) -> bool:
    """Whether a text of these tokens could be continued to a valid one."""
    assert params.structured_outputs is not None
    from galley.structured.llguidance_backend import open_backend

    tokenizer = llm.get_tokenizer()
    vocabulary = vocabulary_of(llm._tokenizer or tokenizer, VOCAB, (1,))
    constraint = llm._client.inputs.constraint_of(params.structured_outputs)
    return open_backend(vocabulary).compile(constraint).matcher().advance(token_ids)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: str(form)[:40])
def test_every_finished_answer_is_valid(llm: LLM, form: dict[str, Any]) -> None:
    params = [structured(form, seed=seed) for seed in range(12)]
    finished = 0
    for [one], own in zip(run(llm, params), params, strict=True):
        _, token_ids, text, _, reason, _ = one
        if reason == "stop":
            finished += 1
            assert_valid(form, text)
        else:
            assert reason == "length"
            assert len(token_ids) == 300
            assert is_prefix(llm, own, token_ids)
    assert finished >= 3


def test_xgrammar_gives_valid_answers_or_refuses(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xgrammar")
    from galley.structured.translation import constraint_of

    def checked(params: StructuredOutputsParams) -> Constraint:
        """In this process: a child would import torch once more."""
        return constraint_of(Job(params, "xgrammar", compact=False, closed=False))

    monkeypatch.setattr(llm._client.inputs, "constraint_of", checked)
    for form in (FORMS[1], FORMS[3], *FORMS[-4:]):
        for [one] in run(llm, [structured(form, seed=seed) for seed in range(3)]):
            if one[4] == "stop":
                assert_valid(form, one[2])
    with pytest.raises(InvalidRequest, match="maxLength"):
        run(llm, [structured({"json": PERSON})])


def mixed() -> list[SamplingParams]:
    """Constrained requests of all kinds among others."""
    more: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0},
        {"logprobs": 2},
        {"n": 2},
        {"min_tokens": 5, "repetition_penalty": 1.2},
        {"logit_bias": {70: 4.0}, "presence_penalty": 0.5},
        {"stop": ["1", "e"]},
        {"max_tokens": 7},
        {"top_k": 5, "prompt_logprobs": 1, "ignore_eos": True},
    ]
    params = []
    for i, form in enumerate(FORMS * 2):
        params.append(structured(form, **{"max_tokens": 60, "seed": i, **more[i % len(more)]}))
        if i % 2:
            params.append(SamplingParams(max_tokens=20, temperature=1.0, seed=i))
    return params


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[list[Any]]:
    """The answers to `mixed`, each computed alone and one token after the other."""
    with open_tiny(folder, enable_prefix_caching=False) as plain:
        plain._core.constrained.jump_forward = False
        params = mixed()
        return [
            answer(plain.generate([prompt], own, use_tqdm=False)[0])
            for prompt, own in zip(prompts(len(params)), params, strict=True)
        ]


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"distributed_executor_backend": "loopback"},
        {"max_num_batched_tokens": 16, "max_num_seqs": 7},
        {"num_gpu_blocks_override": 14, "max_model_len": 160},
        {"enable_chunked_prefill": False, "max_num_seqs": 5, "max_model_len": 512},
    ],
    ids=["batch", "loopback", "chunked", "preempted", "whole"],
)
def test_an_answer_is_the_same_however_it_is_computed(
    folder: Path, alone: list[list[Any]], flags: dict[str, Any]
) -> None:
    with open_tiny(folder, **flags) as llm:
        assert run(llm, mixed()) == alone
        assert run(llm, mixed()) == alone  # cached prompts and grammars
        core = llm._core
        assert core.counters.forced_tokens > 20
        assert (core.counters.num_preemptions > 0) == ("num_gpu_blocks_override" in flags)
        assert not len(core.constrained)
        core.check_integrity()


def test_forced_tokens_take_no_step(folder: Path) -> None:
    steps = {}
    answers = {}
    for jump in (True, False):
        with open_tiny(folder) as llm:
            core = llm._core
            core.constrained.jump_forward = jump
            form = {"json": PERSON, "disable_any_whitespace": True}
            answers[jump] = run(llm, [structured(form, temperature=1.0)])
            steps[jump] = core.counters.num_steps
    assert answers[True] == answers[False]
    tokens = len(answers[True][0][0][1])
    assert steps[False] >= tokens
    assert steps[True] < 0.7 * tokens


def test_an_answer_goes_on_in_another_engine(folder: Path, llm: LLM) -> None:
    """The tokens so far and the constraint are all that it needs."""
    own = structured({"json": PERSON}, temperature=1.0)
    [[one]] = run(llm, [own])
    submission = llm._client.inputs.process(prompts(1)[0], own, "replayed")
    [request] = submission.requests
    for known in range(1, len(one[1]) - 1, 5):
        request.output_token_ids = np.array(one[1][:known], np.int32).tobytes()
        request.handle += 1
        core = llm._core
        core.add([request])
        tokens = one[1][:known]
        while core.has_work or core.constrained.compiler.compiling:
            core.wait(1.0)
            for _, outputs in core.step():
                assert isinstance(outputs, Outputs)
                tokens += np.frombuffer(outputs.token_ids, np.int32).tolist()
        assert tokens == one[1]


def test_a_constraint_may_start_behind_a_marker(llm: LLM) -> None:
    """Text before the marker is free, text after it is constrained."""
    tokenizer = llm.get_tokenizer()
    marker = tokenizer.encode("e", add_special_tokens=False)
    form = {"choice": ["yes", "no"], "start_after": [TokenMarker.of_tokens(tuple(marker))]}
    params = [structured(form, seed=seed, max_tokens=400) for seed in range(20)]
    ends = 0
    for [one] in run(llm, params):
        _, token_ids, _, _, reason, _ = one
        if reason == "stop" and marker[0] in token_ids:
            ends += 1
            behind = token_ids[token_ids.index(marker[0]) + 1 :]
            assert tokenizer.decode(behind[:-1]) in ("yes", "no")
    assert ends >= 5


def test_special_tokens_in_structural_tags(llm: LLM) -> None:
    """They are written as tokens, and beside the tags neither stand nor are spelt."""
    marks = {
        name: llm.get_tokenizer().convert_tokens_to_ids(name) for name in ("<think>", "</think>")
    }
    content = {"type": "regex", "pattern": "[ab]{2,4}"}
    tag = {"type": "tag", "begin": "<think>", "content": content, "end": "</think>"}
    tags = {"type": "triggered_tags", "triggers": ["<think>"], "tags": [tag]}
    form = {"structural_tag": json.dumps({"format": tags}), "special_tokens": marks}
    more = {"skip_special_tokens": False, "logit_bias": {marks["<think>"]: 5.0}}
    params = [structured(form, seed=seed, max_tokens=400, **more) for seed in range(8)]
    found = 0
    for [[_, token_ids, text, *_]] in run(llm, params):
        assert text.count("<think>") == token_ids.count(marks["<think>"])
        closed = text.rpartition("</think>")[0] + "</think>"
        inside = re.findall("<think>(.*?)</think>", closed)
        assert all(re.fullmatch("[ab]{2,4}", one) for one in inside)
        found += len(inside)
    assert found


@pytest.mark.parametrize(
    "form", [{"regex": "[ab]{2,3}|yes"}, {"json": PERSON, "disable_any_whitespace": True}]
)
def test_every_beam_keeps_to_the_constraint(llm: LLM, form: dict[str, Any]) -> None:
    params = BeamSearchParams(
        beam_width=4, max_tokens=200, structured_outputs=StructuredOutputsParams(**form)
    )
    [prompt] = prompts(1)
    [found] = llm.beam_search([prompt], params)
    assert len(found.sequences) == 4
    written = len(prompt["prompt_token_ids"])
    texts = [llm.get_tokenizer().decode(s.tokens[written:]) for s in found.sequences]
    assert len({tuple(s.tokens) for s in found.sequences}) == 4
    for text, beam in zip(texts, found.sequences, strict=True):
        assert beam.finish_reason == "stop"
        assert_valid(form, text)
        own = [c[t].logprob for c, t in zip(beam.logprobs, beam.tokens[written:], strict=False)]
        assert beam.cum_logprob <= sum(own) + 1e-3


def test_rules_that_leave_nothing_fail_their_request_alone(llm: LLM) -> None:
    yes = llm.get_tokenizer().encode("y", add_special_tokens=False)
    own = structured({"choice": ["yes", "no"]}, allowed_token_ids=[*yes, 1])
    with pytest.raises(InvalidRequest, match="allowed_token_ids"):
        run(llm, [own])
    assert run(llm, [structured({"choice": ["yes"]})])[0][0][2] == "yes"
