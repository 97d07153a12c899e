"""`galley quantize --to` a type of GGUF: one file of a 16-bit checkpoint, tensor by tensor.

Before values are written, the file is read: its config must describe the model of the checkpoint,
and its tokenizer make the same tokens.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from galley.config import ModelInfo
from galley.config.extras import install_command
from galley.errors import ConfigError, ModelError
from galley.kernels.backend import open_backend
from galley.layers.rotary import Rotary, inverse_frequencies
from galley.layers.shapes import ShapeSource
from galley.layers.weight_specs import Part, parts_of
from galley.layers.weights import CheckpointWeights
from galley.loader.gguf_names import ROPE_FACTORS
from galley.loader.gguf_writing import Place, architecture_for, keys_of, places_of
from galley.models.decoder import Stage
from galley.models.registry import model_spec
from galley.quant import to_float32
from galley.quant.write_gguf_k import ENCODERS

if TYPE_CHECKING:
    import gguf

    from galley.loader import Checkpoint

#: --to → the type of matrices.
TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "BF16", "F16", "F32")
#: That type → the one of embedding and head, where that has more bits.
_HEAD = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1"), "Q8_0"),
    **dict.fromkeys(("Q4_K", "Q5_K"), "Q6_K"),
}
#: The type of matrices whose rows are not whole blocks, as llama.cpp chooses it; else F16.
_SMALLER_BLOCKS = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
#: In names of tensors that hold all experts of a layer.
_EXPERTS = "_exps."


class GGUFOutput:
    """A checkpoint as a GGUF file.

    Raises ModelError for an architecture, config or tokenizer that GGUF cannot hold.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, to: str) -> None:
        try:
            import gguf
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--to {to} needs the package {error.name}: {install_command('gguf')}", field="to"
            ) from None
        self._gguf, self._folder, self._checkpoint = gguf, folder, checkpoint
        self._to = gguf.GGMLQuantizationType[to]
        self._info, factors = _with_factors(checkpoint.model_info)
        config = self._info.hf_config
        shapes = ShapeSource()
        self._spec = model_spec(self._info)
        self._spec.build(shapes, Stage(max_positions=1))
        self._shapes = shapes.tensors
        self._parts = _parts(shapes)
        self._names = frozenset(checkpoint.names())
        self._weights = CheckpointWeights(checkpoint, open_backend("cpu", "f32", threads=1))
        self._arch, entry = architecture_for(self._info.architecture, str(folder))
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        self._places = places_of(self._shapes, entry, config, head_dim)
        self._keys = keys_of(config, self._arch, head_dim)
        #: Tensors that are no weights of the checkpoint.
        self._computed = {} if factors is None else {ROPE_FACTORS: factors}
        self._kept = {
            f"{part.name}.weight"
            for matrix in shapes.matrices
            for parts in parts_of(matrix)
            for part in parts
            if matrix.dense or matrix.float32
        }

    def write(self, out: Path) -> int:
        """Write the file, which appears when it is complete. Returns the number of tensors."""
        handle, name = tempfile.mkstemp(dir=out.absolute().parent, prefix=f".{out.name}-")
        os.close(handle)
        partial = Path(name)
        try:
            self._write(partial)
            partial.chmod(0o644)
            partial.rename(out)
        finally:
            partial.unlink(missing_ok=True)
        return len(self._places)

    def _write(self, path: Path) -> None:
        from rich.console import Console
        from rich.progress import track

        from galley.text.to_gguf import keys_of_directory

        logging.getLogger("gguf").setLevel(logging.WARNING)
        writer = self._gguf.GGUFWriter(path, self._arch)
        vocab = keys_of_directory(self._folder, self._info.vocab_size)
        for key, value in (self._keys | vocab | self._ends()).items():
            _add(writer, key, value)
        for name, array in self._computed.items():
            writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
        for name, place in self._places.items():
            kind, shape = self._kind(name, place), self._shape(name, place)
            stored = self._gguf.quants.quant_shape_to_byte_shape(shape, kind)
            size = math.prod(stored)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), size, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        self._check(path, writer)
        for array in self._computed.values():
            writer.write_tensor_data(array)
        console = Console(stderr=True)
        quiet = not sys.stderr.isatty()
        for name, place in track(
            list(self._places.items()), "Quantising", console=console, disable=quiet
        ):
            writer.write_tensor_data(self._encoded(name, place))
        writer.close()

    def _check(self, path: Path, writer: gguf.GGUFWriter) -> None:
        """Raise ModelError if the file, of which the values are missing, is of another model."""
        from galley.loader.gguf_checkpoint import GGUFCheckpoint
        from galley.text.from_directory import build_from_directory
        from galley.text.from_gguf import build_from_gguf
        from galley.text.to_gguf import same_tokens

        align = writer.data_alignment
        sizes = sum(-(-info.nbytes // align) * align for info in writer.tensors[0].values())
        size = path.stat().st_size
        os.truncate(path, -(-size // align) * align + sizes)
        if self._computed:  # the config is made of them
            with path.open("r+b") as f:
                f.seek(-(-size // align) * align)
                for array in self._computed.values():
                    f.write(array.tobytes())
        try:
            read = model_spec(GGUFCheckpoint(path).model_info)
        except ModelError as error:
            reason = str(error).removeprefix(f"{path}: ")
            raise ModelError(
                f"{self._folder}: {self._info.architecture} cannot be written as GGUF: {reason}"
            ) from None
        if read != self._spec:
            raise ModelError(
                f"{self._folder}: the config of {self._info.architecture} has settings that GGUF "
                f"has no keys for as {self._arch}: {_difference(self._spec, read)}"
            )
        if not same_tokens(build_from_directory(self._folder), build_from_gguf(path)):
            raise ModelError(f"{self._folder}: its tokenizer cannot be written as GGUF")

    def _ends(self) -> dict[str, int]:
        """The ids that end a text, a turn, a message."""
        names = ("eos", "eot", "eom")
        ids = self._info.eos_token_ids[:3]
        return {f"tokenizer.ggml.{n}_token_id": i for n, i in zip(names, ids, strict=False)}

    def _shape(self, name: str, place: Place) -> tuple[int, ...]:
        part = self._parts.get(place.sources[0])
        shape = self._shapes[place.sources[0]] if part is None else part.shape
        return (len(place.sources), *shape) if _EXPERTS in name else shape

    def _kind(self, name: str, place: Place) -> gguf.GGMLQuantizationType:
        types = self._gguf.GGMLQuantizationType
        shape = self._shape(name, place)
        if len(shape) == 1 or place.sources[0] in self._kept:
            return types.F32
        kind = self._to
        if name in ("token_embd.weight", "output.weight"):
            kind = types[_HEAD.get(kind.name, kind.name)]
        while shape[-1] % self._gguf.GGML_QUANT_SIZES[kind][0]:
            kind = types[_SMALLER_BLOCKS.get(kind.name, "F16")]
        return kind

    def _encoded(self, name: str, place: Place) -> NDArray[np.uint8]:
        """The tensor's bytes."""
        values, kind = self._values(name, place), self._kind(name, place)
        encode = ENCODERS.get(kind.name)
        data = self._gguf.quantize(values, kind) if encode is None else encode(values)
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)

    def _values(self, name: str, place: Place) -> NDArray[np.float32]:
        each = [self._value(source) for source in place.sources]
        values = np.stack(each) if _EXPERTS in name else each[0]
        if place.rows is not None:
            values = values[place.rows]
        return values + np.float32(place.plus) if place.plus else values

    def _value(self, name: str) -> NDArray[np.float32]:
        part = self._parts.get(name)
        if name not in self._names and part is not None and part.stack is not None:
            return to_float32(self._weights.stacked(part.stack, part.name, part.shape))
        values = to_float32(self._checkpoint.tensor(name))
        transposed = part is not None and part.transposed
        return np.ascontiguousarray(values.T) if transposed else values


def _parts(shapes: ShapeSource) -> dict[str, Part]:
    """Of each tensor of a matrix: one of its parts. ModelError for what is not stored plainly."""
    found: dict[str, Part] = {}
    for matrix in shapes.matrices:
        for part in (part for parts in parts_of(matrix) for part in parts):
            if part.turned or part.unit_rows or part.plus is not None or part.otherwise is not None:
                raise ModelError(f"tensor {part.name} cannot be written as GGUF")
            found[f"{part.name}.weight"] = part
    return found


def _with_factors(info: ModelInfo) -> tuple[ModelInfo, NDArray[np.float32] | None]:
    """Llama 3's rotary scaling as a factor per frequency, which GGUF has a tensor for."""
    config = info.hf_config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) != "llama3":
        return info, None
    spec: Any = model_spec(info)
    rotary: Rotary = spec.layers[0].mixer.rotary
    factors = inverse_frequencies(rotary.dim, rotary.theta) / rotary.inverse_frequencies()
    scaling = {
        "rope_type": "frequency_factors",
        "rope_theta": rotary.theta,
        "factors": [float(factor) for factor in factors],
    }
    changed = {**config, "rope_theta": rotary.theta, "rope_scaling": scaling}
    changed.pop("rope_parameters", None)
    return dataclasses.replace(info, hf_config=changed), factors


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if key == "general.architecture":
        return  # the writer has it
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _difference(one: Any, other: Any) -> str:
    """Where two specs differ first."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(one, other, strict=True))]
    elif type(one) is type(other) and hasattr(one, "__struct_fields__"):
        names = one.__struct_fields__
        pairs = [(name, getattr(one, name), getattr(other, name)) for name in names]
    else:
        return f"{one} is read as {other}"
    return next((f"{name}: {_difference(a, b)}" for name, a, b in pairs if a != b), "nothing")
