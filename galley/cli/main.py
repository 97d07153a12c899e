"""The `galley` command: finds the subcommand's file and runs it. Imports nothing heavy."""

from __future__ import annotations

import difflib
import importlib
import sys

from galley.cli.parser import run
from galley.errors import ConfigError

#: name → (module, one line). An open set: a command is a file with `main(argv) -> int`.
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("galley.cli.serve", "serve a model over an OpenAI-compatible HTTP API"),
    "launch": ("galley.cli.launch", "serve a part of the server: `launch render`, no engine"),
    "chat": ("galley.cli.chat", "chat with a model, in this process or at a URL"),
    "complete": ("galley.cli.complete", "complete a prompt, in this process or at a URL"),
    "run-batch": ("galley.cli.run_batch", "answer a file of requests in OpenAI's batch format"),
    "bench": ("galley.cli.bench.main", "measure servers of any engine, and this one"),
    "top": ("galley.cli.top", "show what servers do, second by second"),
    "replay": ("galley.cli.replay", "show a recording of the live view in a browser"),
    "trace": ("galley.cli.trace", "summarise where the time of a recorded run went"),
    "collect-env": ("galley.cli.collect_env", "print what a bug report should contain"),
    "doctor": ("galley.cli.doctor", "check this machine: cores, memory, kernels, disk, limits"),
    "plan": ("galley.cli.plan", "predict fit, speed and cost of a model on a machine"),
    "models": ("galley.cli.models", "list the model families that run, or search them"),
    "cache": ("galley.cli.cache", "list or remove packed weights on disk"),
    "quantize": ("galley.cli.quantize", "write a quantised checkpoint of a 16-bit one"),
    "inspect": (
        "galley.cli.inspect",
        "show what a checkpoint declares, or the program that a step runs",
    ),
    "docs": ("galley.cli.docs", "show the documentation, from this machine alone"),
    "completion": ("galley.cli.completion", "print a completion script for bash, zsh or fish"),
}

#: Commands of Ollama's, and what does that here.
FOREIGN = {
    "run": "Did you mean `galley chat MODEL`?",
    "pull": "A hub name is downloaded at its first use: `galley chat org/name`.",
    "show": "Did you mean `galley inspect MODEL`?",
    "list": "`galley models` lists what can run, `galley cache list` packed weights on disk.",
    "ls": "`galley models` lists what can run, `galley cache list` packed weights on disk.",
    "ps": "`curl localhost:8000/v1/models` shows what a server has; each serves one model.",
    "rm": "Did you mean `galley cache prune`?",
}


def overview() -> str:
    from galley import __version__

    lines = [
        f"galley {__version__}: an LLM inference and serving engine",
        "",
        "usage: galley COMMAND [options]",
        "",
        "commands:",
        *(f"  {name:<12}{text}" for name, (_, text) in COMMANDS.items()),
        "",
        "galley serve            # the built-in model on http://localhost:8000",
        "galley COMMAND --help   # options of a command",
        "galley --version",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) > 1 and argv[0] == "help":
        argv = [argv[1], "--help", *argv[2:]]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if argv else 2
    if argv[0] in ("-v", "-V", "--version", "version"):
        from galley import __version__

        print(__version__)
        return 0
    return run(lambda: _dispatch(argv))


def _dispatch(argv: list[str]) -> int:
    if argv[0] not in COMMANDS:
        if argv[0] in FOREIGN:
            raise ConfigError(f"no command {argv[0]!r}. {FOREIGN[argv[0]]}")
        near = difflib.get_close_matches(argv[0], COMMANDS, 1, 0.7)
        hint = f" Did you mean `galley {near[0]}`?" if near else f" One of: {', '.join(COMMANDS)}."
        raise ConfigError(f"no command {argv[0]!r}.{hint}")
    result: int = importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    return result


if __name__ == "__main__":
    sys.exit(main())
