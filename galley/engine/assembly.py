"""Builds an engine core from a configuration: loads the model and connects the parts."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from galley.config import EngineConfig, ModelInfo
from galley.config.memory import MachineMemory
from galley.config.resolve import Machine, resolve
from galley.engine.block_index import BlockIndex
from galley.engine.build import build_core
from galley.engine.core import EngineCore
from galley.engine.main import EngineSpec
from galley.engine.memory_guard import Cache, MemoryGuard
from galley.engine.outputs import EngineId
from galley.engine.persistent_kv import KVFiles
from galley.engine.startup import LoadProgress, kv_capacity, log_start
from galley.executor.build import build as build_executor
from galley.executor.executor import Executor
from galley.loader import Source, open_checkpoint, resolve_source, resolve_tokenizer
from galley.messages import Counters, Ready
from galley.models.footprint import measure
from galley.observability.meter import Sizes
from galley.runner.logits_processor import processor_classes
from galley.spec.speculator import make_speculator

if TYPE_CHECKING:
    from galley.structured.sequences import ConstrainedSequences
    from galley.structured.vocabulary import Vocabulary


class LoadedEngine(msgspec.Struct, frozen=True):
    """An engine core, its resolved configuration and its model."""

    core: EngineCore
    config: EngineConfig
    model_info: ModelInfo


def assemble(
    config: EngineConfig,
    engine_id: EngineId | None = None,
    source: Source | None = None,
    kv_files: KVFiles | None = None,
    adapters: Path | None = None,
    on_read: Callable[[], None] | None = None,
) -> LoadedEngine:
    """Find and load the model, size the KV cache, connect the parts.

    Args:
        source: of the model, where it has been resolved.
        kv_files: memory for a KV cache that outlives the engine.
        adapters: folder in which front ends put packed adapters.
        on_read: called with each tensor that is read, by any thread.

    Raises:
        ConfigError: a flag does not fit this machine or this model.
        ModelError: the checkpoint cannot be found or used.
    """
    machine = Machine.detect()
    source = source or resolve_source(config.model, config.load)
    checkpoint = open_checkpoint(source)
    model_info = checkpoint.model_info
    resolved = resolve(config, machine, model_info)
    available = machine.available_memory
    block_index = None
    if kv_files is not None and resolved.cache.enable_prefix_caching:
        block_index = BlockIndex(kv_files, signature_of(resolved, model_info))
        resolved = _with_num_blocks(resolved, block_index.num_blocks)
    memory = None if block_index is None else block_index.memory
    speculator = make_speculator(resolved, model_info, available)
    with LoadProgress(on_read) as progress:
        executor = build_executor(
            resolved,
            model_info,
            checkpoint,
            available - (0 if speculator is None else speculator.memory),
            progress,
            memory,
            speculator,
            pooling=resolved.model.runner == "pooling",
            adapters=adapters,
        )
    log_start(resolved, model_info, executor, progress.seconds)
    if block_index is not None and not block_index.used:
        block_index = None
    [memory_use] = executor.rpc("memory")
    sizes = None
    if resolved.observability.enable_mfu_metrics:
        sizes = _sizes(model_info, executor, memory_use["weights"])
    core = build_core(resolved, executor, engine_id, sizes, block_index)
    cache = Cache(
        memory_use["kv_cache"] // executor.num_blocks,
        lambda blocks: executor.rpc("release_blocks", blocks),
    )
    reserve = resolved.cache.memory_reserve
    core.guard = MemoryGuard(core.scheduler, cache, MachineMemory(), reserve)
    if not resolved.model.skip_tokenizer_init:
        core.open_constrained = partial(_constrained, resolved, model_info, source, core.counters)
    return LoadedEngine(core, resolved, model_info)


def _constrained(
    config: EngineConfig, model_info: ModelInfo, source: Source, counters: Counters
) -> ConstrainedSequences:
    """The constrained sequences of an engine; the tokenizer is loaded for the first one."""
    from galley.structured.compiler import Compiler
    from galley.structured.sequences import ConstrainedSequences

    def vocabulary(end_ids: tuple[int, ...]) -> Vocabulary:
        from galley.structured.vocabulary import vocabulary_of
        from galley.text import load_tokenizer

        tokenizer = load_tokenizer(resolve_tokenizer(config.model, config.load, source))
        return vocabulary_of(tokenizer, model_info.vocab_size, end_ids)

    assert config.scheduler.max_num_seqs is not None
    return ConstrainedSequences(
        Compiler(vocabulary),
        config.scheduler.max_num_seqs,
        model_info.vocab_size,
        counters,
        processed=bool(processor_classes(config)),
    )


def _sizes(model_info: ModelInfo, executor: Executor, weight_bytes: int) -> Sizes:
    """Sizes that the work of a step is estimated from."""
    footprint = measure(model_info)
    return Sizes(
        linear_weights=footprint.token_weights,
        vocab_weights=footprint.logit_weights,
        attention_width=footprint.attention_width,
        weight_bytes=weight_bytes,
        kv_bytes=sum(group.bytes_per_token for group in executor.groups),
    )


def signature_of(config: EngineConfig, model_info: ModelInfo) -> bytes:
    """32 bytes that identify everything that a KV cache depends on besides tokens."""
    source, native = Path(model_info.source), find_spec("galley.kernels._native")
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    if native is not None and native.origin is not None:
        files.append(Path(native.origin))
    digest = hashlib.sha256(f"{config} {model_info}".encode())
    for file in files:
        if file.is_file():
            stat = file.stat()
            digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.digest()


def _with_num_blocks(config: EngineConfig, num_blocks: int | None) -> EngineConfig:
    """A restarted engine gets a KV cache as large as before, whatever memory is free now."""
    if num_blocks is None:
        return config
    cache = dataclasses.replace(config.cache, num_gpu_blocks_override=num_blocks)
    return dataclasses.replace(config, cache=cache)


def load_engine(config: EngineConfig, spec: EngineSpec) -> tuple[EngineCore, Ready]:
    """The core of an engine process, and the message that each client gets when it is ready."""
    identity = EngineId(spec.index, spec.epoch)
    loaded = assemble(config, identity, kv_files=spec.kv_files, adapters=spec.adapters)
    core, executor = loaded.core, loaded.core.executor
    ready = Ready(
        engine_index=spec.index,
        epoch=spec.epoch,
        max_model_len=executor.max_model_len,
        num_blocks=executor.num_blocks,
        block_size=config.cache.block_size,
        batch_invariant=executor.batch_invariant,
        cache_tokens=kv_capacity(loaded.config, executor).tokens,
    )
    return core, ready
