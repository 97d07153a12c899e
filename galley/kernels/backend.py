"""Interface of a backend, which stores weights in its own format and makes a model executable, and
the registry of backends. A backend's module is imported when it is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from galley.batch import I32, RequestTable
from galley.config.engine import QuantizedActivations
from galley.config.extras import install_command
from galley.config.registries import BACKENDS
from galley.errors import ConfigError
from galley.kernels.adapters import AdapterTable
from galley.kernels.ops import CacheLayer, Constant, ForwardContext, Ops, Value, Weight
from galley.kernels.quantized import QuantizedWeight
from galley.kernels.sampling import LogitMasks, Samples
from galley.kv.format import KVFormat
from galley.kv.layout import KVLayout, plan_layout

if TYPE_CHECKING:
    from galley.kernels.weights import PackedWeight

#: Entry points of other packages: each is a class like those of BACKENDS.
GROUP = "galley.backends"
#: Number format of weights that are not quantised.
Dense = Literal["f32", "bf16"]
#: Allocates a number of bytes, writable, 64-byte aligned.
MemoryAllocator = Callable[[int], NDArray[np.uint8]]


class StepLimits(msgspec.Struct, frozen=True):
    """The largest step; buffers are sized for it.

    Attributes:
        tokens: new tokens of all rows.
        rows: sequences.
        logits: logit rows.
        top_logprobs: most likely tokens returned per logit row.
        drafts: drafts in steps of a model with recurrent states; without such states, any number.
    """

    tokens: int
    rows: int
    logits: int
    top_logprobs: int = 0
    drafts: int = 0


class Model(Protocol):
    """The part of a model that a backend uses: KV layers and the forward pass in three parts."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def kv_layers(self) -> Sequence[CacheLayer]: ...

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value: ...
    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value: ...
    def logits(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value: ...
    def final_norm(self, ops: Ops, hidden: Value) -> Value: ...


class StepInputs(Protocol):
    """The columns of a plan that describe a step, [n] each (see `batch.StepPlan`)."""

    slots: I32
    num_new: I32
    num_logits: I32
    num_sampled: I32


class Executable(Protocol):
    """A model ready to run steps. Order of calls: allocate_kv, bind, then run for each step.

    Attributes:
        activation_bytes: memory for activations and logits at the limits.
    """

    activation_bytes: int

    def kv_layout(self, block_size: int, state_interval: int = 0) -> KVLayout:
        """The layout of the model's KV cache; arguments as for `kv.plan_layout`."""

    def allocate_kv(
        self, num_blocks: int, layout: KVLayout, memory: MemoryAllocator | None = None
    ) -> None:
        """Allocate the cache: `num_blocks` blocks, including block 0, the null block.
        Its memory is touched when blocks are first written.

        Args:
            layout: a result of `kv_layout`.
            memory: allocates the cache's bytes: zeros, or the contents of an earlier cache of this
                size. A backend may ignore it. None = the backend allocates zeros.
        """

    def share_kv(self, other: Executable) -> None:
        """Use the cache of another executable of this backend instead of one of its own; the
        layout that it was allocated with has this model's layers too.
        """

    def copy_blocks(self, src: I32, dst: I32) -> None:
        """Copy whole blocks, all layers of their group, in order."""

    def release_blocks(self, blocks: list[int]) -> None:
        """Return the memory of unused blocks to the system, if the backend can."""

    def bind(self, table: RequestTable, columns: Mapping[str, NDArray[Any]]) -> None:
        """Let ops read the table and further columns by name, which must stay where they are: by
        slot (sampling parameters and the like) or by token of a step.
        """

    def set_masks(self, masks: LogitMasks | None) -> None:
        """Masks and biases of the logit rows, for all sampling until they are replaced."""

    @property
    def outputs(self) -> dict[str, NDArray[np.float32]]:
        """Named outputs of the last run, valid until the next: logits [L, V], and those that were
        asked for when it was built (hidden [T, H]; normed [T, H], after the final norm; layer.I
        [T, H], the input of layer I).
        """

    def run(
        self, step: StepInputs, sample: bool, adapted: bool = False, greedy: bool = False
    ) -> None:
        """Run the forward pass and, with `sample`, the sampler. Writes K and V to the cache and
        the results to `logits` and `samples`.

        Args:
            adapted: rows may have an adapter: the column `adapter` names its place, -1 = none.
            greedy: the token of each logit row is that of its largest logit, and nothing else is
                read: `logits` need not be written.
        """

    def sample(self, step: StepInputs) -> None:
        """Run the sampler alone, on the current `logits`."""

    def rewind(self, step: StepInputs, num_kept: I32) -> None:
        """Take the drafts of the last run back that were rejected: recurrent states become those
        behind the first num_kept [n] drafts of each row. `num_computed` is still that of the run.
        """

    def set_heartbeat(self, heartbeat: NDArray[np.int64]) -> None:
        """Increment `heartbeat` [1] from now on as a step progresses: after each operation, or at
        least once a run.
        """

    def profile(self, on: bool) -> None:
        """Start (from zero) or stop timing each operation."""

    def timings(self) -> list[tuple[str, int, int]]:
        """(op, runs, nanoseconds) of each op, in order; empty if the backend times nothing."""

    def describe(self) -> str:
        """The program, one op a line."""

    @property
    def logits(self) -> NDArray[np.float32]:
        """[L, V] of the last run, writable, valid until the next."""

    @property
    def samples(self) -> Samples:
        """Results of the last sampling; views, valid until the next run."""


class Backend(Protocol):
    """Holds weights and builds executables.

    Attributes:
        name: as in --backend.
        batch_invariant: a row's result depends on nothing but the row (design 3.1).
        interleave_gate_up: gate and up projections are to be packed in turn, in runs of
            `GATE_UP_RUN` rows, so that SiLU·mul can be fused to them.
        kv: number format of the KV cache.
        dense: format of weights that are not quantised.
    """

    name: str
    dense: Dense
    batch_invariant: bool
    interleave_gate_up: bool
    kv: KVFormat

    def weight(self, data: QuantizedWeight, float32: bool = False) -> Weight:
        """The handle that `Ops.linear` and `Ops.embedding` take.

        Args:
            float32: numbers that are not quantised are float32, whatever the backend's format.
        """

    def constant(self, values: NDArray[np.float32]) -> Constant:
        """The handle of a norm weight, a bias or a table."""

    def packed(self, weight: Weight) -> PackedWeight | None:
        """The weight as the disk cache stores it; None = not cached."""

    def from_packed(self, packed: PackedWeight) -> Weight:
        """A weight whose packed data exists already, for example in a mapped file."""

    def build(
        self,
        model: Model,
        limits: StepLimits,
        outputs: Sequence[str] = (),
        adapters: AdapterTable | None = None,
        prompt_rows: bool = False,
    ) -> Executable:
        """Make the model executable for steps within the limits.

        Args:
            outputs: results to keep besides the logits; see `Executable.outputs`.
            adapters: that rows of a step may have; None = none.
            prompt_rows: prompts may bring embedding rows, in the columns of the op `prompt_rows`.
        """


def kv_layout(
    layers: Sequence[CacheLayer], numbers: KVFormat, block_size: int, state_interval: int = 0
) -> KVLayout:
    """The layout of a model's KV cache.

    Args:
        layers: `Model.kv_layers`.
        numbers: `Backend.kv`.
        block_size, state_interval: as for `plan_layout`.
    """
    return plan_layout((layer.cache(numbers) for layer in layers), block_size, state_interval)


def dense_kv(dense: Dense) -> KVFormat:
    """A KV cache of the format of weights that are not quantised."""
    return KVFormat("float32" if dense == "f32" else "bfloat16")


def open_backend(
    name: str,
    dense: Dense,
    threads: int = 0,
    eager: bool = False,
    quantized_activations: QuantizedActivations = "auto",
    kv: KVFormat | None = None,
) -> Backend:
    """The backend called `name`; "auto" is the native CPU one.

    Args:
        dense: format of weights that are not quantised.
        threads: compute threads, 0 = one per core that this process may use.
        eager: run op by op (--enforce-eager).
        quantized_activations: format of the input of layers with weights of integers in groups, if
            the backend rounds it.
        kv: number format of the KV cache; None = that of `dense`.

    Raises:
        ConfigError: there is no such backend, or what it needs is not installed.
    """
    try:
        make = _backend_class("cpu" if name == "auto" else name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("galley"):
            raise  # a bug, or a build without kernels: the traceback says more
        raise ConfigError(
            f"--backend {name} needs the package {error.name}, which is not installed: "
            f"{install_command(error.name)}"
        ) from error
    return make(
        dense, threads=threads, eager=eager, quantized_activations=quantized_activations, kv=kv
    )


def _backend_class(name: str) -> Callable[..., Backend]:
    """The class of BACKENDS, or of an entry point. Raises ConfigError, ModuleNotFoundError."""
    if name in BACKENDS:
        module, attribute = BACKENDS[name]
        return cast(Callable[..., Backend], getattr(importlib.import_module(module), attribute))
    from importlib.metadata import entry_points  # slow to import: only for a plugin

    for point in entry_points(group=GROUP, name=name):
        return cast(Callable[..., Backend], point.load())
    known = ", ".join(["auto", *BACKENDS, *sorted(entry_points(group=GROUP).names)])
    raise ConfigError(f"--backend {name}: no such backend; choose from {known}", field="backend")
