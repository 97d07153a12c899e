"""The program and memory that are known before a weight is read are those of the engine."""

from __future__ import annotations

import re
from typing import Any

import pytest

from galley.config.resolve import from_kwargs
from galley.engine.assembly import assemble
from galley.kernels.program import describe
from galley.planning.machine import Machine
from galley.planning.predict import predict
from galley.planning.program import planned_model
from galley.planning.simulate import Workload
from tests.small_model import small_model

#: In a description, facts of weights that are there: their format, and the table's positions.
_KNOWN = re.compile(r"(?<=\[)\d+(?=×64\], kv)|(?<=\d) [a-z]\w+[^\]=]*(?=\])")
FLAGS: dict[str, Any] = {
    "max_model_len": 256,
    "max_num_seqs": 4,
    "num_threads": 1,
}


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_program_and_memory_are_the_engine_s(dtype: str) -> None:
    """The program op by op; bytes of weights, activations and blocks to the byte."""
    engine = {"model": str(small_model()), "dtype": dtype, **FLAGS}
    model = planned_model(engine)
    core = assemble(from_kwargs(engine, "server")).core
    [program] = core.executor.rpc("describe")
    [memory] = core.executor.rpc("memory")
    blocks, groups = core.executor.num_blocks, core.executor.groups
    core.shutdown()
    assert _KNOWN.sub("", describe(model.nodes)) == _KNOWN.sub("", program.rpartition("\narena")[0])
    machine = Machine("m", "m", 2**32, 1e10, {"f32": 1e11})
    found = predict(model, machine, Workload(128, 128, 4), engine).memory
    assert (found.weights, found.activations) == (memory["weights"], memory["activations"])
    share = from_kwargs(engine, "server").cache.gpu_memory_utilization
    room = int(2**32 * share) - found.weights - found.activations
    block = memory["kv_cache"] // blocks
    assert found.kv_cache == room // block * block
    assert found.kv_per_sequence == 256 // groups[0].block_size * block
