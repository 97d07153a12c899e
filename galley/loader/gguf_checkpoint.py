"""A GGUF model, one file or split into parts, as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from galley.errors import ModelError
from galley.loader.config_changes import ConfigChanges
from galley.loader.fields import Fields
from galley.loader.gguf import GGUFFile, TensorInfo
from galley.loader.gguf_info import architecture_of, info_of_gguf, metadata
from galley.loader.gguf_names import (
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    fused_names,
    hf_names,
    row_order,
)
from galley.loader.gguf_states import logical_shape, logical_values
from galley.loader.source import Source, split_parts
from galley.loader.tensor import RawTensor, TensorHeader

MAX_PARTS = 1024
#: Ends of names of matrices of one row, which the file has as vectors.
_ONE_ROW = (".shared_expert_gate.weight", ".moe_statics.e_score_correction_bias")


def open_parts(path: Path) -> list[GGUFFile]:
    """The files of a model; the first has the metadata."""
    first = GGUFFile(path)
    count = first.get("split.count", 1)
    if not isinstance(count, int) or not 0 <= count <= MAX_PARTS:
        raise ModelError(f"{path}: split.count is {count!r}")
    if count <= 1:
        return [first]
    return [first, *(GGUFFile(part) for part in split_parts(path, count)[1:])]


def tensors_of(parts: list[GGUFFile]) -> dict[str, TensorInfo]:
    """The tensor tables of all parts, merged."""
    merged: dict[str, TensorInfo] = {}
    for part in parts:
        duplicates = merged.keys() & part.tensors.keys()
        if duplicates:
            raise ModelError(f"{part.path}: tensor {min(duplicates)} is in an earlier part too")
        merged |= part.tensors
    return merged


class GGUFCheckpoint:
    """Tensors by Hugging Face name, data mapped from the file."""

    def __init__(self, path: Path, changes: ConfigChanges | None = None) -> None:
        """Raises ModelError for a damaged file or an unsupported architecture."""
        self.path = path
        parts = open_parts(path)
        self.model_info = info_of_gguf(parts[0], tensors_of(parts), changes)
        arch, architecture = architecture_of(parts[0])
        self._architecture = architecture
        #: Of each tensor that the file has as metadata: its values.
        self._computed: dict[str, np.ndarray] = {}
        if architecture.computed is not None:
            self._computed = architecture.computed(metadata(parts[0], arch), arch)
        stored = {
            info.name: (part, info)
            for part in parts
            for info in part.tensors.values()
            if info.name not in (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)
        }
        #: Of each tensor: those of the file whose rows it consists of.
        self._places: dict[str, list[tuple[GGUFFile, TensorInfo]]] = {}
        layers = self.model_info.hf_config.get("num_hidden_layers", 0)
        for name, names in fused_names(architecture, layers).items():
            if all(part in stored for part in names):
                self._places[name] = [stored.pop(part) for part in names]
        #: Of each tensor that is one of several along the first axis: its number, and which of how
        #: many parts of that one's rows it is.
        self._numbers: dict[str, tuple[int, int, int]] = {}
        for stem, place in stored.items():
            names = hf_names(stem, architecture)
            for part, name in enumerate(names):
                if "{}" not in name:
                    self._places[name] = [place]
                    if len(names) > 1:
                        self._numbers[name] = part, 0, 1
                    continue
                for i in range(place[1].shape[0]):
                    self._places[name.format(i)] = [place]
                    self._numbers[name.format(i)] = i, part, len(names)

    @staticmethod
    def open(source: Source) -> GGUFCheckpoint:
        """For the load format "gguf"."""
        return GGUFCheckpoint(source.path, source.changes)

    def names(self) -> list[str]:
        return [*self._places, *self._computed]

    def header(self, name: str) -> TensorHeader:
        if name in self._computed:
            return TensorHeader(self._computed[name].shape, "float32")
        places = self._of(name)
        info = places[0][1]
        if name in self._numbers:
            number, _, parts = self._numbers[name]
            if number >= info.shape[0] or len(info.shape) < 2:
                raise ModelError(f"{self.path}: tensor {info.name} has too few entries")
            rows, *others = info.shape[1:]
            if rows % parts:
                raise ModelError(f"{self.path}: tensor {info.name} has an odd number of rows")
            return TensorHeader((rows // parts, *others), info.type.name)
        rows = sum(info.shape[0] for _, info in places) if info.shape else 0
        if len(places) > 1:
            shape = (rows, *info.shape[1:])
        else:
            config = Fields(self.model_info.hf_config, str(self.path))
            shape = logical_shape(name, info.shape, config)
        if len(shape) == 1 and name.endswith(_ONE_ROW):
            shape = (1, *shape)
        return TensorHeader(shape, info.type.name)

    def tensor(self, name: str) -> RawTensor:
        header = self.header(name)
        if name in self._computed:
            return RawTensor(name, header.shape, header.dtype, self._computed[name])
        places = self._of(name)
        if len(places) > 1:
            data = np.concatenate([part.data(info) for part, info in places])
            return RawTensor(name, header.shape, header.dtype, data)
        [(part, info)] = places
        data = part.data(info)
        if name in self._numbers:
            number, part_of_rows, _ = self._numbers[name]
            rows = header.shape[0]
            own = data[number][part_of_rows * rows : (part_of_rows + 1) * rows]
            return RawTensor(name, header.shape, header.dtype, own)
        if header.shape != info.shape:
            data = data.reshape(header.shape)
        data = logical_values(name, data)
        plus, plain_norms = self._architecture.norm_plus, self._architecture.plain_norms
        if plus and name.endswith("norm.weight") and not name.endswith(plain_norms):
            shifted = data.astype(np.float32) - np.float32(plus)
            return RawTensor(name, header.shape, "float32", shifted)
        order = row_order(
            info.name, info.shape, self._architecture, self.model_info, str(self.path)
        )
        return RawTensor(name, header.shape, header.dtype, data, order)

    def _of(self, name: str) -> list[tuple[GGUFFile, TensorInfo]]:
        places = self._places.get(name)
        if places is None:
            raise ModelError(f"{self.path}: has no tensor {name}")
        if len({(info.type.name, info.shape[1:]) for _, info in places}) > 1:
            files = ", ".join(info.name for _, info in places)
            raise ModelError(f"{self.path}: {files} differ in type, which is not supported")
        return places
