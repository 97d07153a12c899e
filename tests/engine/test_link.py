"""Frames: what is lost or damaged is noticed, whatever bit it was."""

from __future__ import annotations

import pytest

from galley.engine.link import Frame, Line, open_frame


def test_frames_are_numbered_and_come_out_as_they_went_in() -> None:
    sender, receiver = Line(3), Line(3)
    for i in range(5):
        header, payload = sender.wrap(b"x" * i)
        assert payload == b"x" * i
        frame = open_frame(header, payload)
        assert frame == Frame(3, i)
        assert receiver.arrival(frame) == "due"
    assert (sender.sent, receiver.received) == (5, 5)


def test_every_single_bit_counts() -> None:
    header, payload = Line(1).wrap(b"sixteen tokens..")
    whole = header + payload
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        parts = bytes(damaged[: len(header)]), bytes(damaged[len(header) :])
        assert open_frame(*parts) is None


@pytest.mark.parametrize("cut", [0, 1, 15])
def test_a_cut_header_is_damage(cut: int) -> None:
    header, payload = Line(1).wrap(b"x")
    assert open_frame(header[:cut], payload) is None


def test_lost_repeated_and_late_frames_are_told_apart() -> None:
    sender, receiver = Line(2), Line(2)
    frames = [Frame(2, i) for i in range(6)]
    assert receiver.arrival(frames[0]) == "due"
    assert receiver.arrival(frames[0]) == "old"
    assert receiver.arrival(frames[2]) == "gap"
    assert receiver.arrival(frames[1]) == "due", "a gap is not counted"
    assert receiver.arrival(Frame(1, 2)) == "old", "of the session before"
    assert receiver.arrival(Frame(3, 2)) == "old", "of one that is not open here"
    again = sender.wrap_as(0, b"hello")
    assert sender.sent == 0
    assert again == sender.wrap(b"hello")
