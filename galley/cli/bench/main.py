"""`galley bench`: dispatches to the subcommand's module."""

from __future__ import annotations

import difflib
import importlib

from galley.errors import ConfigError

#: name → (module, one line). An open set: a subcommand is a file with `main(argv) -> int`.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("galley.cli.bench.serve", "load on a server of any engine (OpenAI's API)"),
    "throughput": ("galley.cli.bench.throughput", "requests and tokens per second, offline"),
    "latency": ("galley.cli.bench.latency", "time of one batch, offline"),
    "startup": ("galley.cli.bench.startup", "command to first token, engine death to next token"),
    "host": ("galley.cli.bench.host", "host time of a step, kernels stubbed out"),
    "kernels": ("galley.cli.bench.kernels", "each operation against reference and roofline"),
    "sweep": ("galley.cli.bench.sweep", "servers and loads over lists of settings, and plots"),
    "cost": ("galley.cli.bench.cost_command", "price a saved result"),
}


def overview() -> str:
    return "\n".join(
        [
            "usage: galley bench COMMAND [options]",
            "",
            "commands:",
            *(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()),
            "",
            "galley bench COMMAND --help   # what a command takes",
        ]
    )


def main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, 1)
        hint = f" Did you mean `{near[0]}`?" if near else f" One of: {', '.join(COMMANDS)}."
        raise ConfigError(f"no command `bench {argv[0]}`.{hint}")
    result: int = importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    return result
