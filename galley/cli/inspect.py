"""`galley inspect`: contents and size of a checkpoint, and the program that a step runs."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
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
    unfolded: bool = False
    """--program: print every layer, also equal ones."""
    json: bool = False
    """Print JSON."""


def parser() -> CommandParser:
    return CommandParser(
        "inspect",
        "Show what a checkpoint says of itself; with --program, the operations that a step runs. "
        "Without MODEL, the built-in model.",
        [InspectFlags, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf or hub name"),),
        examples=("galley inspect model.gguf --tensors", "galley inspect --program"),
    )


def main(argv: list[str]) -> int:
    given = parser().read(argv)
    show, engine = make(InspectFlags, given), engine_flags(given)
    if show.program or show.memory:
        print_loaded(show, engine)
    else:
        print_checkpoint(show, engine)
    return 0


def describe(checkpoint: Checkpoint, config: EngineConfig, tensors: bool) -> dict[str, Any]:
    """The checkpoint's declarations and the resources to run it; reads headers only."""
    from galley.frontend.input_processor import default_sampling_params
    from galley.loader import tensor_bytes

    info = checkpoint.model_info
    facts: dict[str, Any] = {
        "model": config.model.model or "SmolLM2-135M-Instruct (built in)",
        "architecture": info.architecture,
        "source": info.source,
        "file_bytes": file_bytes(Path(info.source)),
        "weight_formats": weight_formats(checkpoint),
        "quantization": info.quantization,
        "context_length": info.max_position,
        "vocab_size": info.vocab_size,
        "bos_token_id": info.bos_token_id,
        "eos_token_ids": list(info.eos_token_ids),
        "chat_template": info.chat_template is not None,
        "sampling": default_sampling_params(config, info),
    }
    facts |= footprint_of(checkpoint, config)
    facts["config"] = info.hf_config
    if tensors:
        facts["tensors"] = [
            {"name": n, "dtype": h.dtype, "shape": list(h.shape), "bytes": tensor_bytes(h)}
            for n in sorted(checkpoint.names(), key=in_order)
            for h in [checkpoint.header(n)]
        ]
    return facts


def in_order(name: str) -> list[Any]:
    """Sorting key of a tensor's name: layer 9 before layer 29."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def file_bytes(source: Path) -> int:
    """Size of the checkpoint's files on disk."""
    files = source.iterdir() if source.is_dir() else [source]
    return sum(path.stat().st_size for path in files if path.is_file())


def weight_formats(checkpoint: Checkpoint) -> dict[str, int]:
    """Values per stored format of the tensors, the most first."""
    counts: Counter[str] = Counter()
    for name in checkpoint.names():
        header = checkpoint.header(name)
        counts[header.dtype] += math.prod(header.shape)
    return dict(counts.most_common())


def footprint_of(checkpoint: Checkpoint, config: EngineConfig) -> dict[str, Any]:
    """Parameters, memory and operations of the model; reads no weights."""
    from galley.kernels.backend import kv_layout
    from galley.kv.capacity import most_held
    from galley.kv.groups import make_policies
    from galley.models.footprint import layer_kinds, measure, weight_bytes
    from galley.runner.device import dense_format
    from galley.runner.kv_format import kv_format

    footprint = measure(checkpoint.model_info)
    dense = dense_format(config.model.dtype, checkpoint.model_info.dtype)
    numbers = kv_format(config.cache, dense, checkpoint.model_info, footprint.kv_layers)
    interval = config.cache.state_interval
    layout = kv_layout(footprint.kv_layers, numbers, config.cache.block_size, interval)
    length = sequence_length(checkpoint, config)
    blocks = most_held(make_policies(layout.groups, max_chunk=1), length)
    facts: dict[str, Any] = {
        "layers": layer_kinds(checkpoint.model_info),
        "parameters": footprint.parameters,
        "active_parameters": footprint.active_parameters,
        "weights_bytes": weight_bytes(checkpoint, dense),
        "kv_bytes_per_token": footprint.kv_token_bytes(numbers),
        "kv_bytes_per_sequence": blocks * layout.block_bytes,
        "sequence_length": length,
        "state_bytes_per_sequence": footprint.state_bytes(),
        "state_interval": interval,
        "block_size": config.cache.block_size,
        "flops_per_token": footprint.flops(0),
        "flops_per_token_of_context": footprint.flops(1) - footprint.flops(0),
    }
    facts["kv_groups"] = [
        {
            "kind": group.kind,
            "window": group.window or None,
            "layers": group.num_layers,
            "block_bytes": group.block_bytes,
            "blocks": group.width,
        }
        for group in layout.groups
    ]
    return facts


def sequence_length(checkpoint: Checkpoint, config: EngineConfig) -> int:
    """Tokens of the longest sequence: the model's, or --max-model-len."""
    longest = checkpoint.model_info.max_position
    given = config.model.max_model_len
    return longest if given in (None, -1) else min(given or longest, longest)


def sizes_of(checkpoint: Checkpoint, config: EngineConfig) -> tuple[int, int, int]:
    """Bytes of the weights, of a token's KV cache, and of that of the longest sequence."""
    facts = footprint_of(checkpoint, config)
    states = facts["state_bytes_per_sequence"]
    return (
        facts["weights_bytes"],
        facts["kv_bytes_per_token"],
        facts["kv_bytes_per_sequence"] + states,
    )


def print_checkpoint(show: InspectFlags, engine: dict[str, Any]) -> None:
    """Print what the checkpoint declares, as text or JSON."""
    from galley.loader import open_checkpoint, resolve_source

    config = from_kwargs(engine, "offline")
    checkpoint = open_checkpoint(resolve_source(config.model, config.load))
    facts = describe(checkpoint, config, show.tensors)
    if show.json:
        print(json.dumps(facts, indent=2, default=str))
        return
    print_summary(facts)
    print_footprint(facts)
    print("config")
    for key, value in sorted(facts["config"].items()):
        print(f"  {key:<28}{value}")
    for tensor in facts.get("tensors", ()):
        shape = " x ".join(map(str, tensor["shape"]))
        print(f"{tensor['name']:<56}{tensor['dtype']:<10}{shape:<20}{tensor['bytes']:>14,} bytes")


def print_summary(facts: dict[str, Any]) -> None:
    """The facts that users look for first."""
    total = sum(facts["weight_formats"].values())
    mix = ", ".join(f"{k} {v / max(total, 1):.0%}" for k, v in facts["weight_formats"].items())
    ends = ", ".join(map(str, facts["eos_token_ids"]))
    defaults = ", ".join(f"{k} {v}" for k, v in facts["sampling"].items())
    for name, value in (
        ("model", facts["model"]),
        ("architecture", facts["architecture"]),
        ("file", f"{facts['source']}, {facts['file_bytes']:,} bytes"),
        ("formats", mix + (f" ({facts['quantization']})" if facts["quantization"] else "")),
        ("context", f"{facts['context_length']:,} tokens"),
        (
            "vocabulary",
            f"{facts['vocab_size']:,} tokens; begin {facts['bos_token_id']}, end {ends}",
        ),
        ("chat template", "yes" if facts["chat_template"] else "no"),
        ("sampling", defaults or "no defaults of its own"),
    ):
        print(f"{name:<16}{value}")


def print_footprint(facts: dict[str, Any]) -> None:
    if layers := facts["layers"]:
        print(f"{'layers':<16}{sum(layers.values())}")
        for kind, count in layers.items():
            print(f"  {kind:<38}{count}")
    print(f"{'parameters':<16}{facts['parameters']:,}")
    if facts["active_parameters"] != facts["parameters"]:
        print(f"  {'of one token':<38}{facts['active_parameters']:,}")
    print(f"{'weights':<16}{facts['weights_bytes']:,} bytes in memory")
    print(f"{'KV cache':<16}{facts['kv_bytes_per_token']:,} bytes per token")
    if states := facts["state_bytes_per_sequence"]:
        interval = facts["state_interval"]
        kept = f", kept every {interval} tokens" if interval else ""
        print(f"{'states':<16}{states:,} bytes per sequence{kept}")
    sequence = f"sequence of {facts['sequence_length']:,} tokens"
    print(f"  {sequence:<38}{facts['kv_bytes_per_sequence']:,} bytes")
    for i, group in enumerate(facts["kv_groups"]):
        window = group["window"]
        kind = f"{group['kind']} of {window:,} tokens" if window else group["kind"]
        plural = "" if group["layers"] == 1 else "s"
        size = f"{group['block_bytes']:,} bytes per block of {facts['block_size']} tokens"
        of = "layer"
        if group["kind"] == "state":
            count = "1 block" if group["blocks"] == 1 else f"{group['blocks']} blocks"
            of, size = "cache", f"{count} of {group['block_bytes']:,} bytes per state"
        print(f"  {f'group {i}: {kind}':<38}{group['layers']} {of}{plural}, {size}")
    each = facts["flops_per_token_of_context"]
    print(
        f"{'operations':<16}{facts['flops_per_token']:,} per token + {each:,} per token of context"
    )


def print_loaded(show: InspectFlags, engine: dict[str, Any]) -> None:
    """Describe the loaded model."""
    from galley.engine.assembly import assemble
    from galley.engine.startup import kv_capacity

    loaded = assemble(from_kwargs({"max_num_seqs": 8, **engine}, "offline"))
    core = loaded.core
    program = core.executor.rpc("describe")[0] if show.program else None
    memory = core.executor.rpc("memory")[0] if show.memory else None
    fits = kv_capacity(loaded.config, core.executor)
    core.shutdown()
    if show.json:
        lines = None if program is None else program.splitlines()
        facts = {"program": lines, "memory": memory and {**memory, "kv_tokens": fits.tokens}}
        print(json.dumps({k: v for k, v in facts.items() if v is not None}, indent=2))
        return
    if program is not None:
        print(program if show.unfolded else "\n".join(folded(program.splitlines())))
    for name, value in (memory or {}).items():
        print(f"{name:<16}{value:>18,} bytes {value / 2**30:>9.2f} GiB")
    if memory is not None:
        longest = f"{fits.sequences:.1f} sequences of {core.executor.max_model_len:,}"
        print(f"the KV cache holds {fits.tokens:,} tokens, {longest}")


#: Differences between the lines of equal layers: numbers of the line, of buffers, of the layer.
_NUMBERS = re.compile(r"^ *\d+|%\d+|layer \d+")


def folded(lines: list[str]) -> list[str]:
    """The lines with runs of equal layers printed once and counted."""
    shapes = [_NUMBERS.sub("#", line) for line in lines]
    out: list[str] = []
    at = 0
    while at < len(lines):
        size, times = _repetition(shapes, at)
        out += lines[at : at + size]
        if times > 1:
            out.append(f"     … these {size} lines {times - 1} more times, for the layers after it")
        at += size * times
    return out


def _repetition(shapes: list[str], at: int) -> tuple[int, int]:
    """The run of equal parts at `at` that covers the most lines: (lines of a part, parts)."""
    best = (1, 1)
    for size in range(2, (len(shapes) - at) // 2 + 1):
        times = 1
        part = shapes[at : at + size]
        while shapes[at + size * times : at + size * (times + 1)] == part:
            times += 1
        if times > 1 and size * times > best[0] * best[1]:
            best = (size, times)
    return best
