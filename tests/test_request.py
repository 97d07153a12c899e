"""`SamplingParams` as its users write it: what is wrong names its field, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from galley import CompletionOutput, RequestOutput, SamplingParams
from galley.errors import InvalidRequest, Unsupported
from galley.outputs import RequestMetrics
from galley.request import STEERING_FIELDS, UNSUPPORTED_SAMPLING_FIELDS

VLLM_FIELDS = json.loads((Path(__file__).parent / "data/vllm_sampling_params.json").read_text())


@pytest.mark.parametrize("name", VLLM_FIELDS)
def test_every_field_of_vllms_acts_or_is_refused_by_name(name: str) -> None:
    default = VLLM_FIELDS[name]
    if name in SamplingParams.__struct_fields__:
        assert getattr(SamplingParams(), name) == default
        return
    SamplingParams(**{name: default})
    if name in STEERING_FIELDS:
        SamplingParams(**{name: 1})
        return
    with pytest.raises(Unsupported, match=name) as caught:
        SamplingParams(**{name: {"some": "thing"}})
    assert caught.value.field == name


def test_no_field_is_refused_that_vllm_does_not_have() -> None:
    assert {*UNSUPPORTED_SAMPLING_FIELDS, *STEERING_FIELDS} <= set(VLLM_FIELDS)


@pytest.mark.parametrize(
    ("given", "field", "words"),
    [
        ({"temprature": 1.0}, "temprature", "Did you mean temperature?"),
        ({"xyzzy": 1}, "xyzzy", "no field xyzzy"),
        ({"guided_decoding": {}}, "guided_decoding", "Did you mean structured_outputs?"),
        ({"n": "two"}, "n", "expected `int`, got `str`"),
        ({"max_tokens": 5.5}, "max_tokens", "expected `int"),
        ({"stop": 5}, "stop", "list"),
        ({"stop_token_ids": [1, "b"]}, "stop_token_ids", "got `str`"),
        ({"logit_bias": {"word": 1.0}}, "logit_bias", "expected `int`"),
        ({"ignore_eos": 1}, "ignore_eos", "expected `bool`"),
        ({"temperature": float("nan")}, "temperature", "finite"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias", "in [-1e30"),
        ({"top_p": 2}, "top_p", "in"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens", "at most max_tokens=8"),
        ({"stop": [""]}, "stop", "empty"),
        ({"stop": "x", "detokenize": False}, "stop", "detokenize"),
        ({"allowed_token_ids": []}, "allowed_token_ids", "empty"),
    ],
)
def test_a_fault_names_its_field(given: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(**given)
    assert caught.value.field == field
    assert caught.value.message.startswith((field, "SamplingParams has no field"))
    assert words in caught.value.message


def test_numbers_of_numpy_and_forms_of_json_are_read() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5), seed=np.int64(3), stop=("a", "b"), logit_bias={"5": 1}
    )
    assert (params.temperature, params.seed, params.stop) == (0.5, 3, ["a", "b"])
    assert params.logit_bias == {5: 1.0}
    assert SamplingParams(stop="a").stop == ["a"]


def test_a_clone_has_lists_of_its_own() -> None:
    params = SamplingParams(stop=["a"], stop_token_ids=[1], logits_processors=[len])
    clone = params.clone()
    assert clone == params
    assert clone.stop is not None
    clone.stop.append("b")  # type: ignore[union-attr]
    assert params.stop == ["a"]


def test_times_also_go_by_vllms_names() -> None:
    times = RequestMetrics(10.0, 11.0, 12.0, 13.0, 14.0)
    told = (times.queued_ts, times.scheduled_ts, times.first_token_ts, times.last_token_ts)
    assert (told, times.first_token_latency) == ((11.0, 12.0, 13.0, 14.0), 3.0)
    assert RequestMetrics(10.0).first_token_latency == 0.0


def test_it_crosses_the_process_border_whole() -> None:
    params = SamplingParams(n=3, seed=-1, logit_bias={7: -2.5}, bad_words=["no"], output_kind=2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(params), type=SamplingParams) == params


#: Of vLLM 0.32, in their order; `kwargs` there is for what later versions add.
OUTPUT = """request_id prompt prompt_token_ids prompt_logprobs outputs finished metrics lora_request
    encoder_prompt encoder_prompt_token_ids num_cached_tokens num_cache_creation_tokens
    prompt_token_id_logprobs kv_transfer_params ec_transfer_params"""
COMPLETION = """index text token_ids cumulative_logprob logprobs routed_experts finish_reason
    stop_reason lora_request sampling_mask spec_decode_metrics weight_versions"""


def test_outputs_have_every_attribute_of_vllms() -> None:
    completion = CompletionOutput(0, "text", [1])
    output = RequestOutput("id", "prompt", [1], [completion], False)
    unset = {n for n in OUTPUT.split() if getattr(output, n) is None}
    assert {n for n in COMPLETION.split() if getattr(completion, n) is not None} == {
        "index",
        "text",
        "token_ids",
    }
    assert set(OUTPUT.split()) - unset == {
        "request_id",
        "prompt",
        "prompt_token_ids",
        "outputs",
        "finished",
    }
    assert not completion.finished()
