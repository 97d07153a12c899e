"""`galley plan`: whether a model fits on a machine, what limits it, its speed and its cost."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from galley.cli.parser import CommandParser, engine_flags, make
from galley.config.resolve import SECTIONS
from galley.errors import ConfigError

if TYPE_CHECKING:
    from galley.planning.machine import Machine
    from galley.planning.program import PlannedModel
    from galley.planning.simulate import Workload

GIB = 2**30


@dataclass(frozen=True)
class PlanFlags:
    """Plan"""

    machine: str = "this"
    """this (measured, once), a device of the table (h100, a100-80gb …), or several (8xh100)."""
    context: int | None = None
    """Tokens of the longest request; default: --prompt and --output."""
    prompt: int = 512
    """Tokens of a prompt."""
    output: int = 128
    """Tokens of an answer."""
    concurrency: int = 8
    """Requests at once: clients that send the next request when the last one is answered."""
    rate: float = 0.0
    """Requests per second that arrive, instead of --concurrency: prints the machines they need."""
    shared: int = 0
    """Tokens at the beginning of all prompts that are the same (a system prompt)."""
    batching: Literal["continuous", "static"] = "continuous"
    """static: what if a batch began only when all answers of the last one have ended."""
    slo_ttft: float = 0.0
    """Most milliseconds to the first token (99th percentile): finds the load that meets it."""
    slo_itl: float = 0.0
    """Most milliseconds between tokens (mean): finds the load that meets it."""
    price_per_hour: float = 0.0
    """Price of the machine per hour, in any currency: prints the cost of a million tokens."""
    fresh: bool = False
    """Measure this machine again."""
    verify: bool = False
    """Serve the plan on this machine, send it the workload, print predicted against measured."""
    json: bool = False
    """Print JSON."""


def parser() -> CommandParser:
    return CommandParser(
        "plan",
        "Predict whether a model fits on a machine, what limits it, its throughput, latency and "
        "cost. MODEL may be a folder with config.json alone. Nothing is loaded.",
        [PlanFlags, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf or hub name; default: the built-in model"),),
        examples=(
            "galley plan --concurrency 32 --prompt 256 --output 128",
            "galley plan org/name --machine 8xh100 --rate 20 --slo-ttft 500 --price-per-hour 30",
            "galley plan --verify",
        ),
    )


def main(argv: list[str]) -> int:
    given = parser().read(argv)
    flags, engine = make(PlanFlags, given), engine_flags(given)
    check(flags)
    if flags.context is not None:
        engine = {"max_model_len": flags.context, **engine}
    from galley.planning.program import planned_model

    model = planned_model(engine)
    if flags.verify:
        from galley.cli.plan_verify import verify

        notice("serving the plan between measurements of this machine, half a minute or more")
        return verify(model, workload_of(flags), engine, flags.json)
    facts = plan(flags, model, machine_of(flags, model), engine)
    print(json.dumps(facts, indent=2) if flags.json else report(facts))
    return 0


def check(flags: PlanFlags) -> None:
    """Raise ConfigError for numbers out of range."""
    for name in ("rate", "slo_ttft", "slo_itl", "price_per_hour"):
        if getattr(flags, name) < 0:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} must not be negative.", field=name)
    if flags.context is not None and flags.context < flags.prompt + flags.output:
        raise ConfigError(
            f"--context {flags.context} is less than --prompt and --output together "
            f"({flags.prompt + flags.output}).",
            field="context",
        )
    if flags.verify and (flags.machine != "this" or flags.rate):
        raise ConfigError(
            "--verify serves on this machine, and takes --concurrency.", field="verify"
        )


def workload_of(flags: PlanFlags) -> Workload:
    from galley.planning.simulate import Workload

    return Workload(
        prompt=flags.prompt,
        output=flags.output,
        concurrency=flags.concurrency,
        rate=flags.rate,
        shared=flags.shared,
        batching=flags.batching,
    )


def machine_of(flags: PlanFlags, model: PlannedModel) -> Machine:
    from galley.planning.machine import THIS, device

    if flags.machine != THIS:
        return device(flags.machine)
    from galley.planning.calibrate import this_machine

    measured = model.formats, model.numbers, model.sizes, model.threads
    return this_machine(*measured, flags.fresh, notice)


def notice(text: str) -> None:
    print(f"galley: {text}", file=sys.stderr)


def plan(
    flags: PlanFlags, model: PlannedModel, machine: Machine, engine: dict[str, Any]
) -> dict[str, Any]:
    """The plan as plain data."""
    import msgspec

    from galley.planning import advice
    from galley.planning.predict import predict

    workload = workload_of(flags)
    goal = advice.Goal(flags.slo_ttft, flags.slo_itl)
    wanted = {"max_num_seqs": max(flags.concurrency, 1), **engine}
    if goal.itl:
        wanted = {"target_itl": goal.itl, **wanted}
    if workload.rate:
        wanted = {**wanted, "max_num_seqs": engine.get("max_num_seqs", 128)}
    most = None
    if any(goal) or workload.rate:
        most = advice.largest_load(model, machine, workload, goal, engine)
    found = predict(model, machine, workload, wanted)
    facts: dict[str, Any] = msgspec.to_builtins(found)
    facts["weights_known"] = model.has_weights
    facts["sources"] = list(machine.sources)
    shown = most if most is not None and any(goal) else found
    facts["flags"] = [f._asdict() for f in advice.flags(shown, machine, goal)]
    if any(goal):
        facts["goal"] = {**goal._asdict(), "met": goal.met(found)}
        facts["largest_load"] = None if most is None else msgspec.to_builtins(most)
    if flags.rate:
        facts["replicas"] = None if most is None else advice.replicas(flags.rate, most)
    if flags.price_per_hour:
        facts["cost_per_million_tokens"] = advice.cost_per_million(
            flags.price_per_hour, shown.total_tokens
        )
        facts["cost_per_million_output_tokens"] = advice.cost_per_million(
            flags.price_per_hour, shown.output_tokens
        )
    return facts


def report(facts: dict[str, Any]) -> str:
    """The plan as text."""
    memory, load = facts["memory"], facts["workload"]
    lines = [f"{facts['model']} on {facts['machine']}", ""]

    def line(name: str, text: str) -> None:
        lines.append(f"{name:<14}{text}")

    kinds = f"{load['prompt']:,} tokens in, {load['output']:,} out"
    arriving = f"{load['rate']:g} a second" if load["rate"] else f"{load['concurrency']} at once"
    static = ", in static batches" if load["batching"] == "static" else ""
    line("workload", f"{kinds}, {arriving}{static}")
    ranks = f", on {facts['ranks']} devices together" if facts["ranks"] > 1 else ""
    line("fits", f"yes{ranks}, in {memory['available'] / GIB:.1f} GiB{' of each' if ranks else ''}")
    line("  weights", f"{_size(memory['weights'])}{_unread(facts)}")
    line("  activations", f"{_size(memory['activations'])} for the largest step")
    each = f"{_size(memory['kv_per_sequence'])} a request of this length"
    line(
        "  KV cache", f"{memory['kv_tokens']:,} tokens, {memory['sequences']:.1f} requests; {each}"
    )
    line("  in use", f"{_size(memory['resident'])} with the flags below, processes included")
    shares = ", ".join(f"{label} {s:.0%}" for label, s in list(facts["shares"].items())[:3])
    line("limited by", f"{_BOUNDS[facts['bound']]} ({shares})")
    line("  decode", f"{facts['decode_step'] * 1e3:.2f} ms a step")
    line("  prefill", f"{facts['prefill_rate']:,.0f} tokens a second alone")
    rates = (
        f"{facts['output_tokens']:,.1f} output tokens a second, {facts['requests']:.2f} requests"
    )
    line("throughput", rates)
    for name in ("ttft", "itl"):
        spread = facts[name]
        text = ", ".join(f"{part} {spread[part] * 1e3:,.1f}" for part in ("mean", "p50", "p99"))
        line(name.upper(), f"{text} ms")
    if facts["tokens_per_joule"]:
        line("energy", f"{facts['tokens_per_joule']:.2f} output tokens a joule, at the rated power")
    if (goal := facts.get("goal")) is not None:
        most = facts["largest_load"]
        line("goal", "met" if goal["met"] else "not met at this load")
        text = "not even one request at a time meets it"
        if most is not None:
            count, rate = most["workload"]["concurrency"], most["requests"]
            text = f"{count} at once: {rate:.2f} requests, {most['output_tokens']:,.1f} tokens/s"
        line("  met up to", text)
    if "replicas" in facts:
        count = facts["replicas"]
        line("replicas", "no number of them meets the goal" if count is None else f"{count}")
    if (cost := facts.get("cost_per_million_tokens")) is not None:
        output = facts["cost_per_million_output_tokens"]
        line("cost", f"{cost:.4g} a million tokens, {output:.4g} a million output tokens")
    lines += ["", "galley serve with"]
    lines += [f"  {flag['text']:<32}{flag['reason']}" for flag in facts["flags"]]
    lines += ["", *(f"Source: {source}." for source in facts["sources"])]
    return "\n".join(lines)


_BOUNDS = {
    "memory": "memory bandwidth",
    "arithmetic": "arithmetic",
    "overhead": "overheads: small operations and the host",
    "link": "exchanges between devices",
}


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def _unread(facts: dict[str, Any]) -> str:
    return "" if facts["weights_known"] else " (of the config alone: 16 bits, or as --quantization)"
