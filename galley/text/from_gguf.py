"""The tokenizer that a GGUF file carries in its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from galley.errors import ModelError
from galley.loader.chat_templates import templates_of_gguf
from galley.loader.gguf import GGUFFile
from galley.text import longest_match, sentencepiece
from galley.text.sentencepiece import SentencePieceVocab, TokenKind
from galley.text.splits import PIECES, WORD_SPLITS, WordSplit
from galley.text.tokenizer_spec import TokenizerSpec, add_tokens, library_errors, surround

#: Control tokens that end a text or a turn, as these families spell them. A file names one of them,
#: where the same model's generation_config.json lists several.
_ENDS = ("</s>", "<|endoftext|>", "<|im_end|>", "<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
#: Before the first piece of a word, in a vocabulary of word pieces.
_WORD_START = "\u2581"
_NO_CHARSMAP = np.zeros(0, np.uint8)
_FIM_KEYS = {"prefix": "fim_pre", "suffix": "fim_suf", "middle": "fim_mid"}


def build_from_gguf(path: Path) -> TokenizerSpec:
    """Raises ModelError for a vocabulary that is missing, damaged or of an unsupported kind."""
    file = GGUFFile(path)
    vocabulary = _Vocabulary(file)
    kind = vocabulary.get("model", str)
    with library_errors(path):
        if kind == "gpt2":
            tokenizer, add_bos = _byte_level(vocabulary)
        elif kind == "llama":
            tokenizer, add_bos = _sentencepiece(vocabulary), True
        elif kind == "gemma4":
            tokenizer, add_bos = _merged_pieces(vocabulary), True
        elif kind == "bert":
            return _word_pieces(vocabulary)
        elif kind == "t5":
            tokenizer, add_bos = _sentencepiece(vocabulary, unigram=True), False
        elif kind == "rwkv":
            tokenizer, add_bos = _rwkv(vocabulary), False
        else:
            raise ModelError(
                f"{path}: tokenizer model {kind!r} is not supported (bert, gemma4, gpt2, llama, "
                "rwkv and t5 are)"
            )
        bos, eos = vocabulary.special("bos"), vocabulary.special("eos")
        first = bos if vocabulary.get("add_bos_token", bool, add_bos) else None
        last = eos if vocabulary.get("add_eos_token", bool, False) else None
        surround(tokenizer, first, last, between=last if kind == "t5" and first else None)
    fim = {role: vocabulary.special_id(name) for role, name in _FIM_KEYS.items()}
    return TokenizerSpec(
        tokenizer,
        bos=bos,
        eos=eos,
        unk=vocabulary.special("unknown"),
        pad=vocabulary.special("padding"),
        chat_templates=templates_of_gguf(file),
        fim={role: token_id for role, token_id in fim.items() if token_id is not None},
        ends=vocabulary.ends(),
    )


class _Vocabulary:
    """Typed reads of the keys `tokenizer.ggml.…`."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.tokens: list[str] = self.get("tokens", list)
        kinds = self.get("token_type", np.ndarray, np.ones(len(self.tokens), np.int32))
        if len(kinds) != len(self.tokens):
            raise self.fail(f"{len(kinds)} token types for {len(self.tokens)} tokens")
        self.kinds: np.ndarray = kinds

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self.file.get(f"tokenizer.ggml.{key}")
        if value is None and default is not None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            actual = "missing" if value is None else f"a {type(value).__name__}"
            raise self.fail(f"tokenizer.ggml.{key} is {actual}, but must be a {kind.__name__}")
        return value

    def special_id(self, name: str) -> int | None:
        """The id of a special token, None where the file names none."""
        if self.file.get(f"tokenizer.ggml.{name}_token_id") is None:
            return None
        token_id = self.get(f"{name}_token_id", int)
        if not 0 <= token_id < len(self.tokens):
            raise self.fail(f"{name}_token_id {token_id} is outside the vocabulary")
        return int(token_id)

    def special(self, name: str) -> str | None:
        token_id = self.special_id(name)
        return None if token_id is None else self.tokens[token_id]

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of tokens that are merged, best first."""
        merges = self.file.pairs("tokenizer.ggml.merges")
        if merges is None:
            raise self.fail("tokenizer.ggml.merges is missing or no list of texts")
        return merges

    def of_kind(self, kind: TokenKind) -> list[str]:
        return [self.tokens[i] for i in self.ids(kind)]

    def ends(self) -> tuple[int, ...]:
        """Ids of the control tokens that end a text or a turn."""
        return tuple(i for i in self.ids(TokenKind.CONTROL) if self.tokens[i] in _ENDS)

    def fail(self, message: str) -> ModelError:
        return ModelError(f"{self.file.path}: {message}")

    def ids(self, kind: TokenKind) -> list[int]:
        ids: list[int] = np.flatnonzero(self.kinds == int(kind)).tolist()
        return ids


def _byte_level(vocabulary: _Vocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """(tokenizer, whether BOS is added where the file does not say)."""
    pre = vocabulary.get("pre", str, "default")
    if pre in PIECES:
        tokenizer = _merged_pieces(vocabulary)
        if pre == "mmbert":  # cuts words before each space, and puts one before the first
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        return tokenizer, True
    split = WORD_SPLITS.get(pre)
    if split is None:
        known = ", ".join((*WORD_SPLITS, *PIECES))
        raise vocabulary.fail(f"pre-tokenizer {pre!r} is not supported; supported: {known}")
    vocab = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = byte_level_tokenizer(vocab, vocabulary.merges(), split)
    add_tokens(tokenizer, vocabulary.of_kind(TokenKind.CONTROL), special=True)
    add_tokens(tokenizer, vocabulary.of_kind(TokenKind.USER_DEFINED), special=False)
    return tokenizer, split.add_bos


def byte_level_tokenizer(
    vocab: dict[str, int], merges: list[tuple[str, str]], split: WordSplit
) -> tokenizers.Tokenizer:
    """A byte-level BPE over words cut by `split`."""
    model = models.BPE(vocab=vocab, merges=merges, ignore_merges=split.ignore_merges)
    tokenizer = tokenizers.Tokenizer(model)
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in split.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_pieces(vocabulary: _Vocabulary) -> TokenizerSpec:
    """WordPiece as BERT has it. The file marks the beginnings of words, where the vocabulary of
    the checkpoint marks their other pieces."""
    tokens = [_word_piece(t, k) for t, k in zip(vocabulary.tokens, vocabulary.kinds, strict=True)]
    ids = {token: i for i, token in enumerate(tokens)}
    first = vocabulary.special("cls") or vocabulary.special("bos") or "[CLS]"
    last = vocabulary.special("seperator") or "[SEP]"  # spelled so in files
    unknown = vocabulary.special("unknown") or "[UNK]"
    for token in (first, last, unknown):
        if token not in ids:
            raise vocabulary.fail(f"the vocabulary has no token {token}")
    # Files do not say whether upper case counts: the vocabulary does.
    cased = any(token != token.lower() for token in tokens if not token.startswith("["))
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=ids, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    add_tokens(tokenizer, vocabulary.of_kind(TokenKind.CONTROL), special=True)
    add_tokens(tokenizer, vocabulary.of_kind(TokenKind.USER_DEFINED), special=False)
    tokenizer.post_processor = processors.BertProcessing((last, ids[last]), (first, ids[first]))
    return TokenizerSpec(tokenizer, unk=unknown, pad=vocabulary.special("padding"))


def _word_piece(token: str, kind: int) -> str:
    """A token of a file as WordPiece spells it."""
    if token.startswith(_WORD_START):
        return token.removeprefix(_WORD_START)
    whole = kind in (TokenKind.CONTROL, TokenKind.USER_DEFINED) or token.startswith("[")
    # Older converters leave "[unused7]" as it is.
    return token if whole and (kind != TokenKind.NORMAL or token.endswith("]")) else f"##{token}"


def _merged_pieces(vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    """SentencePiece's pieces with a list of merges, as Gemma 4 has them."""
    return sentencepiece.build(
        SentencePieceVocab(
            vocabulary.tokens,
            kinds=vocabulary.kinds.tolist(),
            add_space_prefix=vocabulary.get("add_space_prefix", bool, False),
            merges=vocabulary.merges(),
            unk_id=vocabulary.special_id("unknown"),
        )
    )


def _sentencepiece(vocabulary: _Vocabulary, unigram: bool = False) -> tokenizers.Tokenizer:
    """SentencePiece's BPE, or the model of T5 and XLM-RoBERTa."""
    scores = vocabulary.get("scores", np.ndarray)
    if len(scores) != len(vocabulary.tokens):
        raise vocabulary.fail(f"{len(scores)} scores for {len(vocabulary.tokens)} tokens")
    return sentencepiece.build(
        SentencePieceVocab(
            vocabulary.tokens,
            scores.tolist(),
            vocabulary.kinds.tolist(),
            add_space_prefix=vocabulary.get("add_space_prefix", bool, True),
            squeeze_spaces=vocabulary.get("remove_extra_whitespaces", bool, False),
            charsmap=vocabulary.get("precompiled_charsmap", np.ndarray, _NO_CHARSMAP).tobytes(),
            unigram=unigram,
            unk_id=vocabulary.special_id("unknown"),
        )
    )


def _rwkv(vocabulary: _Vocabulary) -> tokenizers.Tokenizer:
    normal = {
        i: longest_match.unescaped(vocabulary.tokens[i]) for i in vocabulary.ids(TokenKind.NORMAL)
    }
    others = {token: i for i, token in enumerate(vocabulary.tokens) if i not in normal}
    tokenizer = longest_match.build({token: i for i, token in normal.items()}, others)
    add_tokens(tokenizer, vocabulary.of_kind(TokenKind.CONTROL), special=True)
    return tokenizer
