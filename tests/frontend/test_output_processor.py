"""Columns become outputs: deltas, stop strings, logprobs, several answers, one end each."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from galley.errors import GalleyError, InvalidRequest, Overloaded, RequestFailed
from galley.frontend.input_processor import InputProcessor, Limits
from galley.frontend.output_processor import OutputProcessor, RequestState
from galley.messages import Finished, Logprobs, Outputs, Started
from galley.outputs import Logprob
from galley.request import (
    Failure,
    FailureKind,
    FinishReason,
    Request,
    RequestOutputKind,
    SamplingParams,
)
from tests.frontend.scripted import LetterTokenizer

DELTA, FINAL = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


class Recorder:
    """An observer that records its notifications."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def ready(self, message: Any) -> None:
        self.events.append(("ready",))

    def added(self, request: Request, index: int, n: int) -> None:
        self.events.append(("added", request.handle, index, n))

    def outputs(self, message: Any) -> None:
        self.events.append(("outputs", message.step))

    def finished(self, handle: int, reason: FinishReason, num_tokens: int) -> None:
        self.events.append(("finished", handle, reason, num_tokens))


class Bench:
    """An output processor with one way to add requests and one to deliver steps."""

    def __init__(self) -> None:
        self.inputs = InputProcessor(Limits(128, 1000), LetterTokenizer())
        self.recorder = Recorder()
        self.outputs = OutputProcessor(LetterTokenizer(), self.recorder)
        self.step = 0

    def add(self, prompt: str = "ab", **params: Any) -> RequestState:
        submission = self.inputs.process(prompt, SamplingParams(**params), "r")
        return self.outputs.add(submission)

    def deliver(self, tokens: dict[int, str], **parts: Any) -> list[int]:
        """One step: handle → the letters that it produced."""
        self.step += 1
        counts = [len(t) for t in tokens.values()]
        return self.outputs.process(
            Outputs(
                step=self.step,
                epoch=1,
                engine_index=0,
                timestamp=float(self.step),
                handles=array("q", tokens).tobytes(),
                counts=b"" if set(counts) <= {1} else array("i", counts).tobytes(),
                token_ids=array("i", [ord(c) for t in tokens.values() for c in t]).tobytes(),
                **parts,
            )
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def handle(state: RequestState, i: int = 0) -> int:
    return state.sequences[i].request.handle


def end(h: int, reason: FinishReason, stop: int | None = None, error: Failure | None = None) -> Any:
    return [Finished(h, reason, stop, error)]


def test_deltas_add_up_and_the_last_one_is_finished(bench: Bench) -> None:
    state = bench.add(output_kind=DELTA)
    h = handle(state)
    texts, ids = [], []
    for letters, parts in (("x", {}), ("yz", {}), ("!", {"finished": end(h, FinishReason.LENGTH)})):
        bench.deliver({h: letters}, **parts)
        output = state.take()
        assert output is not None
        texts.append(output.outputs[0].text)
        ids.append(output.outputs[0].token_ids)
    assert texts == ["x", "yz", "!"]
    assert ids == [[120], [121, 122], [33]]
    assert output.finished
    assert output.outputs[0].finish_reason == "length"
    assert output.prompt == "ab"
    assert output.prompt_token_ids == [97, 98]
    assert not bench.outputs.sequences


def test_a_late_reader_gets_the_deltas_merged(bench: Bench) -> None:
    state = bench.add(output_kind=DELTA)
    for letter in "abcdef":
        bench.deliver({handle(state): letter})
    output = state.take()
    assert output is not None
    assert output.outputs[0].text == "abcdef"
    assert output.outputs[0].token_ids == list(b"abcdef")
    assert state.take() is None


def test_cumulative_outputs_repeat_what_was_said(bench: Bench) -> None:
    state = bench.add()
    seen = []
    for letter in "abc":
        bench.deliver({handle(state): letter})
        output = state.take()
        assert output is not None
        seen.append((output.outputs[0].text, output.outputs[0].token_ids))
    assert seen == [("a", [97]), ("ab", [97, 98]), ("abc", [97, 98, 99])]


def test_final_only_wakes_its_reader_once(bench: Bench) -> None:
    state = bench.add(output_kind=FINAL)
    wakes: list[int] = []
    state.notify = lambda: wakes.append(bench.step)
    for letter in "abc":
        bench.deliver({handle(state): letter})
        assert state.take() is None
    bench.deliver({handle(state): "d"}, finished=end(handle(state), FinishReason.LENGTH))
    assert wakes == [4]
    output = state.take()
    assert output is not None
    assert output.outputs[0].text == "abcd"


def test_a_reader_is_woken_once_for_updates_that_it_has_not_taken(bench: Bench) -> None:
    state = bench.add(output_kind=DELTA)
    wakes: list[int] = []
    state.notify = lambda: wakes.append(bench.step)
    for letter in "abc":
        bench.deliver({handle(state): letter})
    state.take()
    bench.deliver({handle(state): "d"})
    assert wakes == [1, 4]


@pytest.mark.parametrize(("include", "text"), [(False, "he"), (True, "hello")])
def test_a_stop_string_across_tokens_ends_here_and_in_the_engine(
    bench: Bench, include: bool, text: str
) -> None:
    state = bench.add(stop=["llo"], include_stop_str_in_output=include, output_kind=DELTA)
    h = handle(state)
    pieces, aborts = [], []
    for letter in "hello":
        aborts += bench.deliver({h: letter})
        output = state.take()
        assert output is not None
        pieces.append(output.outputs[0].text)
    assert "".join(pieces) == text
    assert aborts == [h]
    assert output.finished
    assert output.outputs[0].finish_reason == "stop"
    assert output.outputs[0].stop_reason == "llo"
    assert bench.deliver({h: "x"}) == []


def test_tokens_after_a_stop_string_in_one_step_are_dropped(bench: Bench) -> None:
    state = bench.add(stop="bc", logprobs=0)
    h = handle(state)
    columns = logprob_columns(h, 2, "abcde")
    assert bench.deliver({h: "abcde"}, logprobs=columns) == [h]
    output = state.take()
    assert output is not None
    (answer,) = output.outputs
    assert (answer.text, answer.token_ids) == ("a", [97, 98, 99])
    assert [list(entry) for entry in answer.logprobs or []] == [[97], [98], [99]]
    assert answer.cumulative_logprob == pytest.approx(-1.5)


def test_text_held_back_for_a_stop_string_is_output_at_the_end(bench: Bench) -> None:
    state = bench.add(stop=["xyz"], output_kind=DELTA)
    h = handle(state)
    bench.deliver({h: "a"})
    bench.deliver({h: "x"})
    output = state.take()
    assert output is not None
    assert output.outputs[0].text == "a"
    bench.deliver({h: "y"}, finished=end(h, FinishReason.LENGTH))
    output = state.take()
    assert output is not None
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("xy", "length")


@pytest.mark.parametrize(("include", "text"), [(False, "a"), (True, "a.")])
def test_a_stop_token_is_kept_out_of_the_text(bench: Bench, include: bool, text: str) -> None:
    state = bench.add(stop_token_ids=[46], include_stop_str_in_output=include)
    h = handle(state)
    bench.deliver({h: "a"})
    assert bench.deliver({h: "."}, finished=end(h, FinishReason.STOP, 46)) == []
    output = state.take()
    assert output is not None
    (answer,) = output.outputs
    assert (answer.text, answer.token_ids) == (text, [97, 46])
    assert (answer.finish_reason, answer.stop_reason) == ("stop", 46)


def test_a_stop_string_in_the_last_token_wins_over_the_length(bench: Bench) -> None:
    state = bench.add(stop=["b"])
    h = handle(state)
    assert bench.deliver({h: "b"}, finished=end(h, FinishReason.LENGTH)) == []
    output = state.take()
    assert output is not None
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", "b")


def logprob_columns(h: int, first: int, letters: str, top: int = 0) -> Logprobs:
    """Each letter at logprob -0.5 and rank 2, then `top` others of growing id at -1, -2 …"""
    n = len(letters)
    ids: list[int] = []
    values: list[float] = []
    for letter in letters:
        ids += [ord(letter), *range(50, 50 + top)]
        values += [-0.5, *(-1.0 - k for k in range(top))]
    return Logprobs(
        handles=array("q", [h] * n).tobytes(),
        positions=array("i", range(first, first + n)).tobytes(),
        ranks=array("i", [2] * n).tobytes(),
        indptr=array("i", range(0, n * (top + 1) + 1, top + 1)).tobytes(),
        token_ids=array("i", ids).tobytes(),
        logprobs=array("f", values).tobytes(),
    )


def test_logprobs_name_the_token_first_then_the_top(bench: Bench) -> None:
    state = bench.add(logprobs=2)
    h = handle(state)
    bench.deliver({h: "z"}, logprobs=logprob_columns(h, 2, "z", top=2))
    output = state.take()
    assert output is not None
    (entry,) = output.outputs[0].logprobs or []
    assert [(t, p.logprob, p.rank, p.decoded_token) for t, p in entry.items()] == [
        (122, -0.5, 2, "z"),
        (50, -1.0, 1, "2"),
        (51, -2.0, 2, "3"),
    ]
    assert output.outputs[0].cumulative_logprob == -0.5


def test_prompt_logprobs_arrive_in_chunks_and_the_first_position_has_none(bench: Bench) -> None:
    state = bench.add("abcd", prompt_logprobs=0)
    h = handle(state)
    bench.deliver({}, prompt_logprobs=logprob_columns(h, 1, "b"))
    # A chunk that was computed again, after a preemption, says the same again.
    bench.deliver({}, prompt_logprobs=logprob_columns(h, 1, "bcd"))
    bench.deliver({h: "e"})
    output = state.take()
    assert output is not None
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert [list(e or ()) for e in output.prompt_logprobs[1:]] == [[98], [99], [100]]


def test_several_answers_end_as_one(bench: Bench) -> None:
    state = bench.add(n=2, output_kind=FINAL)
    first, second = handle(state, 0), handle(state, 1)
    bench.deliver({first: "a", second: "x"}, finished=end(second, FinishReason.LENGTH))
    assert state.take() is None
    bench.deliver({first: "b"}, finished=end(first, FinishReason.LENGTH))
    output = state.take()
    assert output is not None
    assert output.finished
    assert [(o.index, o.text) for o in output.outputs] == [(0, "ab"), (1, "x")]


def test_a_delta_has_only_the_answers_with_updates(bench: Bench) -> None:
    state = bench.add(n=3, output_kind=DELTA)
    bench.deliver({handle(state, 2): "a", handle(state, 0): "b"})
    output = state.take()
    assert output is not None
    assert [o.index for o in output.outputs] == [0, 2]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (FailureKind.ENGINE, RequestFailed),
        (FailureKind.REQUEST, InvalidRequest),
        (FailureKind.LOAD, Overloaded),
    ],
)
def test_one_failed_answer_fails_the_request_and_frees_its_siblings(
    bench: Bench, kind: FailureKind, error: type[GalleyError]
) -> None:
    state = bench.add(n=3)
    failure = Failure("no room", kind, "prompt")
    failed = end(handle(state, 1), FinishReason.ERROR, error=failure)
    assert bench.deliver({}, finished=failed) == [handle(state, 0), handle(state, 2)]
    with pytest.raises(error, match="no room") as caught:
        state.take()
    assert caught.value.field == "prompt"
    assert not bench.outputs.sequences


def test_an_aborted_answer_shows_the_text_that_was_held_back(bench: Bench) -> None:
    """The beginning of a stop string that will not be completed any more."""
    state = bench.add(output_kind=DELTA, stop=["xyz"])
    bench.deliver({handle(state): "a"})
    bench.deliver({handle(state): "x"})
    bench.deliver({handle(state): "y"})
    assert state.take().outputs[0].text == "a"
    assert bench.outputs.drop(state) == [handle(state)]
    output = state.take()
    assert output is not None
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("xy", "abort")


def test_a_dropped_request_leaves_nothing_behind(bench: Bench) -> None:
    state = bench.add(n=2)
    assert bench.outputs.drop(state) == [handle(state, 0), handle(state, 1)]
    assert not bench.outputs.sequences
    assert bench.outputs.drop(state) == []
    assert bench.deliver({handle(state, 0): "a"}) == []
    output = state.take()
    assert output is not None
    assert [o.finish_reason for o in output.outputs] == ["abort", "abort"]


def test_admission_is_noted_once_and_preemptions_are_counted(bench: Bench) -> None:
    state = bench.add()
    h = handle(state)
    bench.deliver({h: "a"}, started=[Started(h, 16, 1.0, 2.0)])
    bench.deliver({h: "b"}, started=[Started(h, 32, 3.0, 4.0, resumed=True)])
    # What a new engine says of a replayed request is not what happened first.
    bench.deliver({h: "c"}, started=[Started(h, 48, 5.0, 6.0)])
    output = state.take()
    assert output is not None
    assert output.num_cached_tokens == 16
    metrics = output.metrics
    assert metrics is not None
    assert (metrics.queued_time, metrics.scheduled_time) == (1.0, 2.0)
    assert (metrics.first_token_time, metrics.last_token_time) == (1.0, 3.0)
    assert metrics.num_preemptions == 1


def test_the_observer_is_notified_of_each_sequence_once(bench: Bench) -> None:
    done, dropped = bench.add(), bench.add(n=2)
    bench.deliver({handle(done): "a"}, finished=end(handle(done), FinishReason.LENGTH))
    bench.outputs.drop(dropped)
    assert bench.recorder.events == [
        ("added", handle(done), 0, 1),
        ("added", handle(dropped, 0), 0, 2),
        ("added", handle(dropped, 1), 1, 2),
        ("outputs", 1),
        ("finished", handle(done), FinishReason.LENGTH, 1),
        ("finished", handle(dropped, 0), FinishReason.ABORT, 0),
        ("finished", handle(dropped, 1), FinishReason.ABORT, 0),
    ]


def test_without_text_there_are_only_tokens(bench: Bench) -> None:
    state = bench.add(detokenize=False)
    bench.deliver({handle(state): "a"})
    output = state.take()
    assert output is not None
    assert (output.outputs[0].text, output.outputs[0].token_ids) == ("", [97])


class Glass:
    """A tap that holds what came; `full`: nothing more goes in."""

    def __init__(self) -> None:
        self.text = ""
        self.full = False

    def write(self, text: str) -> bool:
        if self.full:
            return False
        self.text += text
        return True


def test_a_tap_receives_the_text(bench: Bench) -> None:
    state, glass, told = bench.add(output_kind=DELTA, stop=["END"]), Glass(), []
    state.notify = lambda: told.append(1)
    h = handle(state)
    bench.deliver({h: "x"})
    state.set_tap(glass)
    bench.deliver({h: "y"})
    assert glass.text == "", "what came before must be taken first"
    first = state.take()
    assert first is not None
    assert first.outputs[0].text == "xy"
    state.set_tap(glass)
    told.clear()
    bench.deliver({h: "z"})
    bench.deliver({h: "uv"})
    bench.deliver({h: "E"})
    assert glass.text == "zuv", "a stop string may have begun"
    assert state.take() is None
    assert not told
    bench.deliver({h: "N"})
    bench.deliver({h: "D"})
    output = state.take()
    assert output is not None
    assert told
    assert output.finished
    [last] = output.outputs
    assert (last.text, last.stop_reason) == ("", "END")
    assert bytes(last.token_ids) == b"zuvEND", "the end tells of all tokens since the last output"
    assert output.metrics is not None
    assert output.metrics.last_token_time == 7.0


def test_a_tap_that_refuses_is_removed(bench: Bench) -> None:
    state, glass, told = bench.add(output_kind=DELTA), Glass(), []
    state.notify = lambda: told.append(1)
    h = handle(state)
    state.set_tap(glass)
    bench.deliver({h: "a"})
    glass.full = True
    bench.deliver({h: "b"})
    assert told
    glass.full = False
    bench.deliver({h: "c"})
    output = state.take()
    assert output is not None
    assert (glass.text, output.outputs[0].text) == ("a", "bc")
    state.set_tap(glass)
    bench.deliver({h: "d"})
    state.set_tap(None)
    bench.deliver({h: "e"})
    output = state.take()
    assert output is not None
    assert (glass.text, output.outputs[0].text) == ("ad", "e")


def test_the_last_text_is_output_with_the_end(bench: Bench) -> None:
    state, other, glass = bench.add(output_kind=DELTA), bench.add(output_kind=DELTA), Glass()
    state.set_tap(glass)
    other.set_tap(tap := Glass())
    h = handle(state)
    bench.deliver({h: "a", handle(other): "x"})
    bench.deliver({h: "b", handle(other): "y"}, finished=end(h, FinishReason.LENGTH))
    output = state.take()
    assert output is not None
    assert (glass.text, output.outputs[0].text, output.finished) == ("a", "b", True)
    assert tap.text == "xy", "others go on as they were"


@pytest.mark.parametrize(
    "params",
    [
        {"output_kind": FINAL},
        {"output_kind": DELTA, "n": 2},
        {"output_kind": DELTA, "logprobs": 1},
        {"output_kind": DELTA, "prompt_logprobs": 1},
    ],
)
def test_requests_for_more_than_text_use_no_tap(bench: Bench, params: dict[str, Any]) -> None:
    state = bench.add(**params)
    for sequence in state.sequences:
        if sequence.logprobs is not None:
            sequence.logprobs.append({ord("x"): Logprob(-1.0)})
    state.set_tap(glass := Glass())
    bench.deliver({handle(state): "x"})
    assert glass.text == ""


def test_a_stop_string_in_the_steady_state_ends_the_request_in_the_engine(bench: Bench) -> None:
    state, other = bench.add(output_kind=DELTA, stop=["ab"]), bench.add(output_kind=DELTA)
    assert bench.deliver({handle(state): "a", handle(other): "a", 99: "q"}) == []
    assert bench.deliver({handle(state): "b", handle(other): "b"}) == [handle(state)]
    assert state.ended
    assert not other.ended
    output = other.take()
    assert output is not None
    assert output.outputs[0].text == "ab"
