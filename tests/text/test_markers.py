"""Markers in answers, however tokens spell them."""

from __future__ import annotations

import random
from functools import lru_cache

import pytest

from galley.request import MarkerTable
from galley.text.markers import marker_of
from tests.server.served import tokenizer

MARKERS = ["</think>", "aabaab", "Here is my response:", "<|channel|>final<|message|>"]


@lru_cache
def table(text: str) -> MarkerTable:
    return marker_of(tokenizer(), text).table()


@lru_cache
def pieces() -> dict[bytes, int]:
    words = tokenizer()
    return {words.token_bytes(i): i for i in range(words.vocab_size) if words.token_bytes(i)}


def spelling(text: bytes, rng: random.Random) -> list[bytes]:
    """Tokens of a text, chosen at random."""
    found = []
    while text:
        sizes = [n for n in range(1, 12) if text[:n] in pieces()]
        size = rng.choice(sizes)
        found.append(text[:size])
        text = text[size:]
    return found


@pytest.mark.parametrize("text", MARKERS)
def test_a_marker_is_found_in_every_spelling(text: str) -> None:
    marker = text.encode()
    noise = [marker[:4], marker[2:], marker[:-1], b" ", b"\n", b"x.", b"aab", b"<", "é".encode()]
    for seed in range(200):
        rng = random.Random(seed)
        before = b"".join(rng.choices(noise, k=rng.randrange(6)))
        words = spelling(before + marker + rng.choice([b"", b"\n\n{", b"ok"]), rng)
        state, read, at = 0, b"", table(text)
        for word in words:
            state = at.step(state, pieces()[word])
            known = len(read)
            read += word
            place = read.find(marker)
            assert (state >= at.size) == (place >= 0)
            if place >= 0:
                assert (state > at.size) == (place + len(marker) < len(read))
                assert (pieces()[word] in at.overruns(0)) <= (state > at.size)
                assert known < place + len(marker)
                break
        else:
            raise AssertionError("not found")


def test_a_marker_that_is_a_token_is_that_token() -> None:
    [token_id] = tokenizer().encode("<|im_end|>", False)
    marker = marker_of(tokenizer(), "<|im_end|>")
    assert (marker.ids, marker.size) == ((token_id,), 1)
    assert marker.table().step(0, token_id) == 1
    assert marker.table().step(0, token_id + 1) == 0
