"""Prompts and parameters become engine requests, or an error that names the field."""

from __future__ import annotations

import dataclasses
from array import array
from pathlib import Path
from typing import Any

import pytest

from galley.config import EngineConfig, ModelConfig, ModelInfo
from galley.errors import InvalidRequest, ModelError, Unsupported
from galley.frontend.input_processor import (
    InputProcessor,
    Limits,
    default_sampling_params,
    derived_seed,
    limits_of,
)
from galley.request import SamplingParams
from tests.frontend.scripted import VOCAB, LetterTokenizer

LIMITS = Limits(vocab_size=VOCAB, max_model_len=32, eos_token_ids=(0,), max_n=8)


def processor(limits: Limits = LIMITS, **kwargs: Any) -> InputProcessor:
    return InputProcessor(limits, LetterTokenizer(), **kwargs)


def ids_of(data: bytes) -> list[int]:
    return array("i", data).tolist()


@pytest.mark.parametrize(
    "prompt",
    [
        "abc",
        [97, 98, 99],
        {"prompt": "abc"},
        {"prompt_token_ids": [97, 98, 99]},
        {"prompt_token_ids": (97, 98, 99), "prompt": "abc"},
    ],
)
def test_every_shape_of_prompt_is_the_same_request(prompt: Any) -> None:
    made = processor().process(prompt, SamplingParams(max_tokens=4), "r")
    (request,) = made.requests
    assert ids_of(request.prompt_token_ids) == made.prompt_token_ids == [97, 98, 99]
    assert request.max_total_tokens == 7
    assert request.eos_token_ids == [0]
    assert request.request_id == "r"


def test_children_have_their_own_ids_seeds_and_one_share_group() -> None:
    made = processor().process("abc", SamplingParams(n=3, seed=7), "r")
    assert [r.request_id for r in made.requests] == ["0_r", "1_r", "2_r"]
    assert [r.sampling.seed for r in made.requests] == [7, 8, 9]
    assert [r.sampling.n for r in made.requests] == [1, 1, 1]
    assert len({r.handle for r in made.requests}) == 3
    assert len({r.share_group for r in made.requests}) == 1
    assert made.requests[0].share_group != 0


def test_the_last_seed_wraps_around() -> None:
    made = processor().process("abc", SamplingParams(n=2, seed=2**63 - 1), "r")
    assert made.requests[1].sampling.seed == -(2**63)


def test_a_request_without_a_seed_gets_one_from_its_number() -> None:
    first, second = processor(seed=3), processor(seed=3)
    seeds = [first.process("a", SamplingParams(), "r").requests[0].sampling.seed for _ in range(4)]
    again = [second.process("a", SamplingParams(), "r").requests[0].sampling.seed for _ in range(4)]
    assert seeds == again
    assert len(set(seeds)) == 4
    assert (
        processor(seed=4).process("a", SamplingParams(), "r").requests[0].sampling.seed not in seeds
    )
    assert all(0 <= derived_seed(s, c, n) < 2**52 for s in (0, -1) for c in (0, 9) for n in (1, 2))


def test_a_seed_of_minus_one_is_none() -> None:
    none, minus = (
        processor(seed=3).process("a", SamplingParams(seed=seed, n=2), "r").requests
        for seed in (None, -1)
    )
    assert [r.sampling.seed for r in minus] == [r.sampling.seed for r in none]
    (greedy,) = processor().process("a", SamplingParams(seed=-1, temperature=0.0), "r").requests
    assert greedy.sampling.seed is None
    _, second = processor().process("a", SamplingParams(seed=-2, n=2), "r").requests
    assert second.sampling.seed == -1


def test_greedy_needs_no_seed() -> None:
    made = processor().process("a", SamplingParams(temperature=0.0), "r")
    assert made.requests[0].sampling.seed is None


def test_handles_of_two_front_ends_are_distinct() -> None:
    handles = {
        processor(client_index=c).process("a", SamplingParams(n=4), "r").requests[i].handle
        for c in (0, 1, 2)
        for i in range(4)
    }
    assert len(handles) == 12


def test_fields_that_the_engine_does_not_need_are_not_sent() -> None:
    params = SamplingParams(stop="x", bad_words=["b"], stop_token_ids=[5, 10_000])
    (request,) = processor().process("abc", params, "r").requests
    assert request.sampling.stop is None
    assert request.sampling.bad_words is None
    assert request.sampling.stop_token_ids == [5]
    assert request.bad_words_token_ids == [[98]]


class SpaceMerging(LetterTokenizer):
    """A leading space becomes part of the first letter, as in byte-level BPE."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(text[1]) - 64, *text[2:].encode()] if text[:1] == " " else list(text.encode())


def test_bad_words_apply_at_the_start_and_after_a_space() -> None:
    merging = InputProcessor(LIMITS, SpaceMerging())
    (request,) = merging.process("abc", SamplingParams(bad_words=["bad"]), "r").requests
    assert request.bad_words_token_ids == [[98, 97, 100], [34, 97, 100]]


def test_no_maximum_means_the_models_length() -> None:
    made = processor().process("abc", SamplingParams(max_tokens=None), "r")
    assert made.requests[0].max_total_tokens == 32


def test_offline_the_maximum_is_clipped() -> None:
    params = SamplingParams(max_tokens=100, min_tokens=90)
    made = processor().process("abc", params, "r", clip_max_tokens=True)
    assert made.requests[0].max_total_tokens == 32


@pytest.mark.parametrize(("keep", "left"), [(2, [98, 99]), (3, [97, 98, 99]), (30, [97, 98, 99])])
def test_truncation_keeps_the_last_tokens(keep: int, left: list[int]) -> None:
    params = SamplingParams(truncate_prompt_tokens=keep, max_tokens=1)
    made = processor().process("abc", params, "r")
    assert made.prompt_token_ids == left
    assert made.requests[0].sampling.truncate_prompt_tokens is None


def test_truncation_without_max_tokens_leaves_room_for_one() -> None:
    params = SamplingParams(truncate_prompt_tokens=-1, max_tokens=None)
    made = processor().process("x" * 40, params, "r")
    assert len(made.prompt_token_ids) == LIMITS.max_model_len - 1
    assert made.requests[0].max_total_tokens == LIMITS.max_model_len


def test_truncation_to_the_models_length_leaves_room_for_the_answer() -> None:
    params = SamplingParams(truncate_prompt_tokens=-1, max_tokens=4)
    made = processor().process([65 + i % 26 for i in range(100)], params, "r")
    assert len(made.prompt_token_ids) == 28
    assert made.requests[0].max_total_tokens == 32
    params = SamplingParams(truncate_prompt_tokens=-1, max_tokens=None)
    made = processor().process([65 + i % 26 for i in range(100)], params, "r")
    assert len(made.prompt_token_ids) == 31, "without max_tokens, room for one token"
    assert made.requests[0].max_total_tokens == 32


BAD: list[tuple[Any, dict[str, Any], str, str]] = [
    ("", {}, "prompt", "empty"),
    ([], {}, "prompt", "empty"),
    ({"prompt_token_ids": []}, {}, "prompt", "empty"),
    ([1, 128], {}, "prompt", "Token id 128 is out of vocabulary"),
    ([1, -1], {}, "prompt", "Token id -1 is out of vocabulary"),
    ([1, "a"], {}, "prompt", "integers"),
    ([1, 2.5], {}, "prompt", "integers"),
    ([2**70], {}, "prompt", "integers"),
    (5, {}, "prompt", "int"),
    (b"abc", {}, "prompt", "bytes"),
    ({}, {}, "prompt", "needs"),
    ({"prompt": 5}, {}, "prompt", "text"),
    ({"prompt": "a", "cache_salt": ""}, {}, "cache_salt", "non-empty"),
    ("a" * 32, {}, "prompt", "32 tokens, but the prompt has 32"),
    ("a" * 20, {"max_tokens": 33}, "max_tokens", "max_model_len=32"),
    ("a" * 20, {"max_tokens": None, "min_tokens": 13}, "min_tokens", "12 tokens"),
    ("a", {"n": 9}, "n", "at most 8"),
    ("a", {"logprobs": 21}, "logprobs", "20 allowed"),
    ("a", {"logprobs": -1}, "logprobs", "128 candidates"),
    ("a", {"prompt_logprobs": 21}, "prompt_logprobs", "20 allowed"),
    ("a", {"allowed_token_ids": [3, 128]}, "allowed_token_ids", "128"),
    ("a", {"logit_bias": {-1: 1.0}}, "logit_bias", "-1"),
    ("a", {"truncate_prompt_tokens": 33}, "truncate_prompt_tokens", "33 cannot be greater"),
]


@pytest.mark.parametrize(("prompt", "params", "field", "words"), BAD)
def test_user_errors_name_the_field_and_the_limit(
    prompt: Any, params: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequest) as error:
        processor().process(prompt, SamplingParams(**params), "r")
    assert error.value.field == field
    assert words in error.value.message


def test_unknown_keys_of_a_prompt_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="multi_modal_data"):
        processor().process({"prompt": "a", "multi_modal_data": {}}, SamplingParams(), "r")


def test_unlimited_logprobs() -> None:
    limits = Limits(vocab_size=VOCAB, max_model_len=32, max_logprobs=-1)
    (request,) = processor(limits).process("a", SamplingParams(logprobs=-1), "r").requests
    assert request.sampling.logprobs == -1


def test_priority_is_passed_on() -> None:
    (request,) = processor().process("a", SamplingParams(), "r", priority=1).requests
    assert request.priority == 1


@pytest.mark.parametrize("clip", [True, False])
def test_the_room_that_a_prompt_leaves_lowers_the_maximum(clip: bool) -> None:
    made = processor().process("a" * 20, SamplingParams(max_tokens=32), "r", clip_max_tokens=clip)
    assert made.requests[0].max_total_tokens == 32


def test_without_a_tokenizer_prompts_are_token_ids() -> None:
    bare = InputProcessor(LIMITS, None)
    assert bare.process([1, 2], SamplingParams(), "r").prompt_token_ids == [1, 2]
    for prompt, params in (("a", {}), ([1], {"stop": "x"}), ([1], {"bad_words": ["x"]})):
        with pytest.raises((InvalidRequest, Unsupported), match="skip-tokenizer-init"):
            bare.process(prompt, SamplingParams(**params), "r")


def model_info(**generation: Any) -> ModelInfo:
    return ModelInfo("L", {}, VOCAB, 64, "float32", generation=generation)


def test_a_sequence_ends_where_config_or_tokenizer_say_so() -> None:
    config = EngineConfig(model=ModelConfig(model="m", max_model_len=32))
    ends = dataclasses.replace(model_info(), eos_token_ids=(5, 1))
    assert limits_of(config, ends, end_ids={1, 0, VOCAB}).eos_token_ids == (5, 1, 0)


def test_sampling_defaults_come_from_the_model_by_default(tmp_path: Path) -> None:
    info = model_info(temperature=0.6, top_k=20, max_new_tokens=7, top_p=None)
    expected = {"temperature": 0.6, "top_k": 20, "max_tokens": 7}
    assert default_sampling_params(EngineConfig(), info) == expected
    ignoring = EngineConfig(model=ModelConfig(generation_config="vllm"))
    assert default_sampling_params(ignoring, info) == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.3, "do_sample": true}')
    elsewhere = EngineConfig(model=ModelConfig(generation_config=str(tmp_path)))
    assert default_sampling_params(elsewhere, info) == {"temperature": 0.3}
    nowhere = EngineConfig(model=ModelConfig(generation_config=str(tmp_path / "none")))
    with pytest.raises(ModelError, match="generation_config"):
        default_sampling_params(nowhere, info)
    overriding = EngineConfig(model=ModelConfig(override_generation_config={"temperature": 0.1}))
    assert default_sampling_params(overriding, info) == {**expected, "temperature": 0.1}
