"""Vocabularies in GGUF files: the same ids as the tokenizer that they were made from."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import transformers
from tokenizers import Regex, pre_tokenizers
from transformers import LlamaTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from galley.errors import ModelError
from galley.text import Tokenizer, load_tokenizer
from galley.text.byte_level import token_to_bytes
from galley.text.longest_match import RWKV_VOCABULARY
from galley.text.sentencepiece import SentencePieceVocab, merges_by_score
from galley.text.splits import WORD_SPLITS
from tests.text.vocabularies import (
    SAMPLES,
    book,
    byte_level_keys,
    sentencepiece_keys,
    trained_bpe,
    trained_sentencepiece,
    write_vocabulary,
)


def _load(tmp_path: Path, keys: dict[str, Any]) -> Tokenizer:
    return load_tokenizer(write_vocabulary(tmp_path / "m.gguf", keys))


def test_byte_level_ids_are_those_of_the_tokenizer_it_was_made_from(tmp_path: Path) -> None:
    ours, theirs = _load(tmp_path, byte_level_keys()), trained_bpe()
    for text in (*SAMPLES, book()[:20_000], "<s>hi</s>"):
        assert ours.encode(text, False) == theirs.encode(text).ids
        assert ours.decode(ours.encode(text, False), skip_special_tokens=False) == text


def test_rwkv_takes_the_longest_token_that_fits(tmp_path: Path) -> None:
    """From a GGUF file, where bytes are escaped, and from the checkpoints' vocabulary file."""
    vocab = trained_bpe().get_vocab()
    tokens = sorted((token_to_bytes(t) for t, i in vocab.items() if i >= 3), key=len)
    from_file = _load(
        tmp_path,
        {
            "tokenizer.ggml.model": "rwkv",
            "tokenizer.ggml.tokens": ["<s>", *(repr(t)[2:-1] for t in tokens), "[PAD998]"],
            "tokenizer.ggml.token_type": [3, *[1] * len(tokens), 5],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 0,
        },
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    lines = (f"{i} {token!r} {len(token)}\n" for i, token in enumerate(tokens, 1))
    (folder / RWKV_VOCABULARY).write_text("".join(lines))
    from_folder = load_tokenizer(folder)

    def longest(text: bytes) -> list[int]:
        ids = []
        while text:
            ids.append(max((i for i, t in enumerate(tokens, 1) if text.startswith(t)), default=0))
            text = text[len(tokens[ids[-1] - 1]) :]
        return ids

    for text in (*SAMPLES, book()[:5_000], "[PAD998]\\x41"):
        for ours in (from_file, from_folder):
            assert ours.encode(text) == longest(text.encode())
            assert ours.decode(ours.encode(text)) == text
    assert from_file.encode("<s>a") == [0, *longest(b"a")] == from_folder.encode("<s>a")
    assert from_file.eos_token_id == 0 == from_folder.eos_token_id
    (folder / RWKV_VOCABULARY).write_text("1 'a' 2\n")
    with pytest.raises(ModelError, match="line 1 is no token: not so many bytes"):
        load_tokenizer(folder)


#: Words of a text under each pre-tokenizer, as the checkpoints' own tokenizer.json cut it.
WORDS = "It'S 1234 x² HTTPServer\n\n  ok"
CUTS = {
    "gpt-2": ["It", "'", "S", " 1234", " x", "²", " HTTPServer", "\n\n ", " ok"],
    "smollm": ["It", "'", "S", " ", "1", "2", "3", "4", " x", "²", " HTTPServer", "\n\n ", " ok"],
    "llama-bpe": ["It", "'S", " ", "123", "4", " x", "²", " HTTPServer", "\n\n", " ", " ok"],
    "qwen2": ["It", "'S", " ", "1", "2", "3", "4", " x", "²", " HTTPServer", "\n\n", " ", " ok"],
    "tekken": [
        *("It", "'S", " ", "1", "2", "3", "4", " x", "²"),
        *(" HTTPServer", "\n\n", " ", " ok"),
    ],
    "gpt-4o": ["It'S", " ", "123", "4", " x", "²", " HTTPServer", "\n\n", " ", " ok"],
    "default": ["It", "'", "S", " ", "123", "4", " x", "²", " HTTPServer", "\n\n ", " ok"],
    "bloom": ["It'S", " 1234", " x²", " HTTPServer", "\n\n ", " ok"],
    "viking": ["It'S", " ", "1", "2", "3", "4", " x", "²", " HTTPServer", "\n\n ", " ok"],
    "deepseek-llm": [
        *("It", "'", "S", " ", "1234", " x", "²", " HTTPServer"),
        *("\n", "\n", " ", " ok"),
    ],
    "tiny_aya": ["It'S", " ", "1", "234", " x", "²", " HTTPServer", "\n\n", " ", " ok"],
    "youtu": ["It'S", " ", "1", "2", "3", "4", " x", "²", " HTTPServer", "\n\n", " ", " ok"],
    "superbpe": ["It'S ", "1", "234", " x", "²", " HTTPServer\n\n  ok"],
    "spark2_5": [
        *("It", "'S", " ", "1", "2", "3", "4", " x", "²", " HTTPServer"),
        *("\n", "\n", " ", " ok"),
    ],
    "afmoe": ["It", "'S", " ", "1", "234", " x", "²", " HTTPServer", "\n\n", " ", " ok"],
    "laguna": [
        *("It", "'S", " ", "1", "2", "3", "4", " x", "²", " HTTPServer"),
        *("\n\n", " ", " ok"),
    ],
    "chameleon": [
        *("It", "'", "S", " ", "1", "2", "3", "4", " x", "²", " HTTPServer"),
        *("\n", "\n", "  ", "ok"),
    ],
    "deepseek-coder": [
        *("It", "'", "S", " ", "1", "2", "3", "4", " x", "²"),
        *(" HTTPServer", "\n", "\n", " ", " ok"),
    ],
}
#: Names → one that cuts alike, as llama.cpp's table of pre-tokenizers has them.
ALIKE = {
    **dict.fromkeys(("gpt2", "mpt", "olmo", "phi-2", "exaone4", "jais", "trillion"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "command-r", "codeshell", "exaone"), "smollm"),
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "pixtral", "dbrx", "smaug-bpe"), "llama-bpe"),
    **dict.fromkeys(("chatglm-bpe", "glm4", "deepseek-v3", "hunyuan-dense"), "llama-bpe"),
    **dict.fromkeys(
        ("stablelm2", "deepseek-r1-qwen", "megrez", "grok-2", "hunyuan", "seed-coder"), "qwen2"
    ),
    **dict.fromkeys(("gpt3-finnish", "poro-chat"), "bloom"),
    **dict.fromkeys(("falcon-h1", "lfm2", "midm-2.0", "glm5", "minicpm5"), "llama-bpe"),
    **dict.fromkeys(
        ("a.x-4.0", "gigachat", "granite-docling", "jina-de", "jina-es", "jina-v1-en"), "gpt-2"
    ),
    **dict.fromkeys(("jina-v2-code", "jina-v2-de", "jina-v2-es", "roberta-bpe"), "gpt-2"),
    **dict.fromkeys(("mellum2", "minerva-7b"), "smollm"),
    **dict.fromkeys(("exaone-moe", "ufakzeka"), "qwen2"),
    "joyai-llm": "llama-bpe",
    **dict.fromkeys(("kormo", "solar-open", "qwen35", "bailingmoe", "bailingmoe2"), "qwen2"),
    **dict.fromkeys(("llama4", "kanana2", "minimax-m2", "kimi-k2"), "gpt-4o"),
    **dict.fromkeys(("mellum", "modern-bert"), "gpt-2"),
    **dict.fromkeys(("jina-v5-nano", "jais-2", "hy_v4"), "llama-bpe"),
    **dict.fromkeys(("f2llmv2", "llada-moe"), "qwen2"),
    **dict.fromkeys(("talkie", "granite-embed-multi-97m"), "gpt-4o"),
    "cohere2moe": "tiny_aya",
    "falcon": "default",
}


def test_every_pre_tokenizer_is_looked_at() -> None:
    assert {*CUTS, *ALIKE} == WORD_SPLITS.keys()


@pytest.mark.parametrize("pre", WORD_SPLITS)
def test_words_are_cut_as_the_pre_tokenizer_says(pre: str) -> None:
    cuts = [pre_tokenizers.Split(Regex(p), "isolated") for p in WORD_SPLITS[pre].patterns]
    words = pre_tokenizers.Sequence(cuts).pre_tokenize_str(WORDS)
    assert [word for word, _ in words] == CUTS[ALIKE.get(pre, pre)]


@pytest.mark.parametrize(
    ("pre", "text", "want"),
    [
        ("exaone-moe", "abc def ;\nx", ["abc def", " ;\n", "x"]),
        ("ufakzeka", "Ali'den", ["Ali", "'den"]),
        ("youtu", "abc 你好가x", ["abc", " ", "你好", "가", "x"]),
        ("minicpm5", "a 12345", ["a", " ", "123", "45"]),
        ("deepseek-llm", "a，b 你好x", ["a", "，", "b", " ", "你好", "x"]),
        ("deepseek-v3", "+abc 你好x", ["+abc", " ", "你好", "x"]),
        ("llama-bpe", "+abc 你好x", ["+abc", " 你好x"]),
        ("falcon", "a`1234", ["a", "`", "123", "4"]),
        ("default", "a`1234", ["a", "`", "123", "4"]),
        ("tekken", "aBc", ["a", "Bc"]),
        ("seed-coder", "a ;\nb", ["a", " ;", "\n", "b"]),
        ("qwen2", "a ;\nb", ["a", " ;\n", "b"]),
        ("qwen2", "नमस्ते", ["नमस", "्त", "े"]),
        ("qwen35", "नमस्ते", ["नमस्ते"]),
        ("kimi-k2", "abc 你好x", ["abc", " ", "你好", "x"]),
        ("gpt-4o", "abc 你好x", ["abc", " 你好x"]),
        ("bloom", "a.b (c)", ["a", ".", "b", " (", "c", ")"]),
        ("qwen2", "aBc", ["aBc"]),
        ("jais-2", "a" + 7 * " " + "b", ["a", 4 * " ", "  ", " b"]),
        ("chameleon", "a IMGIMGAZb", ["a", " ", "IMGIMGAZ", "b"]),
        ("superbpe", "by the way 1234567", ["by the way ", "1", "234", "567"]),
        ("afmoe", "1234567 สวัสดีx", ["1", "234", "567", " ", "สวัสดี", "x"]),
    ],
)
def test_pre_tokenizers_differ_where_they_differ(pre: str, text: str, want: list[str]) -> None:
    cuts = [pre_tokenizers.Split(Regex(p), "isolated") for p in WORD_SPLITS[pre].patterns]
    words = pre_tokenizers.Sequence(cuts).pre_tokenize_str(text)
    assert [word for word, _ in words] == want


#: First and last letters of ten scripts.
SCRIPTS = {
    "Latin": "Az",
    "Greek": "αω",
    "Cyrillic": "ая",
    "Hebrew": "את",
    "Arabic": "بي",
    "Devanagari": "अॿ",
    "Thai": "กๅ",
    "Hangul": "가힣",
    "Hiragana": "ぁゖ",
    "Han": "一龥",
}
#: Pre-tokenizer → transformers' tokenizer of a family that has it.
THEIRS: dict[str, Any] = {
    "command-r": transformers.CohereTokenizer,
    "gpt-2": transformers.GPT2Tokenizer,
    "qwen2": transformers.Qwen2Tokenizer,
    "qwen35": transformers.Qwen3_5Tokenizer,
}


def lines(count: int = 1000) -> list[str]:
    """Words of a script with digits, marks, signs and spaces between them, an equal share each."""
    rng = np.random.default_rng(0)
    ends = [tuple(map(ord, pair)) for pair in SCRIPTS.values()]
    between = [*" ", "  ", "\n", "\n\n", " \r\n", "\t", ".", ", ", "'s ", "'LL", "_", "=>", "/\n"]
    between += ["12345", " 7", "é", "e\u0301", "٣", "!", " (", ") ", "🤗", "\u00a0"]

    def line(i: int) -> str:
        first, last = ends[i % len(ends)]
        words = ("".join(map(chr, rng.integers(first, last + 1, n))) for n in rng.integers(1, 8, 9))
        return "".join(word + str(rng.choice(between)) for word in words)

    return [line(i) for i in range(count)]


@pytest.mark.parametrize("pre", THEIRS)
def test_ids_are_those_of_transformers_in_ten_scripts(pre: str, tmp_path: Path) -> None:
    ours, trained = _load(tmp_path, byte_level_keys(pre)), trained_bpe()
    merges = json.loads(trained.to_str())["model"]["merges"]
    theirs = THEIRS[pre](vocab=trained.get_vocab(), merges=[tuple(pair) for pair in merges])
    texts = lines()
    assert len(texts) == 1000
    assert len({ours.encode(text, False)[0] for text in texts}) > 50
    for text in texts:
        assert ours.encode(text, False) == theirs.encode(text, add_special_tokens=False), text


def test_llama_words_are_those_of_transformers_in_ten_scripts() -> None:
    """Its converter has the pattern of Llama 3."""
    [pattern] = WORD_SPLITS["llama-bpe"].patterns
    theirs = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default
    a, b = (pre_tokenizers.Split(Regex(p), "isolated") for p in (pattern, theirs))
    for text in lines():
        assert a.pre_tokenize_str(text) == b.pre_tokenize_str(text)


def test_qwen2_composes_characters_first(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path, byte_level_keys("qwen2"))
    assert tokenizer.encode("cafe\u0301", False) == tokenizer.encode("café", False)


@pytest.mark.parametrize(
    ("more", "around"),
    [
        ({}, ([], [])),
        ({"tokenizer.ggml.add_bos_token": True}, ([0], [])),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, ([0], [1])),
        ({"tokenizer.ggml.pre": "llama-bpe"}, ([0], [])),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, ([], [])),
    ],
)
def test_what_is_put_around_a_text(
    tmp_path: Path, more: dict[str, Any], around: tuple[list[int], list[int]]
) -> None:
    tokenizer = _load(tmp_path, byte_level_keys() | more)
    bare = tokenizer.encode("hi", False)
    assert tokenizer.encode("hi") == around[0] + bare + around[1]


def test_sentencepiece_ids_are_those_of_sentencepiece(tmp_path: Path) -> None:
    ours = _load(tmp_path, sentencepiece_keys())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=trained_sentencepiece())
    for text in (*SAMPLES, book()[:20_000]):
        ids = theirs.encode(text)
        assert ours.encode(text, False) == ids
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.encode("hi") == [1, *theirs.encode("hi")]


def test_sentencepiece_ids_are_those_of_transformers(tmp_path: Path) -> None:
    ours = _load(tmp_path, sentencepiece_keys())
    (tmp_path / "tokenizer.model").write_bytes(trained_sentencepiece())
    theirs = LlamaTokenizer.from_pretrained(tmp_path, legacy=True)
    for text in (*SAMPLES, "tell<tool>me"):
        if not text.startswith(" "):
            assert ours.encode(text, False) == theirs.encode(text, add_special_tokens=False)


def listed_merges(keys: dict[str, Any]) -> list[str]:
    """The merges that the scores of a file's pieces stand for."""
    pieces = SentencePieceVocab(
        keys["tokenizer.ggml.tokens"],
        [float(score) for score in keys["tokenizer.ggml.scores"]],
        [int(kind) for kind in keys["tokenizer.ggml.token_type"]],
    )
    return [f"{left} {right}" for left, right in merges_by_score(pieces)]


@pytest.mark.parametrize(("model", "pre"), [("gemma4", None), ("gpt2", "sarvam-moe")])
def test_pieces_with_a_list_of_merges_are_cut_as_with_scores(
    model: str, pre: str | None, tmp_path: Path
) -> None:
    """Gemma 4's files, whose texts have no space put before them; others call it byte-level."""
    keys = sentencepiece_keys(**{"tokenizer.ggml.add_space_prefix": False})
    by_score = _load(tmp_path, keys)
    listed = listed_merges(keys)
    del keys["tokenizer.ggml.scores"]
    keys |= {"tokenizer.ggml.model": model, "tokenizer.ggml.merges": listed}
    keys |= {"tokenizer.ggml.pre": pre} if pre else {}
    ours = _load(tmp_path, keys)
    for text in (*SAMPLES, book()[:5_000]):
        ids = by_score.encode(text)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == by_score.decode(ids)


def test_words_of_mmbert_are_cut_by_themselves(tmp_path: Path) -> None:
    keys = sentencepiece_keys(**{"tokenizer.ggml.add_space_prefix": False})
    by_score = _load(tmp_path, keys)
    listed = listed_merges(keys)
    keys |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "mmbert"}
    ours = _load(tmp_path, keys | {"tokenizer.ggml.merges": listed})
    for text in ("light", " light", "of  the\nlight of", book()[:2_000]):
        spaced = text if text.startswith(" ") else f" {text}"
        words = re.findall(" [^ ]*", spaced)
        assert ours.encode(text, False) == [i for w in words for i in by_score.encode(w, False)]


def test_without_a_space_prefix_nothing_is_put_before_a_text(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path, sentencepiece_keys(**{"tokenizer.ggml.add_space_prefix": False}))
    ids = tokenizer.encode("light", False)
    assert tokenizer.decode(ids) == "light"
    assert tokenizer.decode(tokenizer.encode(" light", False)) == " light"


def test_kinds_of_tokens(tmp_path: Path) -> None:
    tokenizer = _load(tmp_path, sentencepiece_keys())
    tool = tokenizer.token_to_id("<tool>")
    assert tool in tokenizer.added_tokens
    assert tool not in tokenizer.special_ids
    assert tokenizer.special_ids == {0, 1, 2}
    assert tool in tokenizer.encode("a<tool>b", False)
    assert tokenizer.token_bytes(tokenizer.token_to_id("<0xE4>") or 0) == b"\xe4"


def test_all_tokens_that_end_a_turn_end_a_text_though_the_file_names_one(tmp_path: Path) -> None:
    keys = byte_level_keys()
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    first = len(tokens)
    tokens += ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>"]
    kinds += [3, 3, 3, 1]
    eos = keys["tokenizer.ggml.eos_token_id"] = first
    assert _load(tmp_path, keys).end_ids == {eos, tokens.index("</s>"), first + 2}


def test_declared_fill_in_the_middle_marks(tmp_path: Path) -> None:
    marks = {f"tokenizer.ggml.fim_{name}_token_id": i for name, i in (("pre", 5), ("suf", 6))}
    assert _load(tmp_path, byte_level_keys(**marks)).fim is None
    marks["tokenizer.ggml.fim_mid_token_id"] = 7
    fim = _load(tmp_path, byte_level_keys(**marks)).fim
    assert fim is not None
    assert fim.prompt([100], [200]) == [5, 100, 6, 200, 7]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no vocabulary": ({"tokenizer.ggml.tokens": None}, "tokens is missing"),
    "no model": ({"tokenizer.ggml.model": None}, "model is missing"),
    "unknown model": ({"tokenizer.ggml.model": "plamo2"}, "'plamo2' is not supported"),
    "model is a number": ({"tokenizer.ggml.model": 3}, "model is a int"),
    "unknown words": ({"tokenizer.ggml.pre": "klingon"}, "'klingon' is not supported"),
    "no merges": ({"tokenizer.ggml.merges": None}, "merges is missing"),
    "merges are numbers": ({"tokenizer.ggml.merges": [1, 2]}, "merges is missing or no list"),
    "merge of one": ({"tokenizer.ggml.merges": ["ab"]}, "merges, 'ab', is not two words"),
    "merge of strangers": ({"tokenizer.ggml.merges": ["qqq zzz"]}, "no usable tokenizer"),
    "tokens are numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "tokens is a"),
    "few types": ({"tokenizer.ggml.token_type": [1, 1]}, "2 token types for 1000 tokens"),
    "id outside": ({"tokenizer.ggml.bos_token_id": 5000}, "5000 is outside"),
    "id is text": ({"tokenizer.ggml.eos_token_id": "x"}, "eos_token_id is a str"),
    "flag is text": ({"tokenizer.ggml.add_bos_token": "yes"}, "add_bos_token is a str"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_broken_vocabulary_is_an_error_that_names_the_file(tmp_path: Path, case: str) -> None:
    change, says = REFUSED[case]
    with pytest.raises(ModelError, match=says) as caught:
        _load(tmp_path, byte_level_keys() | change)
    assert "m.gguf" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer.ggml.scores": None}, "scores is missing"),
        ({"tokenizer.ggml.scores": np.zeros(3, np.float32).tolist()}, "3 scores for 800 tokens"),
        (
            {"tokenizer.ggml.precompiled_charsmap": [255] * 8},
            "a charsmap of .* bytes has a table of",
        ),
    ],
)
def test_a_broken_sentencepiece_vocabulary(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        _load(tmp_path, sentencepiece_keys() | change)
