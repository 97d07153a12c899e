"""`galley quantize`: writes a 16-bit checkpoint in a compressed-tensors form or as a GGUF file, one
tensor at a time."""

from __future__ import annotations

import json
import math
import shutil
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from galley.cli.parser import CommandParser, make
from galley.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from galley.loader import Checkpoint
    from galley.quant.write_compressed import Layout, WrittenFormat

#: Files of a checkpoint that are not its own weights or configuration are copied.
_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


Format = Literal[
    "int8", "fp8", "int4",
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "BF16", "F16", "F32",
]  # fmt: skip


@dataclass(frozen=True)
class QuantizeFlags:
    """Options"""

    to: Format | None = None
    """Format of the weights. compressed-tensors: int8 and fp8 with a scale per output, int4 with
    one per 32 values. GGUF: the type of matrices; embedding and head have at least 6 bits."""
    perplexity: str | None = None
    """A text file: its perplexity before and after, in windows of 512 tokens."""


def parser() -> CommandParser:
    return CommandParser(
        "quantize",
        "Write a 16-bit checkpoint as a compressed-tensors one or as a GGUF file. Scales of "
        "compressed-tensors are chosen by squared error; embeddings, head and routers stay.",
        [QuantizeFlags],
        positionals=(
            ("MODEL", "directory or hub name"),
            ("OUT", "a folder that does not exist, or a .gguf file"),
        ),
        examples=(
            "galley quantize org/name --to int4 name-int4",
            "galley quantize org/name --to Q4_0 name-Q4_0.gguf --perplexity text.txt",
        ),
    )


def main(argv: list[str]) -> int:
    reader = parser()
    parsed = reader.parse(argv)
    flags = make(QuantizeFlags, reader.split(parsed.values))
    if len(parsed.positionals) != 2 or flags.to is None:
        raise ConfigError("galley quantize needs MODEL, --to FORMAT and OUT; see --help")
    model, out = parsed.positionals[0], Path(parsed.positionals[1])
    is_gguf = flags.to not in ("int8", "fp8", "int4")
    if out.exists():
        raise ConfigError(f"{out} exists; name a new one", field="out")
    if is_gguf != (out.suffix == ".gguf"):
        what = "a file that ends with .gguf" if is_gguf else "a folder"
        raise ConfigError(f"--to {flags.to} writes {what}, not {out}", field="out")
    if not out.absolute().parent.is_dir():
        raise ConfigError(f"{out.absolute().parent} is not a folder", field="out")
    text = None
    if flags.perplexity is not None:
        from galley.cli.perplexity import perplexity, read_text

        text = read_text(flags.perplexity)
        print(f"{model}: perplexity {perplexity(model, text):.4f}", flush=True)
    quantize(model, flags.to, out)
    if text is not None:
        print(f"{out}: perplexity {perplexity(str(out), text):.4f}")
    return 0


def quantize(model: str, to: str, out: Path) -> None:
    """Write the checkpoint; `out` appears when it is complete. Raises ConfigError, ModelError."""
    from galley.config.engine import LoadConfig, ModelConfig
    from galley.loader import open_checkpoint, resolve_source
    from galley.quant.write_compressed import WRITTEN

    source = resolve_source(ModelConfig(model=model), LoadConfig())
    if source.is_gguf:
        raise ConfigError(f"{model} is a GGUF file; a folder of safetensors is needed")
    checkpoint = open_checkpoint(source)
    if checkpoint.model_info.quantization is not None:
        raise ConfigError(f"{model} is quantised already ({checkpoint.model_info.quantization})")
    if to not in WRITTEN:
        _write_gguf(source.path, checkpoint, to, out)
        return
    fmt = WRITTEN[to]
    chosen = _chosen(checkpoint, fmt.group)
    if not chosen:
        raise ModelError(f"{model} has no matrix that can be stored as {to}")
    partial = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}-"))
    try:
        partial.chmod(0o755)
        _copy_files(source.path, partial, _config(source.path, checkpoint, fmt, chosen))
        with (partial / "model.safetensors").open("wb") as f:
            _write(f, checkpoint, fmt, chosen)
        partial.rename(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = (out / "model.safetensors").stat().st_size
    print(f"{out}: {len(chosen)} matrices as {to}, {size / 1e6:,.1f} MB")


def _write_gguf(folder: Path, checkpoint: Checkpoint, to: str, out: Path) -> None:
    from galley.cli.quantize_gguf import GGUFOutput

    try:
        count = GGUFOutput(folder, checkpoint, to).write(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}") from error
    print(f"{out}: {count} tensors, matrices as {to}, {out.stat().st_size / 1e6:,.1f} MB")


def _chosen(checkpoint: Checkpoint, group: int) -> set[str]:
    """Tensors that are quantized: matrices that the model asks for by their own name."""
    from galley.layers.shapes import ShapeSource
    from galley.layers.weight_specs import parts_of
    from galley.models.decoder import Stage
    from galley.models.registry import model_spec
    from galley.quant.online import METHODS

    shapes, wants = ShapeSource(), METHODS["int8"].wants
    model_spec(checkpoint.model_info).build(shapes, Stage(max_positions=1))
    names, kept, chosen = set(checkpoint.names()), set(), set()
    for matrix in shapes.matrices:
        for part in (part for parts in parts_of(matrix) for part in parts):
            name = f"{part.name}.weight"
            altered = part.transposed or part.turned or part.unit_rows or part.plus is not None
            plain = not (matrix.dense or matrix.float32 or altered)
            fits = wants(part.name, part.shape[1], matrix.experts > 0)
            if plain and fits and part.shape[1] % group == 0 and name in names:
                chosen.add(name)
            else:
                kept.add(name)
    return chosen - kept


def _config(
    folder: Path, checkpoint: Checkpoint, fmt: WrittenFormat, chosen: set[str]
) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    linear = {n for n in checkpoint.names() if n.endswith(".weight") and n not in chosen}
    matrices = {n for n in linear if len(checkpoint.header(n).shape) == 2}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": fmt.format,
        "ignore": sorted({n.removesuffix(".weight") for n in matrices} | {"lm_head"}),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": dict(fmt.weights),
                "input_activations": None,
                "output_activations": None,
            }
        },
    }
    return config


def _copy_files(folder: Path, out: Path, config: dict[str, Any]) -> None:
    for path in folder.iterdir():
        own = path.name.endswith((*_NOT_COPIED, ".index.json")) or path.name.startswith(".")
        if path.is_file() and not own:
            shutil.copyfile(path, out / path.name)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _layout(checkpoint: Checkpoint, name: str, fmt: WrittenFormat, chosen: set[str]) -> Layout:
    """The written tensors of a tensor, by full name."""
    from galley.loader.safetensors import DTYPES

    shape, dtype = checkpoint.header(name)
    if name not in chosen:
        spelling = next(s for s, (ours, _) in DTYPES.items() if ours == dtype)
        return {name: (spelling, tuple(shape))}
    layer = name.removesuffix(".weight")
    n, k = shape
    return {f"{layer}.{suffix}": entry for suffix, entry in fmt.layout(n, k).items()}


def _write(f: BinaryIO, checkpoint: Checkpoint, fmt: WrittenFormat, chosen: set[str]) -> None:
    """One safetensors file; one tensor is in memory at a time."""
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from galley.loader.safetensors import DTYPES
    from galley.quant import to_float32

    # Wide numbers first, so that each tensor begins at a multiple of its number's size.
    names = sorted(checkpoint.names(), key=lambda name: (name in chosen, name))
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        for written, (dtype, shape) in _layout(checkpoint, name, fmt, chosen).items():
            end = offset + math.prod(shape) * DTYPES[dtype][1].itemsize
            entry: Any = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            header[written], offset = entry, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    f.write(struct.pack("<Q", len(text)) + text)
    console = Console(stderr=True)
    for name in track(names, "Quantising", console=console, disable=not sys.stderr.isatty()):
        raw = checkpoint.tensor(name)
        arrays = [raw.data]
        if name in chosen:
            arrays = fmt.encode(np.ascontiguousarray(to_float32(raw)))
        for array in arrays:
            f.write(np.ascontiguousarray(array).tobytes())
