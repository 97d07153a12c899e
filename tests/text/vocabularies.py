"""Vocabularies for tests: trained here, in seconds, on the texts below."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tests.loader.gguf_files import write_gguf

#: Many scripts, white space of all kinds, code, emoji with joiners, decomposed letters.
SAMPLES = (
    "",
    " ",
    "Hello, world! It's 12345.678 o'clock; don't I'LL we'Ve.",
    "  leading, trailing  \n\n\n\ttabs\t \r\n mixed   runs    of     spaces ",
    "def f(x: int) -> None:\n    return {'a': [1, 2.5e-3], \"b\": x ** 2}  # camelCase\n",
    "naïve café Ångström ÀÉÎõü ǅungla ﬁ ß",
    "cafe\u0301 A\u030angstro\u0308m",
    "日本語のテキスト、中文文本，한국어 텍스트。",
    "Привет, мир! Γειά σου Κόσμε. مرحبا بالعالم שלום עולם नमस्ते दुनिया สวัสดี",
    "🤗 👩‍👩‍👧 🏳️‍🌈 👍🏽 \U0001f9d1\u200d\U0001f680",
    "½ ² ٣ Ⅷ ① \u00a0 \u2003 \u200b \ufeff",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 20,
    "http://example.com/a?b=c&d=%20#e <b>bold</b> \\x00\x00\x01\x7f",
)


def book() -> str:
    """A long English text."""
    return (Path(__file__).parents[1] / "data" / "opticks.txt").read_text(encoding="utf-8")


@cache
def trained_bpe() -> tokenizers.Tokenizer:
    """A byte-level BPE of 1,000 tokens with three special ones."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*SAMPLES * 3, book()[:100_000]], trainer)
    return tokenizer


@cache
def trained_sentencepiece(model_type: str = "bpe", **options: Any) -> bytes:
    """A tokenizer.model of 800 pieces with byte fallback."""
    out = io.BytesIO()
    lines = [line for line in book()[:150_000].splitlines() if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        model_type=model_type,
        vocab_size=800,
        user_defined_symbols=["<tool>"],
        minloglevel=2,
        num_threads=1,
        **{
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
        }
        | options,
    )
    return out.getvalue()


def byte_level_keys(pre: str = "gpt-2", **more: Any) -> dict[str, Any]:
    """GGUF metadata of `trained_bpe`."""
    tokenizer = trained_bpe()
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=lambda token: vocab[token])
    import json

    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    special = {"<s>", "</s>", "<pad>"}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": vocab["<s>"],
        "tokenizer.ggml.eos_token_id": vocab["</s>"],
        **more,
    }


def sentencepiece_keys(proto: bytes | None = None, **more: Any) -> dict[str, Any]:
    """GGUF metadata of a tokenizer.model, `trained_sentencepiece` by default, as llama.cpp's
    converter writes it."""
    proto = proto or trained_sentencepiece()
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    ids = range(processor.get_piece_size())
    kinds = []
    for i in ids:
        kind = 1
        if processor.is_unknown(i):
            kind = 2
        elif processor.is_control(i):
            kind = 3
        elif processor.is_byte(i):
            kind = 6
        elif processor.id_to_piece(i) == "<tool>":
            kind = 4
        kinds.append(kind)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **more,
    }


def write_vocabulary(path: Path, keys: dict[str, Any]) -> Path:
    """A GGUF file with these tokenizer keys."""
    return write_gguf(path, keys=keys)
