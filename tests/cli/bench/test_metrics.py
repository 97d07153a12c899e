"""Figures of a run, checked by hand."""

import numpy as np
import pytest

from galley.cli.bench.backends import Outcome
from galley.cli.bench.metrics import (
    fairness,
    is_good,
    jain_index,
    parse_goodput,
    parse_metrics,
    parse_percentiles,
    peaks,
    summarize,
)
from galley.errors import ConfigError


def outcome(start=0.0, ttft=0.1, itls=(0.02, 0.04), prompt=10, client=0, cached=None, ok=True):
    return Outcome(
        start=start,
        success=ok,
        ttft=ttft,
        itls=list(itls),
        latency=ttft + sum(itls),
        prompt_tokens=prompt,
        output_tokens=len(itls) + 1,
        cached_tokens=cached,
        client=client,
        error="" if ok else "no",
    )


def summary(outcomes, duration=2.0, goodput=None, percentiles=(50, 99)):
    return summarize(
        outcomes, duration, goodput or {}, ["ttft", "tpot", "itl", "e2el"], percentiles
    )


def test_counts_and_rates():
    result = summary([outcome(), outcome(start=1.0), outcome(ok=False)])
    assert (result["completed"], result["failed"]) == (2, 1)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (20, 6)
    assert result["request_throughput"] == 1.0
    assert result["output_throughput"] == 3.0
    assert result["total_token_throughput"] == 13.0
    assert result["request_goodput"] is None


def test_latencies_have_vllms_names_and_are_milliseconds():
    result = summary([outcome(ttft=0.1), outcome(ttft=0.3)], percentiles=(90, 99.9))
    assert result["mean_ttft_ms"] == pytest.approx(200)
    assert result["median_ttft_ms"] == pytest.approx(200)
    assert result["std_ttft_ms"] == pytest.approx(100)
    assert result["p90_ttft_ms"] == pytest.approx(np.percentile([100, 300], 90))
    assert result["p99.9_ttft_ms"] == pytest.approx(np.percentile([100, 300], 99.9))
    assert result["mean_tpot_ms"] == pytest.approx(30)
    assert result["mean_itl_ms"] == pytest.approx(30)
    assert result["median_e2el_ms"] == pytest.approx(260)


def test_only_selected_metrics_are_reported():
    result = summarize([outcome()], 1.0, {}, ["itl"], [99])
    assert "mean_itl_ms" in result
    assert "mean_ttft_ms" not in result


def test_one_token_has_no_time_per_output_token():
    single = outcome(itls=())
    assert single.tpot == 0
    assert "mean_tpot_ms" not in summary([single])


def test_a_run_without_success_has_no_latencies_and_no_rates():
    result = summary([outcome(ok=False)])
    assert result["output_throughput"] == 0
    assert "mean_ttft_ms" not in result
    assert result["max_concurrent_requests"] == 0


def test_goodput_counts_requests_within_all_limits():
    quick, slow = outcome(ttft=0.1), outcome(ttft=0.1, itls=(0.2, 0.2))
    limits = parse_goodput(("ttft:150", "tpot:50"))
    assert is_good(quick, limits)
    assert not is_good(slow, limits)
    assert not is_good(outcome(ok=False), {})
    assert summary([quick, slow, outcome(ttft=0.16)], 2.0, limits)["request_goodput"] == 0.5


@pytest.mark.parametrize("pair", ["itl:5", "ttft", "ttft:-1", "ttft:soon"])
def test_goodput_refuses_unknown_metrics(pair):
    with pytest.raises(ConfigError, match="--goodput"):
        parse_goodput((pair,))


def test_lists_of_names_and_percentiles():
    assert parse_metrics("ttft, itl") == ["ttft", "itl"]
    assert parse_percentiles("50,99.9") == [50.0, 99.9]
    for wrong in ("101", "", "a"):
        with pytest.raises(ConfigError):
            parse_percentiles(wrong)
    with pytest.raises(ConfigError):
        parse_metrics("ttft,foo")


def test_jain_index():
    assert jain_index([3, 3, 3]) == 1
    assert jain_index([1, 0, 0, 0]) == 0.25
    assert jain_index([1, 3]) == pytest.approx(16 / 20)
    assert jain_index([0, 0]) == 1


def test_fairness_compares_tokens_per_second_of_waiting():
    even = fairness([outcome(client=0), outcome(client=1), outcome(client=1)])
    assert even["num_clients"] == 2
    assert even["fairness_index"] == pytest.approx(1)
    slow = outcome(client=1, ttft=0.1, itls=(1.0, 1.0))
    uneven = fairness([outcome(client=0), slow])
    assert uneven["client_tokens_per_s_max"] == pytest.approx(3 / 0.16)
    assert uneven["client_tokens_per_s_min"] == pytest.approx(3 / 2.1)
    assert uneven["fairness_index"] < 0.6


def test_reuse_is_a_share_of_the_prompts_that_tell():
    figures = summary([outcome(cached=4), outcome(cached=0), outcome()])
    assert figures["cached_prompt_tokens"] == 4
    assert figures["cache_reuse"] == pytest.approx(4 / 20)
    assert summary([outcome()])["cache_reuse"] is None


def test_peaks():
    first = outcome(start=0.0, ttft=0.5, itls=(0.1, 0.1))
    second = outcome(start=0.2, ttft=1.0, itls=(0.1,))
    third = outcome(start=5.0)
    assert peaks([first, second, third]) == (3.0, 2)
