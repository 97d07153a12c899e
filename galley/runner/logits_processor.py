"""Logits processors of an engine (--logits-processors): their interface, and how they are found.

A processor sees the whole batch. It is vLLM's interface on numpy arrays; vLLM's own base class,
on torch tensors, is in compat/. The answers of a request depend on nothing else in the batch where
a processor computes each row from that row, its parameters and its tokens alone.
"""

from __future__ import annotations

import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galley.config import EngineConfig
from galley.errors import ConfigError
from galley.request import SamplingParams

if TYPE_CHECKING:
    import numpy as np  # front ends, which check parameters, do without it
    from numpy.typing import NDArray

#: Entry points whose classes every engine uses, as in vLLM.
GROUP = "vllm.logits_processors"


class MoveDirectionality(Enum):
    """Of `BatchUpdate.moved`. Galley moves rows one way."""

    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    """How the batch has changed; to be followed in the order removed, added, moved.

    Attributes:
        batch_size: rows after the change.
        removed: rows whose sequence has left.
        added: (row, parameters, prompt token ids, output token ids); the output list grows as
            tokens are sampled. A sequence that was preempted, or whose engine was restarted, is
            added with the output that it has. A row may be taken over without being removed.
        moved: (from, to, direction).
    """

    batch_size: int
    removed: Sequence[int]
    added: Sequence[tuple[int, SamplingParams, list[int], list[int]]]
    moved: Sequence[tuple[int, int, MoveDirectionality]]


class LogitsProcessor(ABC):
    """Changes the logits of a batch between forward pass and sampling.

    Args:
        config: of the engine.
        device: "cpu".
        is_pin_memory: False.
    """

    @abstractmethod
    def __init__(self, config: EngineConfig, device: str, is_pin_memory: bool) -> None: ...

    @classmethod  # noqa: B027 - optional
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Raise ValueError for parameters (`extra_args`) that are not valid: the request is
        refused. Called where requests are accepted, which is not the engine's process.
        """

    @abstractmethod
    def apply(self, logits: Any) -> Any:
        """The logits to sample from, float32 [rows of the batch, V]; may be changed in place.

        Rows that sample nothing in this step are 0, and are not used.
        """

    @abstractmethod
    def is_argmax_invariant(self) -> bool:
        """Whether the most likely token stays the same. Such a processor gets logits divided by
        the temperature, and does not change rows that sample greedily.
        """

    @abstractmethod
    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Called before each `apply`; None = the batch is as before."""

    @classmethod
    def create(cls, config: EngineConfig) -> LogitsProcessor:
        """The processor of an engine."""
        return cls(config, "cpu", False)

    def process(self, logits: NDArray[np.float32]) -> Any:
        """`apply` to a numpy array, which a class for other arrays converts."""
        return self.apply(logits)


def processor_classes(config: EngineConfig) -> list[type[LogitsProcessor]]:
    """The classes of the installed entry points, then those that the configuration names.

    Raises:
        ConfigError: one cannot be imported or is no `LogitsProcessor`, or the engine speculates or
            pools; names the flag.
    """
    given, found = config.model.logits_processors, _installed(tuple(sys.path))
    if not given and not found:
        return []
    flag = "--logits-processors" if given else f"an installed plugin of {GROUP}"
    for excluded, what in (
        (
            config.speculative.settings is not None,
            "--speculative-config: they would not see drafts",
        ),
        (config.model.runner == "pooling", "--runner pooling, which samples nothing"),
    ):
        if excluded:
            raise ConfigError(f"{flag} cannot be used with {what}.", field="logits_processors")
    return [*found, *(_class_of(each) for each in given)]


def _class_of(given: str | type) -> type[LogitsProcessor]:
    found: Any = given
    if isinstance(given, str):
        module, colon, name = given.partition(":")
        if not colon:
            module, _, name = given.rpartition(".")
        try:
            found = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as e:
            raise ConfigError(f"--logits-processors {given}: {e}", field="logits_processors") from e
    if not isinstance(found, type) or not issubclass(found, LogitsProcessor):
        shown = getattr(found, "__name__", found)
        raise ConfigError(
            f"--logits-processors: {shown} is not a subclass of galley.LogitsProcessor.",
            field="logits_processors",
        )
    return found


@cache  # a start asks several times
def _installed(path: tuple[str, ...]) -> tuple[type[LogitsProcessor], ...]:
    """The classes of the entry points in the folders of `sys.path`."""
    if not any(_may_have_plugin(Path(folder)) for folder in path):
        return ()
    from importlib.metadata import entry_points  # slow to import: only where there is a plugin

    found = []
    for point in entry_points(group=GROUP):
        try:
            found.append(_class_of(point.load()))
        except Exception as e:
            raise ConfigError(f"the logits processor plugin {point.name}: {e}") from e
    return tuple(found)


def _may_have_plugin(folder: Path) -> bool:
    """Whether a distribution in this folder of `sys.path` names the group."""
    try:
        names = os.listdir(folder)
    except OSError:
        return False
    for name in names:
        if name.endswith((".dist-info", ".egg-info")):
            file = folder / name / "entry_points.txt"
            if file.is_file() and GROUP in file.read_text(encoding="utf-8", errors="replace"):
                return True
    return False
