"""Tokenizers of Hugging Face directories: the same ids as transformers' AutoTokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

from galley.errors import ModelError
from galley.text import Tokenizer, load_tokenizer
from tests.text.vocabularies import SAMPLES, book, trained_bpe, trained_sentencepiece


def _directory(
    path: Path, tokenizer: LibraryTokenizer | None = None, config: Any = None, **files: Any
) -> Path:
    path.mkdir(exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(path / "tokenizer.json"))
    if config is not None:
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


def _copy(tokenizer: LibraryTokenizer) -> LibraryTokenizer:
    return LibraryTokenizer.from_str(tokenizer.to_str())


def _metaspace() -> LibraryTokenizer:
    """A BPE with a decoder that is no concatenation of bytes."""
    tokenizer = LibraryTokenizer(
        models.BPE(
            vocab={"▁": 0, "a": 1, "b": 2, "▁a": 3, "ab": 4, "<unk>": 5},
            merges=[("▁", "a"), ("a", "b")],
            unk_token="<unk>",
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


CONFIGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "bos": {"bos_token": "<s>", "add_bos_token": True},
    "bos and eos": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "add_bos_token": True,
        "add_eos_token": True,
    },
    "no bos": {"bos_token": "<s>", "add_bos_token": False},
    "tokens as objects": {"bos_token": {"__type": "AddedToken", "content": "<s>"}},
    "added": {
        "added_tokens_decoder": {
            "0": {"content": "<s>", "special": True},
            "1000": {"content": "<think>", "special": False},
            "1001": {"content": "<call>", "special": True},
        }
    },
    "additional": {"additional_special_tokens": ["<one>", "<two>"]},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_ids_are_those_of_transformers(tmp_path: Path, case: str) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **CONFIGS[case]}
    path = _directory(tmp_path / "t", trained_bpe(), config)
    ours, theirs = load_tokenizer(path), AutoTokenizer.from_pretrained(path)
    for text in (*SAMPLES, "<s>a<think>b<call></s> <one><two>"):
        for add in (True, False):
            ids = ours.encode(text, add)
            assert ids == theirs.encode(text, add_special_tokens=add)
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_the_files_own_post_processor_counts(tmp_path: Path) -> None:
    tokenizer = _copy(trained_bpe())
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 0)])
    bare = tokenizer.encode("hi", add_special_tokens=False).ids
    # As in transformers 5, where tokenizer.json is there, the flag in the config does nothing.
    path = _directory(tmp_path / "t", tokenizer, {"bos_token": "<s>", "add_bos_token": False})
    assert load_tokenizer(path).encode("hi") == [0, *bare]
    assert AutoTokenizer.from_pretrained(path).encode("hi") == [0, *bare]


def test_saved_truncation_and_padding_are_undone(tmp_path: Path) -> None:
    tokenizer = _copy(trained_bpe())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    loaded = load_tokenizer(_directory(tmp_path / "t", tokenizer))
    text = book()[:2000]
    assert loaded.decode(loaded.encode(text)) == text


def test_names_of_tokens_and_templates(tmp_path: Path) -> None:
    config = {
        "eos_token": "</s>",
        "pad_token": {"content": "<pad>", "lstrip": False},
        "chat_template": [
            {"name": "default", "template": "D"},
            {"name": "tool_use", "template": "T"},
        ],
    }
    path = _directory(
        tmp_path / "t", trained_bpe(), config, special_tokens_map={"bos_token": "<s>"}
    )
    tokenizer = load_tokenizer(path)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", 0)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("</s>", 1)
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<pad>", None)
    assert tokenizer.chat_templates == {"default": "D", "tool_use": "T"}


def test_a_decoder_that_looks_at_neighbours_decodes_as_the_library_does(tmp_path: Path) -> None:
    library = _metaspace()
    tokenizer = load_tokenizer(_directory(tmp_path / "t", library))
    ids = tokenizer.encode("a ab b a")
    assert tokenizer.decode(ids) == library.decode(ids) == "a ab b a"
    assert tokenizer.token_bytes(4) == b"ab"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize("options", [(), (("normalization_rule_name", "nmt_nfkc"),)])
def test_a_sentencepiece_file_alone(
    tmp_path: Path, model_type: str, options: tuple[tuple[str, str], ...]
) -> None:
    raw = trained_sentencepiece(model_type, **dict(options))
    (tmp_path / "tokenizer.model").write_bytes(raw)
    ours = load_tokenizer(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=raw)
    # The library's normaliser takes a joined emoji, and a carriage return with its line feed, for
    # one character, which SentencePiece does not.
    plain = [text for text in SAMPLES if "\u200d" not in text and "\r\n" not in text]
    texts = plain if options else SAMPLES
    for text in (*texts, book()[:5000]):
        ids = theirs.encode(text)
        assert ours.encode(text, False) == ids, text
        assert ours.decode(ids) == theirs.decode(ids)
    assert (ours.bos_token, ours.eos_token, ours.unk_token) == ("<s>", "</s>", "<unk>")
    assert ours.encode("hi") == [1, *theirs.encode("hi")]


def test_vocab_and_merges_alone(tmp_path: Path) -> None:
    trained_bpe().model.save(str(tmp_path))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}
    ours = load_tokenizer(_directory(tmp_path, config=config))
    for text in SAMPLES:
        assert ours.encode(text) == trained_bpe().encode(text).ids
    _directory(tmp_path, config={"tokenizer_class": "OddTokenizer"})
    with pytest.raises(ModelError, match="not for 'OddTokenizer'"):
        load_tokenizer(tmp_path)


# ---------------------------------------------------------------------------- broken files


def test_added_tokens_in_a_file_of_their_own(tmp_path: Path) -> None:
    """As fine-tunes of Llama 2 have them; a name that special tokens have makes them special."""
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece())
    config = {"eos_token": "<|im_end|>"}
    added = {"<|im_start|>": 801, "<|im_end|>": 800}
    ours = load_tokenizer(_directory(tmp_path, config=config, added_tokens=added))
    assert ours.encode("<|im_start|>a<|im_end|>", False)[::2] == [801, 800]
    assert ours.eos_token_id == 800
    assert 800 in ours.special_ids
    assert 801 in ours.added_tokens


def test_nothing_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(ModelError, match="neither a directory nor"):
        load_tokenizer(tmp_path / "none")


BAD_JSON: dict[str, tuple[str, str]] = {
    "empty": ("", "no usable tokenizer"),
    "not json": ("{nonsense", "no usable tokenizer"),
    "a list": ("[]", "no usable tokenizer"),
    "no model": ('{"version": "1.0"}', "no usable tokenizer"),
    "unknown model": ('{"version": "1.0", "model": {"type": "Odd"}}', "no usable tokenizer"),
    "merge of strangers": (
        '{"version":"1.0","added_tokens":[],"model":{"type":"BPE","vocab":{"a":0},'
        '"merges":["b c"]}}',
        "no usable tokenizer",
    ),
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_a_broken_tokenizer_json_is_an_error_that_names_it(tmp_path: Path, case: str) -> None:
    text, says = BAD_JSON[case]
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=says) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)


BAD_CONFIGS: dict[str, tuple[Any, str]] = {
    "bos is a number": ({"bos_token": 3}, "bos_token is 3"),
    "added is a list": ({"added_tokens_decoder": [1]}, "added_tokens_decoder"),
    "added key": ({"added_tokens_decoder": {"x": {"content": "<x>"}}}, "keyed by token ids"),
    "added content": ({"added_tokens_decoder": {"0": {"content": 4}}}, "must be a token"),
    "added id": (
        {"added_tokens_decoder": {"5000": {"content": "<x>"}}},
        "should have the id 5000, but gets 1000",
    ),
    "additional": ({"additional_special_tokens": "<x>"}, "list of tokens"),
    "template": ({"chat_template": 3}, "chat_template"),
    "a list": ([1], "not a JSON object"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_broken_tokenizer_config_is_an_error_that_names_it(tmp_path: Path, case: str) -> None:
    config, says = BAD_CONFIGS[case]
    with pytest.raises(ModelError, match=says) as caught:
        load_tokenizer(_directory(tmp_path / "t", trained_bpe(), config))
    assert "tokenizer_config.json" in str(caught.value)


@pytest.mark.parametrize(
    "raw", [b"", b"\x00", b"IQ== 0\nIg== 1\n" * 50, trained_sentencepiece()[:1000], b"\xff" * 64]
)
def test_a_broken_sentencepiece_file_is_an_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(raw)
    with pytest.raises(ModelError, match=r"tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_a_flag_that_is_no_flag_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece())
    with pytest.raises(ModelError, match="add_bos_token is 'yes'"):
        load_tokenizer(_directory(tmp_path, config={"add_bos_token": "yes"}))


def test_merges_that_are_not_pairs_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("a b c\n")
    _directory(tmp_path, config={"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(ModelError, match=r"merges\.txt"):
        load_tokenizer(tmp_path)


def _load(path: Path) -> Tokenizer | ModelError:
    try:
        return load_tokenizer(path)
    except ModelError as error:
        return error


_SMALL = LibraryTokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
_SMALL.normalizer = normalizers.Replace("x", "y")
_SMALL.pre_tokenizer = pre_tokenizers.ByteLevel()
_SMALL.decoder = decoders.ByteLevel()
_SMALL.post_processor = processors.TemplateProcessing("a $A", "a $A $B", [("a", 0)])


@settings(max_examples=200)
@given(
    place=st.integers(0, 1200),
    put=st.one_of(
        st.binary(min_size=1, max_size=4), st.sampled_from([b"null", b"-1", b'"', b"9" * 25])
    ),
    length=st.integers(0, 4),
)
def test_a_damaged_tokenizer_json_is_read_or_refused(
    tmp_path: Path, place: int, put: bytes, length: int
) -> None:
    raw = bytearray(_SMALL.to_str().encode())
    raw[place : place + length] = put
    (tmp_path / "tokenizer.json").write_bytes(bytes(raw))
    loaded = _load(tmp_path)
    assert isinstance(loaded, Tokenizer) or "tokenizer.json" in str(loaded)


@settings(max_examples=200)
@given(place=st.integers(0, 12_000), put=st.binary(min_size=1, max_size=6))
def test_a_damaged_sentencepiece_file_is_read_or_refused(
    tmp_path: Path, place: int, put: bytes
) -> None:
    raw = bytearray(trained_sentencepiece())
    raw[place : place + len(put)] = put
    (tmp_path / "tokenizer.model").write_bytes(bytes(raw))
    loaded = _load(tmp_path)
    assert isinstance(loaded, Tokenizer) or "tokenizer.model" in str(loaded)
