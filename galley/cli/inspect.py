"""`galley inspect`: what a checkpoint says of itself, and the program that a step runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from galley.cli.parser import CommandParser, engine_flags, make
from galley.config.resolve import SECTIONS, from_kwargs


@dataclass(frozen=True)
class InspectFlags:
    """What to show"""

    tensors: bool = False
    """List the checkpoint's tensors: name, shape, format."""
    program: bool = False
    """Load the model and print the native program of a step, one operation a line."""
    memory: bool = False
    """Load the model and print what its parts take."""


def main(argv: list[str]) -> int:
    parser = CommandParser(
        "inspect",
        "Show what a checkpoint says of itself; with --program, the operations that a step runs. "
        "Without MODEL, the built-in model.",
        [InspectFlags, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf or hub name"),),
        examples=("galley inspect model.gguf --tensors", "galley inspect --program"),
    )
    given = parser.read(argv)
    show, engine = make(InspectFlags, given), engine_flags(given)
    if show.program or show.memory:
        print_loaded(show, engine)
    else:
        print_checkpoint(show, engine)
    return 0


def print_checkpoint(show: InspectFlags, engine: dict[str, Any]) -> None:
    """Prints what a checkpoint declares, and its tensors on request. Loads no weights."""
    from galley.loader import open_checkpoint, resolve_source

    config = from_kwargs(engine, "offline")
    checkpoint = open_checkpoint(resolve_source(config.model, config.load))
    for field in dataclasses.fields(checkpoint.model_info):
        if field.name not in ("hf_config", "chat_template"):
            print(f"{field.name:<16}{getattr(checkpoint.model_info, field.name)}")
    for key, value in sorted(checkpoint.model_info.hf_config.items()):
        print(f"  {key:<28}{value}")
    if show.tensors:
        for name in sorted(checkpoint.names()):
            tensor = checkpoint.tensor(name)
            print(f"{name:<56}{tensor.dtype:<10}{' x '.join(str(n) for n in tensor.shape)}")


def print_loaded(show: InspectFlags, engine: dict[str, Any]) -> None:
    """What the model becomes when it is loaded."""
    from galley.engine.assembly import assemble

    core = assemble(from_kwargs({"max_num_seqs": 8, **engine}, "offline")).core
    if show.program:
        print(core.executor.rpc("describe")[0])
    if show.memory:
        for name, value in core.executor.rpc("memory")[0].items():
            print(f"{name:<28}{value:>16,}" if isinstance(value, int) else f"{name:<28}{value}")
    core.shutdown()
