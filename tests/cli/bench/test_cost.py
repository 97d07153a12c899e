"""Cost formulas, checked by hand."""

import pytest

from galley.cli.bench.cost import CostFlags, cost_lines, cost_of
from galley.errors import ConfigError

# An hour at full use: 7,200 requests, 3.6 million tokens, 720,000 of them generated.
RESULT = {
    "completed": 100,
    "request_throughput": 2.0,
    "total_token_throughput": 1000.0,
    "output_throughput": 200.0,
    "total_input_tokens": 40_000,
    "total_output_tokens": 10_000,
}


def test_an_hours_price_is_spread_over_what_it_serves():
    cost = cost_of(RESULT, CostFlags(cost_per_hour=3.6))
    assert cost.per_million_tokens == pytest.approx(1.0)
    assert cost.per_million_output_tokens == pytest.approx(5.0)
    assert cost.per_request == pytest.approx(0.0005)
    assert cost.api_per_request is None


def test_idle_hours_are_paid_too():
    full = cost_of(RESULT, CostFlags(cost_per_hour=3.6))
    half = cost_of(RESULT, CostFlags(cost_per_hour=3.6, utilization=0.5))
    assert half.per_million_tokens == pytest.approx(2 * full.per_million_tokens)
    assert half.per_request == pytest.approx(2 * full.per_request)


def test_break_even_against_an_api():
    flags = CostFlags(cost_per_hour=3.6, api_price_input=0.5, api_price_output=2.0)
    cost = cost_of(RESULT, flags)
    # A mean request has 400 + 100 tokens: 400 * 0.5e-6 + 100 * 2e-6 = 0.0004.
    assert cost.api_per_request == pytest.approx(0.0004)
    assert cost.break_even_requests_per_hour == pytest.approx(9000)
    assert cost.break_even_utilization == pytest.approx(9000 / 7200)
    assert "more than it can serve" in dict(cost_lines(cost, flags)).popitem()[1]


def test_break_even_below_full_use_is_a_share():
    flags = CostFlags(cost_per_hour=0.36, api_price_output=4.0)
    cost = cost_of(RESULT, flags)
    assert cost.break_even_requests_per_hour == pytest.approx(900)
    assert cost.break_even_utilization == pytest.approx(0.125)
    assert "12.5%" in dict(cost_lines(cost, flags)).popitem()[1]


@pytest.mark.parametrize(
    ("flags", "result"),
    [
        (CostFlags(), RESULT),
        (CostFlags(cost_per_hour=-1), RESULT),
        (CostFlags(cost_per_hour=1, utilization=0), RESULT),
        (CostFlags(cost_per_hour=1, utilization=1.5), RESULT),
        (CostFlags(cost_per_hour=1), {**RESULT, "completed": 0}),
    ],
)
def test_invalid_prices_are_refused(flags, result):
    with pytest.raises(ConfigError):
        cost_of(result, flags)
