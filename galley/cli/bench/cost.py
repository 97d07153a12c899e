"""Cost of tokens on a machine paid by the hour, and the break-even point with an API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from galley.errors import ConfigError


@dataclass(frozen=True)
class CostFlags:
    """Cost"""

    cost_per_hour: float | None = None
    """Price of the machine per hour, in any currency: prints cost per million tokens and per
    request at the measured throughput."""
    utilization: float = 1.0
    """Share of the paid hours in which the machine carries this load (0 … 1)."""
    api_price_input: float | None = None
    """Price of an API per million prompt tokens: prints the break-even point."""
    api_price_output: float | None = None
    """Price of an API per million generated tokens."""


@dataclass(frozen=True)
class Cost:
    """Costs in the currency of `cost_per_hour`."""

    per_million_tokens: float
    """Prompt and generated tokens count equally."""
    per_million_output_tokens: float
    """The whole cost divided by the generated tokens alone."""
    per_request: float
    api_per_request: float | None
    """Price of the mean request at the API."""
    break_even_requests_per_hour: float | None
    """Requests per hour above which the machine is cheaper than the API."""
    break_even_utilization: float | None
    """The same as a share of the machine's capacity; above 1 the machine is never cheaper."""


def cost_of(result: Mapping[str, Any], flags: CostFlags) -> Cost:
    """Costs at the throughput of a `bench serve` result (its JSON fields).

    The price of an hour is divided by the load it serves, throughput * 3600 * utilization. The
    API price is that of the mean request:

        break-even requests per hour = cost per hour / API price of a request

    Raises:
        ConfigError: a price is negative, the utilization is outside 0 … 1, or the result has no
            completed request.
    """
    if flags.cost_per_hour is None or flags.cost_per_hour < 0:
        raise ConfigError("--cost-per-hour must be given, not negative.", field="cost_per_hour")
    if not 0 < flags.utilization <= 1:
        raise ConfigError(
            f"--utilization must be above 0 and at most 1, got {flags.utilization}.",
            field="utilization",
        )
    if not result.get("completed"):
        raise ConfigError("the result has no completed request to price.", field="cost_per_hour")
    hour = flags.cost_per_hour
    busy = 3600 * flags.utilization
    requests = result["request_throughput"] * busy
    api = _api_price(result, flags)
    at_full_use = result["request_throughput"] * 3600
    return Cost(
        per_million_tokens=hour / (result["total_token_throughput"] * busy) * 1e6,
        per_million_output_tokens=hour / (result["output_throughput"] * busy) * 1e6,
        per_request=hour / requests,
        api_per_request=api,
        break_even_requests_per_hour=hour / api if api else None,
        break_even_utilization=hour / api / at_full_use if api else None,
    )


def _api_price(result: Mapping[str, Any], flags: CostFlags) -> float | None:
    if flags.api_price_input is None and flags.api_price_output is None:
        return None
    prompt = result["total_input_tokens"] * (flags.api_price_input or 0.0)
    output = result["total_output_tokens"] * (flags.api_price_output or 0.0)
    return float((prompt + output) / 1e6 / result["completed"])


def cost_lines(cost: Cost, flags: CostFlags) -> list[tuple[str, str]]:
    """(label, value) lines for a report."""
    lines = [
        ("Cost per hour:", f"{flags.cost_per_hour:g} at {flags.utilization:.0%} utilization"),
        ("Cost per million tokens:", f"{cost.per_million_tokens:.4g}"),
        ("Cost per million output tokens:", f"{cost.per_million_output_tokens:.4g}"),
        ("Cost per request:", f"{cost.per_request:.4g}"),
    ]
    if cost.api_per_request is not None:
        lines.append(("API price of such a request:", f"{cost.api_per_request:.4g}"))
    if cost.break_even_requests_per_hour is not None:
        share = cost.break_even_utilization or 0.0
        reach = f"{share:.1%} of what it can serve" if share <= 1 else "more than it can serve"
        rate = cost.break_even_requests_per_hour
        lines.append(("Break-even, requests per hour:", f"{rate:.4g} ({reach})"))
    return lines
