"""An adapter's tensors by module, and packing them for the sites of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes
import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.kernels.adapters import AdapterSite, PackedAdapter
from galley.layers.sites import Sites, SiteTensors
from galley.layers.weight_specs import Part, Stack

#: How many names an error lists.
_MAX_NAMES = 4


class AdapterTensors(msgspec.Struct, frozen=True, eq=False):
    """An adapter's tensors of one module of the base model, in the checkpoint's order of rows.

    Attributes:
        a: [rank, K]; b: [N, rank]; of any float type. Of an embedding K is the vocabulary.
        scale: factor of B A x.
        copy: the whole matrix [N, K] in place of the module's own, or [K, N] of an embedding; None
            = it has none.
        experts: its matrices are those of so many experts, one after the other.
        magnitude: [N] the length of each row of W + scale * B A (DoRA); None = as it is.
        b_bias: [N] added to B A x; None = none.
        bias: [N] in place of the module's own bias; None = as it is.
    """

    a: NDArray[np.generic]
    b: NDArray[np.generic]
    scale: float
    copy: NDArray[np.generic] | None = None
    experts: int = 1
    magnitude: NDArray[np.float32] | None = None
    b_bias: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def vectors(self) -> list[NDArray[np.float32]]:
        return [v for v in (self.magnitude, self.b_bias, self.bias) if v is not None]

    def of_expert(self, stack: Stack) -> AdapterTensors | None:
        """Those of one expert's part of a stack of matrices; None if shapes are others."""
        experts, n, k = stack.shape
        if stack.transposed:
            n, k = k, n
        if experts != self.experts or self.rank % experts:
            return None
        shape = self.b.shape[0], self.a.shape[1]
        a = self.a.reshape(experts, -1, shape[1])[stack.index]
        b = self.b[:, stack.index :: experts]
        if shape == (k, n) and k != n:  # as PEFT before 0.18 took the stack's dimensions
            a, b = b.T, a.T
        elif shape != (n, k):
            return None
        return AdapterTensors(a, b[slice(*stack.outputs)], self.scale)


class BaseWeights(Protocol):
    """The model's own weights, for what cannot be told without them."""

    def rows(self, part: Part) -> NDArray[np.float32]:
        """[n, K] of a part."""

    def bias(self, part: Part) -> NDArray[np.float32]:
        """[n] of a part; zeros where it has none."""


def pack_adapter(
    name: str,
    modules: Mapping[str, AdapterTensors],
    sites: Sites,
    max_rank: int,
    bf16: bool,
    base: BaseWeights,
) -> PackedAdapter:
    """The adapter as kernels read it.

    Args:
        name: for messages.
        modules: by name of the base model's tensor, without ".weight".
        base: is asked only for modules with magnitudes or biases.

    Raises:
        ModelError: a module that adapters cannot add to, a wrong shape, a rank above `max_rank`, a
            number that is not finite.
    """
    finder = _Finder(name, modules)
    found: dict[int, AdapterTensors] = {}
    copied: dict[int, NDArray[np.generic]] = {}
    for tensors in sites.all:
        stacks = {part.name: part.stack for part in tensors.parts}
        for i, module in enumerate(tensors.names):
            given = finder.take(module) or finder.take_expert(stacks[module])
            if given is None:
                continue
            found[tensors.site.first_input + i] = given
            if given.rank:
                _check(name, module, given, tensors, max_rank)
            if given.copy is not None:
                _check_copy(name, module, given, tensors)
                copied[tensors.site.copy] = given.copy
    finder.require_all_used()
    shape = sites.shape
    ranks = [found[i].rank if i in found else 0 for i in range(len(shape.k))]
    scales = [found[i].scale if i in found else 0.0 for i in range(len(shape.k))]
    has_copy = [i in copied for i in range(len(shape.copies))]
    has_affine = [i in found and bool(found[i].vectors) for i in shape.input_of]
    packed = PackedAdapter.empty(shape, ranks, scales, bf16, has_affine, has_copy)
    for tensors in sites.all:
        site = tensors.site
        for i in range(site.first_input, site.first_input + len(tensors.names)):
            if i in found and found[i].rank:
                packed.set_a(i, _finite(name, found[i].a, bf16))
        for j, part in enumerate(tensors.parts, site.first_output):
            given = found.get(shape.input_of[j])
            if given is None:
                continue
            rows = _rows(part, site)
            b = given.b[rows]
            if given.vectors:
                gains, shifts = _affine(name, part, given, rows, base)
                packed.set_affine(j, gains, shifts)
                b = b.astype(np.float32) * gains[:, None]
            if given.rank:
                packed.set_b(j, _finite(name, b, bf16))
    for i, values in copied.items():
        packed.set_copy(i, _finite(name, values, bf16))
    return packed


def _affine(
    name: str, part: Part, given: AdapterTensors, rows: Any, base: BaseWeights
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[n] each, of a part: gain and shift, with which gain * (y + scale * B A x) + shift is the
    module's output for its output y without the adapter."""
    gains = np.ones(part.num_rows, np.float32)
    bias = base.bias(part)
    if given.magnitude is not None:
        a, b = given.a.astype(np.float32), given.b[rows].astype(np.float32)
        merged = base.rows(part) + np.float32(given.scale) * (b @ a)
        lengths = np.sqrt(np.square(merged).sum(axis=1))
        with np.errstate(divide="ignore", invalid="ignore"):
            gains = given.magnitude[rows] / lengths
    new = bias if given.bias is None else given.bias[rows]
    shifts = new - gains * bias
    if given.b_bias is not None:
        shifts = shifts + np.float32(given.scale) * given.b_bias[rows]
    if not (np.isfinite(gains).all() and np.isfinite(shifts).all()):
        raise ModelError(f"{name}: has numbers that are not finite")
    return gains, shifts


def _rows(part: Part, site: AdapterSite) -> slice | NDArray[np.intp]:
    """The rows of B that belong to a part."""
    return slice(None) if site.lookup else part.take(0, part.num_rows)


class _Finder:
    """The adapter's modules; which of them have been used."""

    def __init__(self, name: str, modules: Mapping[str, AdapterTensors]) -> None:
        self._name, self._modules = name, modules
        self._used: set[str] = set()

    def take(self, module: str) -> AdapterTensors | None:
        # An adapter of a model without its head lacks the first name.
        for name in (module, module.partition(".")[2]):
            if name in self._modules:
                self._used.add(name)
                return self._modules[name]
        return None

    def take_expert(self, stack: Stack | None) -> AdapterTensors | None:
        """Of one expert, from the matrices of all."""
        if stack is None:
            return None
        experts = stack.name.rpartition(".")[0]
        in_memory = experts.replace(".block_sparse_moe.", ".mlp.")  # as transformers renames it
        for name in (f"{e}{end}" for e in (experts, in_memory) for end in ("", ".base_layer")):
            given = self._modules.get(name)
            found = None if given is None else given.of_expert(stack)
            if found is not None:
                self._used.add(name)
                return found
        return None

    def require_all_used(self) -> None:
        unused = sorted(set(self._modules) - self._used)
        if unused:
            shown = ", ".join(f"{name:.120}" for name in unused[:_MAX_NAMES])
            more = f" and {len(unused) - _MAX_NAMES} more" if len(unused) > _MAX_NAMES else ""
            raise ModelError(
                f"{self._name}: adapters of {shown}{more} are not supported: they are no "
                "layers of this model that adapters add to"
            )


def _check(
    name: str, module: str, given: AdapterTensors, tensors: SiteTensors, max_rank: int
) -> None:
    parts = [part for part in tensors.parts if part.name == module]
    if any(part.unit_rows or part.plus is not None or part.turned for part in parts):
        raise ModelError(f"{name}: adapters of {module} are not supported")
    if given.vectors and (tensors.site.lookup or tensors.site.experts > 1):
        what = "DoRA" if given.magnitude is not None else "biases"
        raise ModelError(f"{name}: {what} of {module} is not supported")
    if given.rank > max_rank:
        raise ModelError(
            f"{name}: {module}: LoRA rank {given.rank} is greater than max_lora_rank {max_rank}"
        )
    # Rows of the whole tensor that the parts belong to.
    outputs = tensors.site.columns if tensors.site.lookup else parts[0].shape[0]
    wanted = (given.rank, tensors.site.k), (outputs, given.rank)
    for letter, matrix, shape in zip("AB", (given.a, given.b), wanted, strict=True):
        if matrix.shape != shape:
            raise ModelError(
                f"{name}: lora_{letter} of {module} has shape {list(matrix.shape)}, "
                f"the model needs {list(shape)}"
            )
    for vector in given.vectors:
        if vector.shape != (outputs,):
            raise ModelError(
                f"{name}: {module} has a vector of {list(vector.shape)} for {outputs} outputs"
            )


def _check_copy(name: str, module: str, given: AdapterTensors, tensors: SiteTensors) -> None:
    part, copy = tensors.parts[0], given.copy
    assert copy is not None
    if given.bias is not None and not (tensors.site.pooled and given.bias.shape == copy.shape[:1]):
        raise ModelError(
            f"{name}: the bias of {module}, {list(given.bias.shape)}, is not supported"
        )
    if tensors.site.copy < 0 or part.unit_rows or part.turned or part.plus is not None:
        raise ModelError(f"{name}: modules_to_save {module} is not supported")
    if copy.shape != part.shape:
        raise ModelError(
            f"{name}: {module} has shape {list(copy.shape)}, the model's is {list(part.shape)}: a "
            "vocabulary of another size is not supported"
        )


def _finite(name: str, values: NDArray[np.generic], bf16: bool) -> NDArray[np.generic]:
    numbers = values.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise ModelError(f"{name}: has numbers that are not finite")
    if not bf16:
        return numbers
    with np.errstate(over="ignore"):
        rounded = numbers.astype(ml_dtypes.bfloat16)
    if not np.isfinite(rounded.astype(np.float32)).all():
        raise ModelError(f"{name}: has numbers that are too large for bfloat16")
    return rounded
