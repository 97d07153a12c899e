"""Stop strings wherever the pieces of a text are cut."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galley.text.stop import StopMatcher


def _run(stops: list[str], pieces: list[str], include: bool = False) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include)
    shown = "".join(matcher.push(piece) for piece in pieces)
    return shown + matcher.finish(), matcher.matched


def _definition(stops: list[str], text: str, include: bool) -> tuple[str, str | None]:
    """Character by character: the first stop string that the text so far ends with."""
    for end in range(1, len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


#: Few letters, so that stop strings, their prefixes and overlaps are common.
letters = st.text(alphabet="ab\n", max_size=12)


@given(
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=3),
    pieces=st.lists(letters, max_size=8),
    include=st.booleans(),
)
def test_the_result_depends_on_the_text_and_not_on_its_pieces(
    stops: list[str], pieces: list[str], include: bool
) -> None:
    assert _run(stops, pieces, include) == _definition(stops, "".join(pieces), include)


@given(
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
    pieces=st.lists(letters, max_size=8),
)
def test_shown_is_all_but_the_longest_suffix_that_may_become_a_stop(
    stops: list[str], pieces: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown = text = ""
    for piece in pieces:
        shown += matcher.push(piece)
        text += piece
        if matcher.matched is not None:
            return
        held = text[len(shown) :]
        assert text == shown + held
        prefixes = {stop[:n] for stop in stops for n in range(1, len(stop))}
        longest = max((n for n in range(1, len(text) + 1) if text[-n:] in prefixes), default=0)
        assert len(held) == longest


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.push("text EN") == "text "
    assert matcher.push("D and more") == ""
    assert matcher.matched == "END"
    assert matcher.push("even more") == ""
    assert matcher.finish() == ""


@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (["b", "ab"], "xab", "xa", "b"),
        (["ab", "b"], "xab", "x", "ab"),
        (["abcd", "bc"], "xabcd", "xa", "bc"),
        (["\n\nUser:"], "hi\n\nUser", "hi\n\nUser", None),
        (["。"], "好。了", "好", "。"),
        (["aab"], "aaab", "a", "aab"),
    ],
)
def test_which_stop_wins(stops: list[str], text: str, shown: str, matched: str | None) -> None:
    assert _run(stops, [text]) == (shown, matched)
    assert _run(stops, list(text)) == (shown, matched)


def test_a_stop_that_ends_before_the_guard_falls_does_not_count() -> None:
    matcher = StopMatcher(["ab"])
    assert matcher.push("xab", armed=False) == "xab"
    assert matcher.push("a", armed=False) == ""
    assert matcher.push("b") == ""
    assert matcher.matched == "ab"


def test_a_stop_inside_what_was_held_before_does_not_count_later() -> None:
    matcher = StopMatcher(["b", "abcd"])
    assert matcher.push("ab", armed=False) == ""
    assert matcher.push("x") == "abx"
    assert matcher.matched is None


def test_a_very_long_stop_string_costs_little() -> None:
    start = time.process_time()
    matcher = StopMatcher(["ab" * 100_000])
    shown = "".join(matcher.push("ab") for _ in range(2000)) + matcher.finish()
    assert shown == "ab" * 2000
    assert time.process_time() - start < 5
