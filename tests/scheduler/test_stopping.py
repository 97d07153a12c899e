"""How requests end: behaviours 13 to 17, errors, and replays of what was already produced."""

from __future__ import annotations

import pytest

from galley.request import Failure, FinishReason
from galley.scheduler import end_rules
from galley.scheduler.end_rules import Ending
from tests.scheduler.fakes import (
    Collected,
    assert_all_free,
    expected,
    make_core,
    request,
    run,
    step,
)

EOS = 7


def ended(core, handle: int = 1) -> tuple[list[int], FinishReason, int | None]:
    got = run(core)
    assert_all_free(core)
    end = got.ends[handle]
    return got.tokens.get(handle, []), FinishReason(end.reason), end.stop_reason


def scripted(tokens: list[int], max_model_len: int = 64, drafts: str = "none"):
    core = make_core(max_model_len=max_model_len, drafts=drafts)
    core.executor.scripted[1] = tokens
    return core


def test_13_eos_ends_with_stop_and_no_stop_reason() -> None:
    core = scripted([1, 2, EOS, 3])
    core.add([request(1, [5], max_tokens=9, eos=[EOS, 8])])
    assert ended(core) == ([1, 2, EOS], FinishReason.STOP, None)


def test_13_a_stop_token_is_the_stop_reason() -> None:
    core = scripted([1, 2, 9, 3])
    core.add([request(1, [5], max_tokens=9, eos=[EOS], stop_token_ids=[11, 9])])
    assert ended(core) == ([1, 2, 9], FinishReason.STOP, 9)


def test_13_max_tokens_ends_with_length() -> None:
    core = scripted([1, 2, 3, 4])
    core.add([request(1, [5], max_tokens=3, eos=[EOS])])
    assert ended(core) == ([1, 2, 3], FinishReason.LENGTH, None)


def test_13_max_model_len_ends_with_length() -> None:
    core = scripted([], max_model_len=64)
    core.add([request(1, [5] * 60, max_tokens=50)])
    assert ended(core) == (expected([5] * 60, 4), FinishReason.LENGTH, None)


def test_13_a_stop_at_the_limit_is_a_stop() -> None:
    core = scripted([1, 2, EOS])
    core.add([request(1, [5], max_tokens=3, eos=[EOS])])
    assert ended(core) == ([1, 2, EOS], FinishReason.STOP, None)


def test_14_ignore_eos_suppresses_eos_but_not_stop_ids() -> None:
    core = scripted([EOS, 1, 9, 2])
    core.add([request(1, [5], max_tokens=9, eos=[EOS], stop_token_ids=[9], ignore_eos=True)])
    assert ended(core) == ([EOS, 1, 9], FinishReason.STOP, 9)
    core = scripted([1, EOS, 2])
    core.add([request(1, [5], max_tokens=9, eos=[EOS], stop_token_ids=[EOS], ignore_eos=True)])
    assert ended(core) == ([1, EOS], FinishReason.STOP, EOS)


def test_15_a_stop_sampled_before_min_tokens_does_stop() -> None:
    core = scripted([1, EOS, 2])
    core.add([request(1, [5], max_tokens=9, min_tokens=5, eos=[EOS])])
    assert ended(core) == ([1, EOS], FinishReason.STOP, None)


def test_16_a_length_cap_wins_over_an_unmet_min_tokens() -> None:
    core = scripted([], max_model_len=16)
    core.add([request(1, [5] * 10, max_tokens=50, min_tokens=40)])
    tokens, reason, _ = ended(core)
    assert (len(tokens), reason) == (6, FinishReason.LENGTH)


@pytest.mark.parametrize("stop", [EOS, 9])
def test_17_tokens_after_the_stop_are_dropped(stop: int) -> None:
    core = scripted([1, 2, 3, stop, 4, 5, 6], drafts="right")
    core.add([request(1, [5], max_tokens=20, eos=[EOS], stop_token_ids=[9], logprobs=0)])
    core.add([request(2, [6], max_tokens=7, logprobs=0)])
    got = run(core)
    assert got.tokens[1] == [1, 2, 3, stop]
    assert got.tokens[2] == expected([6], 7)
    assert got.logprob_positions == {1: [1, 2, 3, 4], 2: [1, 2, 3, 4, 5, 6, 7]}
    assert got.ends[2].reason == FinishReason.LENGTH
    assert_all_free(core)


def test_more_stop_ids_than_columns() -> None:
    many = list(range(100, 140))
    core = scripted([1, 2, 139, 3])
    core.executor.scripted[2] = [1, 2, 3, EOS]
    core.add([request(1, [5], max_tokens=9, eos=[EOS], stop_token_ids=many)])
    core.add([request(2, [5], max_tokens=9, eos=[EOS], stop_token_ids=many)])
    core.add([request(3, [5], max_tokens=4, stop_token_ids=many)])
    got = run(core)
    assert got.tokens[1] == [1, 2, 139]
    assert got.ends[1].stop_reason == 139
    assert got.tokens[2] == [1, 2, 3, EOS]
    assert got.ends[3].reason == FinishReason.LENGTH
    assert_all_free(core)


def test_a_stop_id_of_a_former_occupant_of_the_slot_does_not_stop() -> None:
    core = make_core(max_num_seqs=1)
    core.executor.scripted = {1: [9], 2: [9, 9, 1]}
    core.add([request(1, [5], stop_token_ids=[9]), request(2, [5], max_tokens=3)])
    got = run(core)
    assert got.tokens == {1: [9], 2: [9, 9, 1]}


def test_an_error_of_one_row_ends_that_request_alone() -> None:
    core = make_core()
    core.add(request(h, [h] * 20, max_tokens=6, logprobs=0) for h in (1, 2, 3))
    got = Collected()
    step(core, got)
    core.executor.failing[2] = "the kernel gave NaN"
    run(core, got)
    assert got.ends[2].reason == FinishReason.ERROR
    assert got.ends[2].error == Failure("the kernel gave NaN")
    assert len(got.tokens[2]) == 1
    for h in (1, 3):
        assert got.tokens[h] == expected([h] * 20, 6)
        assert got.ends[h].reason == FinishReason.LENGTH
        assert got.logprob_positions[h] == list(range(20, 26))
    assert_all_free(core)


def test_an_error_in_the_middle_of_a_prompt() -> None:
    core = make_core(budget=16)
    core.executor.failing[1] = "poison"
    core.add([request(1, [1] * 100), request(2, [2] * 10)])
    got = run(core)
    assert got.ends[1].error == Failure("poison")
    assert got.tokens == {2: expected([2] * 10, 4)}
    assert_all_free(core)


@pytest.mark.parametrize("aborted", [[1], [2], [1, 2, 3]])
def test_an_abort_while_the_device_works_drops_the_token(aborted: list[int]) -> None:
    core = make_core(budget=32)
    core.add([request(1, [1] * 20), request(2, [2] * 100, max_tokens=4), request(3, [3])])
    got = Collected()
    step(core, got)
    core.while_waiting = lambda: core.abort(aborted)
    step(core, got)
    core.while_waiting = None
    for h in aborted:
        assert got.ends[h].reason == FinishReason.ABORT
        assert len(got.tokens.get(h, [])) == (1 if h == 1 else 0)
    run(core, got)
    for h in {1, 2, 3} - set(aborted):
        prompt = {1: [1] * 20, 2: [2] * 100, 3: [3]}[h]
        assert got.tokens[h] == expected(prompt, 4)
    assert_all_free(core)


def test_an_arrival_while_the_device_works_runs_in_the_next_step() -> None:
    core = make_core()
    core.add([request(1, [1] * 20)])
    core.while_waiting = lambda: core.add([request(2, [2] * 20)])
    got = Collected()
    step(core, got)
    core.while_waiting = None
    assert 2 not in got.started
    step(core, got)
    assert 2 in got.started
    run(core, got)


@pytest.mark.parametrize("done", [1, 15, 16, 17, 39])
def test_a_replay_goes_on_where_it_was(done: int) -> None:
    prompt = [3] * 20
    full = expected(prompt, 40)
    core = make_core(budget=16)
    core.add([request(1, prompt, max_tokens=40, output=full[:done], prompt_logprobs=0)])
    got = run(core)
    assert got.tokens[1] == full[done:]
    assert got.prompt_positions == {}, "they were reported before the first token"
    assert_all_free(core)


@pytest.mark.parametrize(
    ("output", "reason", "stop"),
    [
        ([1, 2, 3, 4], FinishReason.LENGTH, None),
        ([1, EOS], FinishReason.STOP, None),
        ([1, 9], FinishReason.STOP, 9),
    ],
)
def test_a_replay_that_was_complete_ends_at_once(output, reason, stop) -> None:
    core = make_core()
    core.add([request(1, [5], max_tokens=4, output=output, eos=[EOS], stop_token_ids=[9])])
    assert ended(core) == ([], reason, stop)
    assert core.trace.last == 0


class EndsAfter:
    """An end rule of a later feature."""

    def ending(self, token_ids, num_prompt):
        if token_ids[-1] == 3:
            return Ending(FinishReason.STOP, "three")
        return None


@pytest.mark.parametrize("drafts", ["none", "right"])
def test_a_rule_is_one_line_in_the_set(monkeypatch, drafts: str) -> None:
    rules = (*end_rules.END_RULES, lambda request, _: EndsAfter() if request.handle == 1 else None)
    monkeypatch.setattr(end_rules, "END_RULES", rules)
    core = scripted([1, 2, 3, 4], drafts=drafts)
    core.executor.scripted[2] = [1, 2, 3, 4]
    core.add([request(1, [5], max_tokens=9), request(2, [5], max_tokens=4)])
    got = run(core)
    assert (got.tokens[1], got.ends[1].stop_reason) == ([1, 2, 3], "three")
    assert got.tokens[2] == [1, 2, 3, 4]
    assert_all_free(core)
