"""--logits-processors: the batch updates that they get, and their effect on answers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from galley import LLM, BatchUpdate, LogitsProcessor, SamplingParams
from galley.errors import ConfigError, InvalidRequest, RequestFailed, Unsupported
from galley.request import StructuredOutputsParams
from galley.runner.processor_batch import ProcessorBatch
from galley.runner.sampled_rows import sampled_rows
from tests.runner.rows import VOCAB, new_row, step, tables
from tests.small_model import small_model

CLASS = f"{__name__}:Shift"


class Recorder(LogitsProcessor):
    """Keeps what it is told, as a processor of vLLM's does: row → (parameters, prompt, output)."""

    def __init__(self, config: Any, device: str, is_pin_memory: bool) -> None:
        self.rows: dict[int, tuple[Any, ...]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            del self.rows[row]
        for row, *of_request in batch_update.added:
            self.rows[row] = tuple(of_request)
        for a, b, _ in batch_update.moved:
            assert b not in self.rows
            self.rows[b] = self.rows.pop(a)
        assert set(self.rows) == set(range(batch_update.batch_size))

    def apply(self, logits: Any) -> Any:
        assert len(logits) == len(self.rows)
        return logits


class Shift(Recorder):
    """`shift`: allows one token, the first that comes so many after the last token."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        shift = (sampling_params.extra_args or {}).get("shift", 0)
        if not isinstance(shift, int):
            raise ValueError(f"shift must be a whole number, got {shift!r}.")

    def apply(self, logits: Any) -> Any:
        for row, (params, prompt, output) in self.rows.items():
            shift = (params.extra_args or {}).get("shift")
            if shift is not None:
                token = (prompt + output)[-1] + shift + len(output)
                logits[row, :token] = logits[row, token + 1 :] = -np.inf
        return logits


class Keep(Recorder):
    """Leaves the tokens whose probability is at least a quarter of the highest one's."""

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Any) -> Any:
        low = logits < logits.max(axis=1, keepdims=True) + np.log(np.float32(0.25))
        return np.where(low, np.float32(-np.inf), logits)


def test_rows_follow_sequences() -> None:
    recorder, rng = Recorder(None, "cpu", False), random.Random(5)
    batch, outputs = ProcessorBatch([recorder]), {}
    table, _ = tables()
    free, running = list(range(8)), []
    for _ in range(300):
        for slot in [s for s in running if rng.random() < 0.3]:
            running.remove(slot)
            free.append(slot)
            batch.clear(slot)
            table.clear_slot(slot)
        while free and rng.random() < 0.5:
            slot = free.pop(rng.randrange(len(free)))
            running.append(slot)
            known = [rng.randrange(VOCAB) for _ in range(rng.randint(3, 6))]
            row = new_row(slot, SamplingParams(seed=rng.randrange(99)), known)
            table.set_row(row)
            batch.set_row(row)
            outputs[slot] = (row.params, known)
        if not running:
            continue
        sampled = sampled_rows(step([s for s in running if rng.random() < 0.8]), table)
        logits = rng.random() * np.ones((len(sampled), VOCAB), np.float32)
        assert batch.apply(sampled, table, np.zeros(8, np.float32), logits) == {}
        if len(sampled):
            expected = [(p, known[:3], known[3:]) for p, known in map(outputs.get, running)]
            assert sorted(map(repr, recorder.rows.values())) == sorted(map(repr, expected))


@pytest.fixture(scope="module")
def llm():
    flags = {"kv_cache_memory_bytes": "32m", "max_model_len": 128, "max_num_seqs": 4}
    with LLM(str(small_model()), logits_processors=[CLASS, Keep], **flags) as llm:
        yield llm


def test_answers_do_not_depend_on_the_batch(llm: LLM) -> None:
    params = [
        SamplingParams(seed=1, max_tokens=9, logprobs=2),
        SamplingParams(seed=2, max_tokens=4, extra_args={"shift": 3}),
        SamplingParams(temperature=0, max_tokens=12, extra_args={"shift": -1}),
        SamplingParams(seed=3, temperature=0.6, max_tokens=7),
        SamplingParams(temperature=0, max_tokens=10),
        SamplingParams(seed=4, max_tokens=3, n=2, extra_args={"shift": 2}),
    ]  # more than there are slots
    prompts = [[11 + i, 500 + i, 40] for i in range(len(params))]
    together = llm.generate(prompts, params, use_tqdm=False)
    for prompt, one, output in zip(prompts, params, together, strict=True):
        assert llm.generate(prompt, one, use_tqdm=False)[0].outputs == output.outputs
    assert together[1].outputs[0].token_ids == [43, 47, 52, 58]
    assert together[0].outputs[0].token_ids != together[4].outputs[0].token_ids


def test_logprobs_are_those_of_the_model(llm: LLM) -> None:
    with LLM(str(small_model()), kv_cache_memory_bytes="32m", max_model_len=128) as plain:
        (expected,) = plain.generate(
            [[5, 6]], SamplingParams(temperature=0, max_tokens=1, logprobs=3), use_tqdm=False
        )
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=3, extra_args={"shift": 40})
    (shifted,) = llm.generate([[5, 6]], params, use_tqdm=False)
    (theirs,), (ours,) = expected.outputs[0].logprobs, shifted.outputs[0].logprobs
    assert shifted.outputs[0].token_ids == [46]
    assert ours[46].rank > 3
    for token, of_model in theirs.items():
        assert ours[token].logprob == pytest.approx(of_model.logprob, abs=1e-6)
        assert ours[token].rank == of_model.rank


def test_every_token_of_a_constraint_is_sampled(llm: LLM) -> None:
    (letter,) = llm.get_tokenizer().encode("x", add_special_tokens=False)
    choice = StructuredOutputsParams(choice=["xylophone"])
    params = SamplingParams(structured_outputs=choice, extra_args={"shift": 0}, max_tokens=3)
    with pytest.raises(RequestFailed, match="no token can be sampled"):
        llm.generate([[letter + 1]], params, use_tqdm=False)


def test_what_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="shift must be a whole number, got 'a'"):
        llm.generate("a", SamplingParams(extra_args={"shift": "a"}))
    with (
        LLM(str(small_model()), kv_cache_memory_bytes="32m", max_model_len=128) as plain,
        pytest.raises(Unsupported, match=r"extra_args .* this engine has none"),
    ):
        plain.generate("a", SamplingParams(extra_args={"shift": 1}))
    for flags, words in (
        ({"logits_processors": ["no_such_module:X"]}, "no_such_module:X: No module named"),
        ({"logits_processors": [f"{__name__}.Nothing"]}, "no attribute 'Nothing'"),
        ({"logits_processors": ["json:JSONDecoder"]}, "not a subclass of galley.LogitsProcessor"),
        ({"logits_processors": [CLASS], "speculative_config": {"method": "ngram",
          "num_speculative_tokens": 2}}, "cannot be used with speculative_config"),
        ({"logits_processors": [CLASS], "runner": "pooling"}, "runner pooling"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            LLM(str(small_model()), **flags)


def test_a_failure_ends_the_requests_of_its_step() -> None:
    class Broken(Recorder):
        def apply(self, logits: Any) -> Any:
            return logits[:, :-1]

    table, _ = tables(new_row(0, SamplingParams()))
    batch = ProcessorBatch([Broken(None, "cpu", False)])
    batch.set_row(new_row(0, SamplingParams()))
    sampled = sampled_rows(step([0]), table)
    failed = batch.apply(sampled, table, np.zeros(8, np.float32), np.ones((1, VOCAB), np.float32))
    assert "Broken returned shape (1, 199) for logits of shape (1, 200)" in failed[0]


def test_entry_points_come_first(tmp_path, monkeypatch) -> None:
    from galley.config import EngineConfig
    from galley.runner.logits_processor import processor_classes

    info = tmp_path / "plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[vllm.logits_processors]\nkeep = {__name__}:Keep\n")
    assert processor_classes(EngineConfig()) == []
    monkeypatch.syspath_prepend(str(tmp_path))
    assert processor_classes(EngineConfig()) == [Keep]
