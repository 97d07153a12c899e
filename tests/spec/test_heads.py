"""Draft heads: answers are the plain ones, and acceptance is that of a float32 reference.

Checklist 116, 117, 120, 122.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from galley import LLM, SamplingParams
from galley.config.registries import DRAFT_HEADS
from galley.errors import ConfigError, ModelError
from galley.models.mtp import FAMILIES
from tests.equality.workload import answer, lose_engine
from tests.spec import heads
from tests.spec.heads import Guess

MOST, COUNT = 3, 8
Make = Callable[[torch.nn.Module, Path], tuple[Path, Guess]]
HEADS: dict[str, tuple[str, Make]] = {
    "medusa": ("medusa", lambda model, path: heads.medusa(model, path, own_names=False)),
    "medusa, its own names": ("medusa", lambda model, path: heads.medusa(model, path, True)),
    "mlp_speculator": ("mlp_speculator", lambda m, p: heads.mlp_speculator(m, p, tied=False)),
    "mlp_speculator, tied": ("mlp_speculator", lambda m, p: heads.mlp_speculator(m, p, True)),
    "eagle": ("eagle", lambda model, path: heads.eagle(model, path, own_embedding=False)),
    "eagle, its own embedding": ("eagle", lambda model, path: heads.eagle(model, path, True)),
    "eagle3": ("eagle3", lambda model, path: heads.eagle3(model, path, mapped=False)),
    "eagle3, part of the tokens": ("eagle3", lambda model, path: heads.eagle3(model, path, True)),
}


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return heads.llama()


@pytest.fixture(scope="module")
def folder(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heads.saved(model, tmp_path_factory.mktemp("model") / "checkpoint")


def engine(folder: Path, **flags: Any) -> LLM:
    flags = {"max_model_len": 192, "max_num_seqs": 5, "kv_cache_memory_bytes": 8 << 20, **flags}
    return LLM(model=str(folder), skip_tokenizer_init=True, dtype="float32", **flags)


def prompts() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, heads.VOCAB, n).tolist() for n in rng.integers(3, 60, COUNT)]


def answers(llm: LLM, params: SamplingParams) -> list[list[int]]:
    asked = [{"prompt_token_ids": p} for p in prompts()]
    return [list(o.outputs[0].token_ids) for o in llm.generate(asked, params, use_tqdm=False)]


def counted(llm: LLM) -> list[int]:
    """Accepted drafts by place, and all drafts."""
    found = llm.get_metrics()
    [places] = [m.values for m in found if m.name.endswith("accepted_tokens_per_pos")]
    drafted = [m.value for m in found if m.name == "vllm:spec_decode_num_draft_tokens"]
    return [*places, *drafted]


GREEDY = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)


def settings_of(method: str, path: Path | None) -> dict[str, Any]:
    settings = {"method": method, "num_speculative_tokens": MOST, "draft_length": "fixed"}
    return settings if path is None else {**settings, "model": str(path)}


def assert_like_reference(folder: Path, settings: dict[str, Any], guess: Guess) -> None:
    """Answers are those without drafts, and drafts are those that `guess` gives."""
    plain = answers(engine(folder), GREEDY)
    llm = engine(folder, speculative_config=settings)
    assert answers(llm, GREEDY) == plain
    expected = np.zeros(MOST + 1, int)
    for prompt, output in zip(prompts(), plain, strict=True):
        expected += heads.replay(guess, prompt + output, len(prompt), MOST)
    assert 0 < expected[:MOST].sum() < expected[MOST]
    assert counted(llm) == expected.tolist()


@pytest.mark.parametrize("name", HEADS)
def test_heads_with_a_checkpoint_of_their_own(
    name: str, model: torch.nn.Module, folder: Path, tmp_path: Path
) -> None:
    method, make = HEADS[name]
    path, guess = make(model, tmp_path / "drafter")
    assert_like_reference(folder, settings_of(method, path), guess)


@pytest.mark.parametrize("architecture", heads.MTP)
def test_mtp(architecture: str, tmp_path: Path) -> None:
    _, path, guess = heads.mtp(architecture, tmp_path / "checkpoint")
    assert set(heads.MTP) == set(FAMILIES)
    assert_like_reference(path, settings_of("mtp", None), guess)


def test_parallel_drafts_of_a_drafter_with_masks(
    model: torch.nn.Module, folder: Path, tmp_path: Path
) -> None:
    """The drafter is the model itself: its first draft is right, those behind masks hardly ever."""
    mask, path = heads.VOCAB - 1, heads.saved(model, tmp_path / "drafter")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "pard_token": mask}))

    def guess(tokens: list[int], most: int) -> list[int]:
        with torch.inference_mode():
            logits = model(torch.tensor([tokens + [mask] * (most - 1)])).logits[0]
        return logits[len(tokens) - 1 :].argmax(-1).tolist()[:most]

    settings = settings_of("draft_model", path)
    assert_like_reference(folder, settings, guess)
    plain = engine(folder, speculative_config={**settings, "parallel_drafting": False})
    answers(plain, GREEDY)
    assert counted(plain)[1] > 0, "one after another, all are right"
    with pytest.raises(ConfigError, match="has no pard_token"):
        engine(
            folder,
            speculative_config={**settings, "model": str(folder), "parallel_drafting": True},
        )


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_positions_wait_while_no_drafts_are_wanted(
    model: torch.nn.Module, folder: Path, tmp_path: Path, method: str
) -> None:
    """Drafts are wanted at every seventh step: they are those of heads that ran at each step."""
    path, guess = HEADS[method][1](model, tmp_path / "drafter")
    llm = engine(folder, speculative_config=settings_of(method, path))
    speculator = llm._core.executor._runner._speculator  # type: ignore[attr-defined]
    proposer, counts = speculator._proposer, Counter[str]()
    propose, compute = proposer.propose, proposer._compute

    def now_and_then(table: Any, slots: Any, most: Any) -> Any:
        counts["steps"] += 1
        drafts = propose(table, slots, most if counts["steps"] % 7 == 0 else 0 * most)
        for slot, count, ids in zip(slots, drafts.counts, drafts.ids, strict=True):
            known = table.token_ids[slot, : table.num_tokens[slot]].tolist()
            if count:
                assert ids[:count].tolist() == guess(known, count)
            counts["drafts"] += count
        return drafts

    def counting(asked: Any) -> Any:
        counts["passes"] += 1
        return compute(asked)

    proposer.propose, proposer._compute = now_and_then, counting
    assert answers(llm, GREEDY) == answers(engine(folder), GREEDY)
    assert counts["drafts"] > 30
    assert counts["passes"] < counts["steps"] / 2


@pytest.fixture(scope="module")
def drafters(
    model: torch.nn.Module, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """A drafter of each method for `folder`."""
    home = tmp_path_factory.mktemp("drafters")
    chosen = ("medusa", "mlp_speculator", "eagle", "eagle3")
    return {
        method: settings_of(method, HEADS[method][1](model, home / method)[0]) for method in chosen
    }


def mixed() -> list[SamplingParams]:
    """Requests that differ in everything, and end by stop tokens in the middle of drafts."""
    return [
        SamplingParams(
            n=1 + i % 2,
            temperature=(0.0, 0.7, 1.0)[i % 3],
            seed=i,
            max_tokens=30 + i,
            logprobs=2 if i % 2 else None,
            repetition_penalty=1.2 if i == 3 else 1.0,
            frequency_penalty=0.4 if i == 4 else 0.0,
            min_tokens=8 if i in (2, 5) else 0,
            stop_token_ids=[int(i), 7 * i % heads.VOCAB],
            speculative=i != 6,
        )
        for i in range(COUNT)
    ]


def enqueue(llm: LLM) -> None:
    llm.enqueue([{"prompt_token_ids": p} for p in prompts()], mixed())


def everything(llm: LLM) -> list[Any]:
    enqueue(llm)
    return [answer(o) for o in llm.wait_for_completion(use_tqdm=False)]


@pytest.fixture(scope="module")
def plain(folder: Path) -> list[Any]:
    return everything(engine(folder))


@pytest.mark.parametrize("method", sorted(DRAFT_HEADS))
def test_answers_under_preemption_in_chunks_from_the_cache_and_after_a_loss(
    plain: list[Any],
    folder: Path,
    drafters: dict[str, dict[str, Any]],
    method: str,
    tmp_path: Path,
) -> None:
    settings = drafters.get(method, settings_of(method, None))
    if method == "mtp":
        _, folder, _ = heads.mtp("MiMoForCausalLM", tmp_path / "checkpoint")
        plain = everything(engine(folder))
    flags = {
        "speculative_config": settings,
        "num_gpu_blocks_override": 17,
        "max_num_batched_tokens": 32,
        "distributed_executor_backend": "loopback",
    }
    llm, other = engine(folder, **flags), engine(folder, **flags)
    assert everything(llm) == plain
    assert everything(llm) == plain, "from the prefix cache"
    enqueue(llm)
    lose_engine(llm, other)
    assert [answer(o) for o in llm.wait_for_completion(use_tqdm=False)] == plain
    for core in (llm._core, other._core):
        assert core.counters.num_preemptions > 0
        counts = core.scheduler.draft_counts
        assert counts.num_accepted > 0
        assert counts.num_rejected > 0
        core.check_integrity()


def test_adaptive_drafts_before_and_after_sleep(
    plain: list[Any], folder: Path, drafters: dict[str, dict[str, Any]]
) -> None:
    """Where drafts do not pay none are sampled, and the layer's cache is kept up."""
    llm = engine(folder, speculative_config={**drafters["eagle"], "draft_length": "adaptive"})
    assert everything(llm) == plain
    llm.sleep(level=2)
    llm.wake_up()
    assert everything(llm) == plain


def test_the_method_is_found_by_name_and_config(
    folder: Path, drafters: dict[str, dict[str, Any]]
) -> None:
    for method in ("medusa", "mlp_speculator", "eagle3"):
        named = {k: v for k, v in drafters[method].items() if k != "method"}
        llm = engine(folder, speculative_config=named)
        answers(llm, GREEDY)
        assert sum(counted(llm)) > 0


def test_what_does_not_fit_is_refused(
    folder: Path, drafters: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="heads for 3 drafts"):
        engine(folder, speculative_config={**drafters["medusa"], "num_speculative_tokens": 4})
    with pytest.raises(ModelError, match="MTP heads of LlamaForCausalLM"):
        engine(folder, speculative_config={"method": "mtp"})
    with pytest.raises(ConfigError, match="backend cpu"):
        engine(folder, speculative_config=drafters["medusa"], backend="reference")
    with pytest.raises(ConfigError, match="model is the module"):
        engine(folder, speculative_config={"method": "eagle"})
    other = heads.saved(heads.llama(vocab_size=heads.VOCAB + 3), tmp_path / "other")
    with pytest.raises(ModelError, match="has shape"):
        engine(other, speculative_config=drafters["medusa"])
