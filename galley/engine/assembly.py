"""From a configuration to an engine core that has loaded its model."""

from __future__ import annotations

from dataclasses import dataclass

from galley.config import EngineConfig, ModelFacts
from galley.config.resolve import Machine, resolve
from galley.engine.core import EngineCore, build
from galley.engine.messages import Ready
from galley.engine.outputs import Stamp
from galley.engine.process import EngineSpec
from galley.executor.build import build as build_executor
from galley.loader import Source, open_checkpoint, resolve_source
from galley.runner.load import Progress


@dataclass(frozen=True)
class Assembled:
    """An engine core and what became known on the way to it. `config` is resolved."""

    core: EngineCore
    config: EngineConfig
    facts: ModelFacts
    source: Source


def assemble(
    config: EngineConfig, stamp: Stamp | None = None, progress: Progress | None = None
) -> Assembled:
    """Find and load the model, size the KV cache, wire the parts.

    Raises:
        ConfigError: a flag does not go with this machine or this model.
        ModelError: the checkpoint cannot be found or used.
    """
    machine = Machine.detect()
    source = resolve_source(config.model, config.load)
    checkpoint = open_checkpoint(source)
    facts = checkpoint.facts
    resolved = resolve(config, machine, facts)
    executor = build_executor(resolved, facts, checkpoint, machine.available_memory, progress)
    return Assembled(build(resolved, executor, stamp), resolved, facts, source)


def load_engine(config: EngineConfig, spec: EngineSpec) -> tuple[EngineCore, Ready]:
    """What an engine process loads: its core, and what it tells each client."""
    core = assemble(config, Stamp(spec.index, spec.epoch)).core
    executor = core.executor
    ready = Ready(
        engine_index=spec.index,
        epoch=spec.epoch,
        max_model_len=executor.max_model_len,
        num_blocks=executor.num_blocks,
        block_size=config.cache.block_size,
        batch_invariant=executor.batch_invariant,
    )
    return core, ready
