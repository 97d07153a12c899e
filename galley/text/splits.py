"""Word splits of byte-level BPE vocabularies before merging, by GGUF's name.

`tokenizer.ggml.pre` names the checkpoint's pre-tokenizer; the patterns are those of the
checkpoints' own tokenizer.json. Each pattern cuts the pieces that the one before has left.
"""

from __future__ import annotations

from dataclasses import dataclass

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _REST
_SEED = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+" + _REST
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = f"{_UPPER}*{_LOWER}+|{_UPPER}+{_LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _REST
_GPT4O = (
    f"{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _REST
)
_DEEPSEEK3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _REST
)
_QWEN35 = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _REST
)
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_NO_HAN = r"&&[^\p{Han}]]"
_UPPER_NO_HAN, _LOWER_NO_HAN = _UPPER[:-1] + _NO_HAN, _LOWER[:-1] + _NO_HAN
_KIMI = (
    r"[\p{Han}]+"
    f"|{_UPPER_NO_HAN}*{_LOWER_NO_HAN}+{_CONTRACTIONS}?"
    f"|{_UPPER_NO_HAN}+{_LOWER_NO_HAN}*{_CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _REST
)


_CASED = r"[\p{Lu}\p{Ll}\p{Lt}]"
_EXAONE_MOE = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_YOUTU = (
    f"{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _REST
)
_MINICPM5 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*" + _REST
_JAIS2 = (
    _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    + "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2"))
    + r"|\s"
)
_SPARK = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"
)
#: Digits in threes, counted from the right.
_THREES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_ASIAN = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f"
    "\u2f00-\u2fdf\u0e00-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f"
    "\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_UFAKZEKA = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _REST


@dataclass(frozen=True)
class WordSplit:
    """The word split of a vocabulary.

    Attributes:
        patterns: regular expressions, in order.
        ignore_merges: a word that is a token needs no merges.
        add_bos: a text begins with BOS where the file does not say.
        nfc: characters are composed first (Unicode NFC).
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_LLAMA3_SPLIT = WordSplit((_LLAMA3,), ignore_merges=True, add_bos=True)
_DIGITS_GPT2 = WordSplit((r"\p{N}", _GPT2))
_PLAIN_GPT2 = WordSplit((_GPT2,))
_QWEN2_SPLIT = WordSplit((_QWEN2,))
_BLOOM_SPLIT = WordSplit((_BLOOM,))
_DEEPSEEK3_SPLIT = WordSplit((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3))

#: `tokenizer.ggml.pre` of vocabularies that are no byte-level ones, though the file says so: pieces
#: with a list of merges, as SentencePiece's.
PIECES = ("gemma4", "granite-embed-multi-311m", "mmbert", "sarvam-moe")

#: `tokenizer.ggml.pre` → how words are split (open set).
WORD_SPLITS: dict[str, WordSplit] = {
    "default": WordSplit((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _PLAIN_GPT2,
    "mpt": _PLAIN_GPT2,
    "olmo": _PLAIN_GPT2,
    "phi-2": _PLAIN_GPT2,
    "gpt2": _PLAIN_GPT2,
    "exaone4": _PLAIN_GPT2,
    "jais": _PLAIN_GPT2,
    "trillion": _PLAIN_GPT2,
    "granite-docling": _PLAIN_GPT2,
    "gigachat": _PLAIN_GPT2,
    "a.x-4.0": _PLAIN_GPT2,
    "jina-es": _PLAIN_GPT2,
    "jina-de": _PLAIN_GPT2,
    "jina-v1-en": _PLAIN_GPT2,
    "jina-v2-es": _PLAIN_GPT2,
    "jina-v2-de": _PLAIN_GPT2,
    "jina-v2-code": _PLAIN_GPT2,
    "roberta-bpe": _PLAIN_GPT2,
    "smollm": _DIGITS_GPT2,
    "starcoder": _DIGITS_GPT2,
    "refact": _DIGITS_GPT2,
    "command-r": WordSplit((r"\p{N}", _GPT2), nfc=True),
    "codeshell": _DIGITS_GPT2,
    "exaone": _DIGITS_GPT2,
    "minerva-7b": _DIGITS_GPT2,
    "mellum2": _DIGITS_GPT2,
    "llama-bpe": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "falcon3": _LLAMA3_SPLIT,
    "pixtral": _LLAMA3_SPLIT,
    "falcon-h1": _LLAMA3_SPLIT,
    "lfm2": _LLAMA3_SPLIT,
    "midm-2.0": _LLAMA3_SPLIT,
    "dbrx": WordSplit((_LLAMA3,)),
    "smaug-bpe": WordSplit((_LLAMA3,)),
    "chatglm-bpe": WordSplit((_LLAMA3,)),
    "glm4": WordSplit((_LLAMA3,)),
    "glm5": WordSplit((_LLAMA3,)),
    "minicpm5": WordSplit((r"\p{N}{1,3}", _MINICPM5)),
    "ufakzeka": WordSplit((_UFAKZEKA,)),
    "exaone-moe": WordSplit((_EXAONE_MOE,)),
    "tiny_aya": WordSplit((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    "youtu": WordSplit(
        (
            r"[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            _YOUTU,
        )
    ),
    "qwen2": WordSplit((_QWEN2,), nfc=True),
    "stablelm2": _QWEN2_SPLIT,
    "deepseek-r1-qwen": _QWEN2_SPLIT,
    "megrez": _QWEN2_SPLIT,
    "hunyuan": _QWEN2_SPLIT,
    "grok-2": _QWEN2_SPLIT,
    "kormo": _QWEN2_SPLIT,
    "solar-open": _QWEN2_SPLIT,
    "qwen35": WordSplit((_QWEN35,), nfc=True),
    "bailingmoe": WordSplit((_BAILING,)),
    "bailingmoe2": WordSplit((_BAILING,)),
    "kimi-k2": WordSplit((_KIMI,)),
    "tekken": WordSplit((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": WordSplit((_GPT4O,)),
    "llama4": WordSplit((_GPT4O,)),
    "kanana2": WordSplit((_GPT4O,)),
    "minimax-m2": WordSplit((_GPT4O,)),
    "deepseek-coder": WordSplit(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}")
    ),
    "deepseek-llm": WordSplit(
        (
            r"[\r\n]",
            r"\s?" + _CASED + "+",
            r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
            r"\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            r"\p{N}+",
        )
    ),
    "deepseek-v3": _DEEPSEEK3_SPLIT,
    "joyai-llm": _DEEPSEEK3_SPLIT,
    "hunyuan-dense": _DEEPSEEK3_SPLIT,
    "bloom": _BLOOM_SPLIT,
    "gpt3-finnish": _BLOOM_SPLIT,
    "poro-chat": _BLOOM_SPLIT,
    "jina-v5-nano": _LLAMA3_SPLIT,
    "mellum": _PLAIN_GPT2,
    "modern-bert": _PLAIN_GPT2,
    "jais-2": WordSplit((_JAIS2,)),
    "f2llmv2": WordSplit((_QWEN2,), nfc=True),
    "talkie": WordSplit((_GPT4O,)),
    "granite-embed-multi-97m": WordSplit((_GPT4O,), ignore_merges=True),
    "cohere2moe": WordSplit((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    "superbpe": WordSplit((_THREES,)),
    "llada-moe": WordSplit((_BAILING,)),
    "hy_v4": _DEEPSEEK3_SPLIT,
    "spark2_5": WordSplit((r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", _SPARK, r"\p{N}")),
    "afmoe": WordSplit((_THREES, _ASIAN, _DEEPSEEK3)),
    "laguna": WordSplit((r"[^\n]+|[\n]+", _QWEN2)),
    "chameleon": WordSplit(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "viking": WordSplit((_BLOOM, r"\p{N}")),
    "seed-coder": WordSplit((_SEED,)),
    "falcon": WordSplit((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
}
