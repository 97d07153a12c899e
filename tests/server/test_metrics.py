"""Counters equal the totals of the answers: exact, not sampled (http_behaviours 9)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest

from tests.server.served import MODEL, Served, serve
from tests.server.test_disconnect import send, wait_for


@pytest.fixture
def fresh() -> Iterator[Served]:
    with serve() as served:
        yield served


def test_an_answer_reports_the_load_on_request(fresh: Served) -> None:
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    named = {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0}
    text = "named_metrics.num_requests_waiting=0.0, named_metrics.kv_cache_usage_perc=0.0"
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", {"prompt": "hi"})):
        told = {}
        for form in ("text", "JSON", "BIN", ""):
            answer = fresh.post(path, body, headers={"endpoint-load-metrics-format": form})
            told[form] = answer.headers.get("endpoint-load-metrics")
        kind, _, report = told.pop("JSON").partition(" ")
        assert (kind, json.loads(report)) == ("JSON", {"named_metrics": named})
        assert told == {"text": f"TEXT {text}", "BIN": None, "": None}


def test_ten_requests_are_ten(fresh: Served) -> None:
    """Checklist 192–194, 197–199: whole and streamed, chat and completions, batches and n."""
    client = fresh.client()
    prompt_tokens = completion_tokens = sequences = 0
    options = {"include_usage": True}
    for i in range(10):
        n = 1 + i % 2
        prompts = [f"prompt {i}"] * (1 + i // 5)
        if i % 3 == 0:
            stream = client.completions.create(
                model=MODEL,
                prompt=prompts,
                n=n,
                max_tokens=4 + 2 * i,
                seed=1,
                stream=True,
                stream_options=options,
            )
            usage = list(stream)[-1].usage
        else:
            usage = client.completions.create(
                model=MODEL, prompt=prompts, n=n, max_tokens=4 + 2 * i, seed=1
            ).usage
        assert usage is not None
        prompt_tokens += usage.prompt_tokens
        completion_tokens += usage.completion_tokens
        sequences += n * len(prompts)
    assert fresh.metric("vllm:prompt_tokens_total") == prompt_tokens
    assert fresh.metric("vllm:generation_tokens_total") == completion_tokens
    by_reason = {
        reason: fresh.metric(f'vllm:request_success_total{{finished_reason="{reason}"}}')
        for reason in ("stop", "length", "abort", "error", "repetition")
    }
    assert sum(by_reason.values()) == sequences
    assert by_reason["abort"] == by_reason["error"] == by_reason["repetition"] == 0
    assert by_reason["length"]
    assert by_reason["stop"]
    for name in (
        "time_to_first_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_time_per_output_token_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_num_preemptions",
        "request_prefill_kv_computed_tokens",
        "request_params_max_tokens",
    ):
        assert fresh.metric(f"vllm:{name}_count") == sequences, name
    gaps = fresh.metric("vllm:inter_token_latency_seconds_count")
    assert gaps == completion_tokens - sequences
    assert fresh.metric('vllm:inter_token_latency_seconds_bucket{le="+Inf"}') == gaps
    assert fresh.metric("vllm:request_generation_tokens_sum") == completion_tokens
    assert fresh.metric("vllm:num_requests_running") == 0
    assert fresh.metric("vllm:kv_cache_usage_perc") == 0


def test_running_is_what_is_in_flight(fresh: Served) -> None:
    """Checklist 187, 190."""
    fresh.engine.script = lambda request: [5] * 200
    fresh.engine.pause = 0.02
    body = {"prompt": "hi", "max_tokens": 200, "stream": True}
    socks = [send(fresh, "/v1/completions", body) for _ in range(3)]
    wait_for(lambda: fresh.metric("vllm:num_requests_running") == 3)
    assert fresh.metric("vllm:kv_cache_usage_perc") > 0
    for sock in socks:
        sock.close()
    wait_for(lambda: fresh.engine.num_unfinished == 0)
    assert fresh.metric('vllm:request_success_total{finished_reason="abort"}') == 3
    assert fresh.metric("vllm:e2e_request_latency_seconds_count") == 3


def test_a_stop_string_counts_as_stop_and_its_tokens_are_counted(fresh: Served) -> None:
    answer = fresh.client().completions.create(model=MODEL, prompt="a", stop="Paris")
    assert answer.usage is not None
    assert fresh.metric("vllm:generation_tokens_total") == answer.usage.completion_tokens
    assert fresh.metric('vllm:request_success_total{finished_reason="stop"}') == 1


def test_refused_requests_count_nowhere_and_failed_ones_as_error(fresh: Served) -> None:
    fresh.post("/v1/completions", {"prompt": ""})
    assert fresh.metric("vllm:e2e_request_latency_seconds_count") == 0
    fresh.engine.failure = "no"
    with pytest.raises(openai.InternalServerError):
        fresh.client().completions.create(model=MODEL, prompt="a")
    assert fresh.metric('vllm:request_success_total{finished_reason="error"}') == 1


def test_cached_prompt_tokens(fresh: Served) -> None:
    prompt = list(range(5, 45))
    for _ in range(2):
        fresh.post("/v1/completions", {"prompt": prompt, "max_tokens": 2})
    assert fresh.metric("vllm:prompt_tokens_total") == 80
    assert fresh.metric("vllm:prompt_tokens_cached_total") == 32
    hit = fresh.metric('vllm:prompt_tokens_by_source_total{source="local_cache_hit"}')
    computed = fresh.metric('vllm:prompt_tokens_by_source_total{source="local_compute"}')
    assert (hit, computed) == (32, 48)
    assert fresh.metric("vllm:request_prefill_kv_computed_tokens_sum") == 48
