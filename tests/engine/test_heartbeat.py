"""A step that takes long is seen to get on, operation by operation, from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

from galley import LLM, SamplingParams
from galley.engine.heartbeat import StatusFile, StatusReader


@pytest.mark.parametrize("flags", [{}, {"enforce_eager": True}])
def test_each_operation_of_a_step_is_a_heartbeat(tmp_path: Path, flags: dict[str, bool]) -> None:
    path = str(tmp_path / "status")
    recorder = StatusFile(path, 1)
    recorder.heartbeat()
    with LLM(kv_cache_memory_bytes=64 << 20, max_model_len=256, **flags) as llm:
        llm._core.executor.rpc("set_heartbeat", path)
        operations = len(str(llm._core.executor.rpc("describe")[0]).splitlines())
        before = StatusReader(path).heartbeat()
        llm.generate([{"prompt_token_ids": [5, 6, 7]}], SamplingParams(max_tokens=1), False)
        after = StatusReader(path).heartbeat()
    assert before is not None
    assert after is not None
    assert operations > 100
    assert abs(after - before - operations) <= 2, "one step"
