"""A directory's tokenizer as GGUF's keys.

Byte-level BPE whose words are split as one of `WORD_SPLITS` says, and SentencePiece's BPE. That the
keys say all is seen by reading: `same_tokens` compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from galley.errors import ModelError
from galley.loader.fields import read_json
from galley.text import sentencepiece
from galley.text.from_directory import build_from_directory
from galley.text.sentencepiece import TokenKind
from galley.text.splits import WORD_SPLITS, WordSplit
from galley.text.tokenizer_spec import TokenizerSpec

_GPT2 = WORD_SPLITS["gpt-2"].patterns[0]
#: Words, digits, punctuation, spaces, other scripts.
_SAMPLE = (
    "Hello world, it's 2026-11-26!  Don't   pay £12,345.67 (or 1/3)…\n\n\tif x<=3: print('ok')\r\n"
    " naïve façade – Привет, мир! 你好,世界。 こんにちは ١٢٣ 🙂🚀 e\u0301 <|x|> HTTPServer's\n"
)


def keys_of_directory(directory: Path, vocab_size: int) -> dict[str, Any]:
    """`tokenizer.ggml.…` and the chat template.

    Raises ModelError for a tokenizer that GGUF has no words for.
    """
    spec = build_from_directory(directory)
    model_file, json_file = directory / "tokenizer.model", directory / "tokenizer.json"
    description = read_json(json_file) if json_file.is_file() else {}
    model = description.get("model", {})
    keys: dict[str, Any]
    if model.get("type") == "BPE" and not model.get("byte_fallback"):
        merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
        keys = {"model": "gpt2", "pre": _pre(description, json_file), "merges": merges}
        tokens, kinds = _tokens(spec, vocab_size)
    elif model_file.is_file() or model.get("byte_fallback"):
        keys, tokens, kinds = _pieces(spec, model_file, model, vocab_size)
    else:
        raise ModelError(f"{directory}: a tokenizer of this kind cannot be written as GGUF")
    keys |= {"tokens": tokens, "token_type": kinds}
    first = spec.tokenizer.encode("x", add_special_tokens=True).ids
    last = spec.tokenizer.encode("x", add_special_tokens=False).ids[-1]
    bos = None if spec.bos is None else spec.tokenizer.token_to_id(spec.bos)
    keys |= {"add_bos_token": first[0] == bos, "add_eos_token": first[-1] != last}
    for name, token in (
        ("bos", spec.bos),
        ("eos", spec.eos),
        ("unknown", spec.unk),
        ("padding", spec.pad),
    ):
        number = None if token is None else spec.tokenizer.token_to_id(token)
        if number is not None:
            keys[f"{name}_token_id"] = number
    written = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    if "default" in spec.chat_templates:
        written["tokenizer.chat_template"] = spec.chat_templates["default"]
    return written


def same_tokens(one: TokenizerSpec, other: TokenizerSpec) -> bool:
    """Whether a sample of many kinds of text has the same tokens in both."""
    specials = [token for token in (one.bos, one.eos, one.pad) if token]
    sample = _SAMPLE + "".join(specials) + _SAMPLE.upper()
    return bool(one.tokenizer.encode(sample).ids == other.tokenizer.encode(sample).ids)


def _tokens(spec: TokenizerSpec, vocab_size: int) -> tuple[list[str], list[int]]:
    """Text and kind of every id; ids without a token are unused."""
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    kinds = [int(TokenKind.UNUSED)] * vocab_size
    for token, i in spec.tokenizer.get_vocab(with_added_tokens=True).items():
        if i < vocab_size:
            tokens[i], kinds[i] = token, int(TokenKind.NORMAL)
    for i, added in spec.tokenizer.get_added_tokens_decoder().items():
        if i < vocab_size:
            kinds[i] = int(TokenKind.CONTROL if added.special else TokenKind.USER_DEFINED)
    return tokens, kinds


def _pieces(
    spec: TokenizerSpec, model_file: Path, model: dict[str, Any], vocab_size: int
) -> tuple[dict[str, Any], list[str], list[int]]:
    """SentencePiece's scores; without its file, those that give the merges their order."""
    tokens, kinds = _tokens(spec, vocab_size)
    scores = np.full(vocab_size, -1000.0, np.float32)
    prefix = spec.tokenizer.encode("x", add_special_tokens=False).tokens[0].startswith("▁")
    if model_file.is_file():
        pieces = sentencepiece.read_model_file(model_file)
        if pieces.unigram:
            raise ModelError(f"{model_file}: a unigram model cannot be written as GGUF")
        count = min(vocab_size, len(pieces.scores))
        scores[:count], prefix = pieces.scores[:count], pieces.add_space_prefix
        kinds[:count] = [k if k > 1 else own for k, own in zip(pieces.kinds, kinds, strict=False)]
    else:
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(model["merges"]):
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            ranks.setdefault(left + right, rank)
        for i, token in enumerate(tokens):
            if token in ranks:
                scores[i] = -float(ranks[token])
            elif len(token) == 6 and token.startswith("<0x"):
                kinds[i] = int(TokenKind.BYTE)
        unknown = None if spec.unk is None else spec.tokenizer.token_to_id(spec.unk)
        if unknown is not None:
            kinds[unknown] = int(TokenKind.UNKNOWN)
    keys = {"model": "llama", "pre": "default", "scores": scores.tolist()}
    return keys | {"add_space_prefix": prefix}, tokens, kinds


def _pre(description: dict[str, Any], path: Path) -> str:
    """GGUF's name of the word split. ModelError where it has none."""
    patterns: list[str] = []
    cut = description.get("pre_tokenizer") or {}
    for step in cut.get("pretokenizers", [cut]):
        if step.get("type") == "Split":
            patterns.append(step.get("pattern", {}).get("Regex", ""))
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            patterns.append(r"\p{N}")
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            patterns.append(_GPT2)
    normalizer = description.get("normalizer") or {}
    wanted = WordSplit(
        tuple(patterns),
        ignore_merges=bool(description["model"].get("ignore_merges")),
        nfc=normalizer.get("type") == "NFC",
    )
    for name, split in WORD_SPLITS.items():
        if (split.patterns, split.ignore_merges, split.nfc) == (
            wanted.patterns,
            wanted.ignore_merges,
            wanted.nfc,
        ):
            return name
    raise ModelError(f"{path}: GGUF has no name for its way to split words: {patterns}")
