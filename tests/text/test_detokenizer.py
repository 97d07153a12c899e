"""Text streams: what is shown token by token is what all tokens decode to."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer

from galley.loader.source import default_model
from galley.request import SamplingParams
from galley.text import TextStream, Tokenizer, load_tokenizer
from galley.text.pieces import piece_rule
from tests.text.vocabularies import (
    SAMPLES,
    byte_level_keys,
    sentencepiece_keys,
    write_vocabulary,
)


@pytest.fixture(scope="module")
def default() -> Tokenizer:
    return load_tokenizer(default_model())


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("bpe") / "m.gguf"
    return load_tokenizer(write_vocabulary(path, byte_level_keys()))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("spm") / "m.gguf"
    return load_tokenizer(write_vocabulary(path, sentencepiece_keys()))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary whose decoder joins words with spaces: no table of bytes is possible."""
    folder = tmp_path_factory.mktemp("words")
    vocab = {word: i for i, word in enumerate(["[UNK]", "go", "##ing", "on", ".", "[A]", "[B]"])}
    library = LibraryTokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.decoder = decoders.WordPiece()
    library.add_special_tokens(["[A]", "[B]"])
    library.save(str(folder / "tokenizer.json"))
    return load_tokenizer(folder)


def run(stream: TextStream, token_ids: list[int]) -> list[str]:
    """The text shown after each token, and at the end."""
    return [*(stream.push(token_id) for token_id in token_ids), stream.finish()]


def _ids(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size + 3), max_size=24)


@given(ids=_ids(1000), skip=st.booleans())
def test_byte_level_pieces_are_what_the_library_decodes(
    byte_level: Tokenizer, ids: list[int], skip: bool
) -> None:
    shown = run(byte_level.stream([], SamplingParams(skip_special_tokens=skip)), ids)
    assert "".join(shown) == byte_level._library.decode(ids, skip_special_tokens=skip)


# The library's own mark of a space looks like a space.
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=40))
def test_sentencepiece_pieces_are_what_the_library_decodes(pieces: Tokenizer, text: str) -> None:
    ids = pieces.encode(text)
    shown = "".join(run(pieces.stream([], SamplingParams()), ids))
    assert shown == pieces._library.decode(ids) == text


@given(ids=_ids(800))
def test_sentencepiece_bytes_that_are_no_text_show_as_replacements(
    pieces: Tokenizer, ids: list[int]
) -> None:
    raw = b"".join(pieces.token_bytes(i) for i in ids if i not in pieces.special_ids)
    shown = "".join(run(pieces.stream([], SamplingParams()), ids))
    assert shown == raw.decode(errors="replace").removeprefix(" ")
    assert shown == pieces.decode(ids)


@pytest.mark.parametrize("text", SAMPLES)
def test_each_push_shows_every_whole_character(default: Tokenizer, text: str) -> None:
    ids = default.encode(text)
    stream = default.stream([], SamplingParams())
    shown, raw = "", b""
    for token_id in ids:
        shown += stream.push(token_id)
        raw += default.token_bytes(token_id)
        whole = raw.decode(errors="ignore")
        assert shown == whole
    assert shown + stream.finish() == text


def test_a_broken_character_is_shown_at_the_latest_at_the_end(byte_level: Tokenizer) -> None:
    lead = byte_level.token_to_id("ð")
    letter = byte_level.token_to_id("a")
    assert lead is not None
    assert letter is not None
    assert run(byte_level.stream([], SamplingParams()), [lead]) == ["", "�"]
    assert run(byte_level.stream([], SamplingParams()), [lead, letter]) == ["", "�a", ""]
    assert run(byte_level.stream([], SamplingParams()), [lead, lead]) == ["", "�", "�"]


def test_a_skipped_token_does_not_break_a_character(byte_level: Tokenizer) -> None:
    first, *rest = [byte_level.token_to_id(char) for char in ("ð", "Ł", "ĺ", "Ģ")]
    ids = [first, 0, *rest]
    shown = run(byte_level.stream([], SamplingParams()), [i for i in ids if i is not None])
    assert "".join(shown) == "😀"


def test_a_character_that_the_prompt_began_is_completed(byte_level: Tokenizer) -> None:
    ids = [byte_level.token_to_id(char) or 0 for char in ("ð", "Ł", "ĺ", "Ģ")]
    for cut in range(1, 4):
        stream = byte_level.stream([67, *ids[:cut]], SamplingParams())
        assert "".join(run(stream, ids[cut:])) == "😀"
        # The prompt's own broken bytes are not the answer's.
        letter = byte_level.token_to_id("a") or 0
        assert run(byte_level.stream(ids[:cut], SamplingParams()), [letter]) == ["a", ""]
        assert run(byte_level.stream(ids[:cut], SamplingParams()), []) == [""]


def test_the_first_space_belongs_to_the_answer_if_a_prompt_precedes(pieces: Tokenizer) -> None:
    prompt, answer = pieces.encode("the light"), pieces.encode("of", False)
    assert pieces.id_to_token(answer[0]) == "▁of"
    assert "".join(run(pieces.stream(prompt, SamplingParams()), answer)) == " of"
    assert "".join(run(pieces.stream([], SamplingParams()), answer)) == "of"
    # BOS alone is no text.
    assert "".join(run(pieces.stream([1], SamplingParams()), answer)) == "of"


def test_special_tokens_are_shown_on_request(default: Tokenizer) -> None:
    ids = default.encode("a<|im_end|>\n<|im_start|>b")
    shown = run(default.stream([], SamplingParams(skip_special_tokens=False)), ids)
    assert "".join(shown) == "a<|im_end|>\n<|im_start|>b"
    assert "".join(run(default.stream([], SamplingParams()), ids)) == "a\nb"


# ---------------------------------------------------------------------------- any other decoder


def test_a_decoder_with_spaces_between_words(words: Tokenizer) -> None:
    ids = words.encode("going on . on")
    assert run(words.stream([], SamplingParams()), ids) == ["go", "ing", " on", ".", " on", ""]
    assert words.decode(ids) == "going on. on"
    assert run(words.stream(ids, SamplingParams()), ids[:2]) == [" go", "ing", ""]


def test_spaces_between_special_tokens(words: Tokenizer) -> None:
    ids = [5, 6, 1, 6, 6]
    wanted = {True: "[A] [B] go [B] [B]", False: "[A][B] go [B][B]"}
    for spaces, text in wanted.items():
        params = SamplingParams(skip_special_tokens=False, spaces_between_special_tokens=spaces)
        assert "".join(run(words.stream([], params), ids)) == text
        assert words.decode(ids, False, spaces) == text


@given(ids=st.lists(st.integers(0, 6), max_size=30), skip=st.booleans())
def test_other_decoders_stream_what_they_decode(
    words: Tokenizer, ids: list[int], skip: bool
) -> None:
    shown = "".join(run(words.stream([], SamplingParams(skip_special_tokens=skip)), ids))
    assert shown == words._library.decode(ids, skip_special_tokens=skip)


def test_a_window_flushes_what_stays_broken(tmp_path: Path) -> None:
    """A byte-level decoder hidden in a sequence with another step goes through the window."""
    library = LibraryTokenizer(models.BPE(vocab={"ð": 0, "a": 1, "Ġ": 2}, merges=[]))
    library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("zz", "z")])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    shown = run(tokenizer.stream([], SamplingParams()), [1] + [0] * 10)
    assert shown[0] == "a"
    assert "".join(shown) == "a" + "�" * 10
    assert "�" in "".join(shown[:-1])
    assert run(tokenizer.stream([], SamplingParams()), [0]) == ["", "�"]


def test_a_window_shows_a_character_when_its_last_byte_is_there(tmp_path: Path) -> None:
    """And nothing of it before, though it takes as many tokens as a character has bytes."""
    chars = ["ð", "Ł", "¤", "Ĺ", "a"]
    library = LibraryTokenizer(models.BPE(vocab={c: i for i, c in enumerate(chars)}, merges=[]))
    library.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("zz", "z")])
    library.save(str(tmp_path / "tokenizer.json"))
    stream = load_tokenizer(tmp_path).stream([], SamplingParams())
    assert run(stream, [4, 0, 1, 2, 3, 0, 1, 2, 3]) == ["a", *("", "", "", "🤗") * 2, ""]


@pytest.mark.parametrize(
    ("steps", "is_table"),
    [
        ([decoders.Replace("▁", " ")], True),
        ([decoders.Replace(Regex("▁"), " ")], False),
        ([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)], True),
        ([decoders.Replace("▁", " "), decoders.Strip(" ", 0, 1)], False),
        ([decoders.Replace("▁", " "), decoders.Strip("x", 1, 0)], False),
    ],
)
def test_only_a_known_decoder_is_a_table_of_bytes(
    pieces: Tokenizer, steps: list[decoders.Decoder], is_table: bool
) -> None:
    replace, *rest = steps
    chain = [replace, decoders.ByteFallback(), decoders.Fuse(), *rest]
    rule = piece_rule(decoders.Sequence(chain))
    assert (rule is not None) == is_table
    if rule is not None:
        to_bytes, strips = rule
        assert (to_bytes("▁a"), to_bytes("<0xF0>"), strips) == (b" a", b"\xf0", bool(rest))


# ---------------------------------------------------------------------------- stop strings


@settings(max_examples=200)
@given(
    text=st.text(alphabet="ab 日é\n", min_size=1, max_size=30),
    stop=st.text(alphabet="ab 日é\n", min_size=1, max_size=4),
    include=st.booleans(),
)
def test_a_stop_is_found_wherever_the_tokens_split(
    byte_level: Tokenizer, text: str, stop: str, include: bool
) -> None:
    params = SamplingParams(stop=stop, include_stop_str_in_output=include)
    at = text.find(stop)
    want = text if at < 0 else text[: at + len(stop) * include]
    for ids in (byte_level.encode(text, False), _one_by_one(byte_level, text)):
        stream = byte_level.stream([], params)
        assert "".join(run(stream, ids)) == want
        assert stream.matched == (None if at < 0 else stop)


def _one_by_one(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of the text's single bytes."""
    by_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    return [by_byte[bytes([byte])] for byte in text.encode()]


def test_nothing_is_shown_past_a_stop(default: Tokenizer) -> None:
    ids = default.encode("one two three four")
    stream = default.stream([], SamplingParams(stop=["tw", "four"]))
    assert run(stream, ids) == ["one", " ", "", "", ""]
    assert stream.matched == "tw"


def test_min_tokens_guards_against_an_early_stop(default: Tokenizer) -> None:
    ids = default.encode("one two three two")
    stream = default.stream([], SamplingParams(stop=" two", min_tokens=2))
    assert "".join(run(stream, ids)) == "one two three"
    assert stream.matched == " two"
    stream = default.stream([], SamplingParams(stop=" two", min_tokens=4))
    assert "".join(run(stream, ids)) == "one two three two"
    assert stream.matched is None


def test_an_unfinished_character_can_complete_a_stop_at_the_end(byte_level: Tokenizer) -> None:
    lead = byte_level.token_to_id("ð") or 0
    stream = byte_level.stream([], SamplingParams(stop="�"))
    assert run(stream, [lead]) == ["", ""]
    assert stream.matched == "�"


def test_a_token_costs_the_same_late_and_early(default: Tokenizer) -> None:
    ids = default.encode("The quick brown fox jumps over 日本語 the lazy dog 🤗.\n") * 400

    def seconds(stop: str | None) -> list[float]:
        stream = default.stream([], SamplingParams(stop=stop))
        times = []
        for start in range(0, len(ids), len(ids) // 8):
            begun = time.process_time()
            for token_id in ids[start : start + len(ids) // 8]:
                stream.push(token_id)
            times.append(time.process_time() - begun)
        return times

    for stop in (None, "\n\nUser:"):
        best = [min(column) for column in zip(*(seconds(stop) for _ in range(5)), strict=True)]
        assert best[-1] < 4 * best[1] + 1e-3
        assert min(best) / (len(ids) // 8) < 100e-6
