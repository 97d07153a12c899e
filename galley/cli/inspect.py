"""`galley inspect`: contents and size of a checkpoint, and the program that a step runs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from galley.cli.parser import CommandParser, engine_flags, make
from galley.config import EngineConfig
from galley.config.resolve import SECTIONS, from_kwargs

if TYPE_CHECKING:
    from galley.loader import Checkpoint


@dataclass(frozen=True)
class InspectFlags:
    """Output"""

    tensors: bool = False
    """List the checkpoint's tensors: name, shape, format."""
    program: bool = False
    """Load the model and print the native program of a step, one operation per line."""
    memory: bool = False
    """Load the model and print the memory of its parts."""


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
    """Describe the checkpoint, and its tensors if requested; reads headers only."""
    from galley.loader import open_checkpoint, resolve_source

    config = from_kwargs(engine, "offline")
    checkpoint = open_checkpoint(resolve_source(config.model, config.load))
    for field in dataclasses.fields(checkpoint.model_info):
        if field.name not in ("hf_config", "chat_template"):
            print(f"{field.name:<16}{getattr(checkpoint.model_info, field.name)}")
    for key, value in sorted(checkpoint.model_info.hf_config.items()):
        print(f"  {key:<28}{value}")
    print_footprint(checkpoint, config)
    if show.tensors:
        for name in sorted(checkpoint.names()):
            header = checkpoint.header(name)
            print(f"{name:<56}{header.dtype:<10}{' x '.join(str(n) for n in header.shape)}")


def print_footprint(checkpoint: Checkpoint, config: EngineConfig) -> None:
    """Parameters, memory and operations of the model; reads no weights."""
    from galley.kernels.backend import kv_layout
    from galley.kv.capacity import most_held
    from galley.kv.groups import make_policies
    from galley.models.footprint import measure, weight_bytes
    from galley.runner.device import dense_format
    from galley.runner.kv_format import kv_format

    footprint = measure(checkpoint.model_info)
    dense = dense_format(config.model.dtype, checkpoint.model_info.dtype)
    numbers = kv_format(config.cache, dense, checkpoint.model_info, footprint.kv_layers)
    block_size = config.cache.block_size
    print(f"{'parameters':<16}{footprint.parameters:,}")
    if footprint.idle_weights:
        print(f"  {'of one token':<38}{footprint.active_parameters:,}")
    print(f"{'weights':<16}{weight_bytes(checkpoint, dense):,} bytes in memory")
    print(f"{'KV cache':<16}{footprint.kv_token_bytes(numbers):,} bytes per token")
    interval = config.cache.state_interval
    layout = kv_layout(footprint.kv_layers, numbers, block_size, interval)
    if states := footprint.state_bytes():
        kept = f", kept every {interval} tokens" if interval else ""
        print(f"{'states':<16}{states:,} bytes per sequence{kept}")
    length = checkpoint.model_info.max_position
    blocks = most_held(make_policies(layout.groups, max_chunk=1), length)
    print(f"  {f'sequence of {length:,} tokens':<38}{blocks * layout.block_bytes:,} bytes")
    for i, group in enumerate(layout.groups):
        kind = f"{group.kind} of {group.window:,} tokens" if group.window else group.kind
        plural = "" if group.num_layers == 1 else "s"
        size = f"{group.block_bytes:,} bytes per block of {block_size} tokens"
        of = "layer"
        if group.kind == "state":
            count = "1 block" if group.width == 1 else f"{group.width} blocks"
            of, size = "cache", f"{count} of {group.block_bytes:,} bytes per state"
        print(f"  {f'group {i}: {kind}':<38}{group.num_layers} {of}{plural}, {size}")
    each = footprint.flops(1) - footprint.flops(0)
    print(f"{'operations':<16}{footprint.flops(0):,} per token + {each:,} per token of context")


def print_loaded(show: InspectFlags, engine: dict[str, Any]) -> None:
    """Describe the loaded model."""
    from galley.engine.assembly import assemble

    core = assemble(from_kwargs({"max_num_seqs": 8, **engine}, "offline")).core
    if show.program:
        print(core.executor.rpc("describe")[0])
    if show.memory:
        for name, value in core.executor.rpc("memory")[0].items():
            print(f"{name:<28}{value:>16,}" if isinstance(value, int) else f"{name:<28}{value}")
    core.shutdown()
