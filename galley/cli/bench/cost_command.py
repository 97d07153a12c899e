"""`galley bench cost`: price the result of an earlier `bench serve`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from galley.cli.bench.cost import CostFlags, cost_lines, cost_of
from galley.cli.bench.flags import BenchParser
from galley.cli.bench.offline import write_json
from galley.cli.bench.report import line
from galley.cli.parser import make
from galley.errors import ConfigError


@dataclass(frozen=True)
class OutputFlags:
    """Output"""

    output_json: str | None = None
    """Write the costs to this JSON file."""


def main(argv: list[str]) -> int:
    parser = BenchParser(
        "bench cost",
        "Cost per million tokens and per request, for a result written by "
        "`bench serve --save-result` (Galley's or vLLM's).",
        [CostFlags, OutputFlags],
        positionals=(("RESULT", "JSON file"),),
        examples=(
            "galley bench cost result.json --cost-per-hour 0.9 --utilization 0.4",
            "galley bench cost result.json --cost-per-hour 0.9 --api-price-output 0.6",
        ),
    )
    parsed = parser.parse(argv)
    if not parsed.positionals:
        raise ConfigError("name the result file: galley bench cost RESULT.json.", field="result")
    path = parsed.positionals[0]
    values = parser.split(parsed.values)
    flags = make(CostFlags, values)
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
        if not isinstance(result, dict):
            raise ConfigError(f"{path}: no result of bench serve.", field="result")
        cost = cost_of(result, flags)
    except (OSError, ValueError, LookupError, TypeError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"{path}: no result of bench serve ({e}).", field="result") from e
    for row in cost_lines(cost, flags):
        print(line(*row))
    write_json(make(OutputFlags, values).output_json, asdict(cost))
    return 0
