"""The tokenizer of a Hugging Face directory.

tokenizer.json is the library's own format and says all about encoding; tokenizer_config.json adds
names of special tokens and the chat template. Older checkpoints have only tokenizer.model
(SentencePiece) or vocab.json and merges.txt (byte-level BPE), from which the same tokenizer is
built; there add_bos_token and add_eos_token say what is put around a text, and added_tokens.json
which tokens come after the vocabulary. RWKV's have a vocabulary file of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from galley.errors import ModelError
from galley.loader.chat_templates import templates_of_directory
from galley.loader.fields import MAX_JSON_BYTES, Fields, read_json
from galley.text import longest_match, sentencepiece
from galley.text.from_gguf import byte_level_tokenizer
from galley.text.splits import WORD_SPLITS
from galley.text.tokenizer_spec import TokenizerSpec, add_tokens, library_errors, surround

#: tokenizer_class → how words are split, for directories with vocab.json and merges.txt only.
_SPLIT_OF_CLASS = {
    "GPT2Tokenizer": "gpt-2",
    "GPT2TokenizerFast": "gpt-2",
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
}
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


def build_from_directory(directory: Path) -> TokenizerSpec:
    """Raises ModelError if no tokenizer file is there, or one is damaged or unsupported."""
    config = _config(directory)
    fields = Fields(config, str(directory / "tokenizer_config.json"))
    if (directory / "tokenizer.json").is_file():
        tokenizer = _from_json(directory / "tokenizer.json")
        says_all = True
    elif (directory / "tokenizer.model").is_file():
        tokenizer = _from_model_file(directory / "tokenizer.model", config)
        _list_added_tokens(directory / "added_tokens.json", config)
        says_all = False
    elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        tokenizer = _from_merges(directory, config)
        _list_added_tokens(directory / "added_tokens.json", config)
        says_all = False
    elif (directory / longest_match.RWKV_VOCABULARY).is_file():
        return _rwkv(directory, fields)
    elif (directory / "tekken.json").is_file():
        raise ModelError(
            f"{directory}: tekken.json is not read; name a folder or repository with the model's "
            "tokenizer.json by --tokenizer",
            field="tokenizer",
        )
    else:
        raise ModelError(
            f"{directory}: holds no tokenizer: neither tokenizer.json nor tokenizer.model nor "
            f"vocab.json with merges.txt nor {longest_match.RWKV_VOCABULARY}"
        )
    named = {key: _content(config.get(key), fields, key) for key in _NAMED}
    with library_errors(directory):
        _add_listed_tokens(tokenizer, config, fields)
        add_tokens(tokenizer, [token for token in named.values() if token], special=True)
        if not says_all:
            first = named["bos_token"] if fields.flag("add_bos_token", False) else None
            last = named["eos_token"] if fields.flag("add_eos_token", False) else None
            surround(tokenizer, first, last)
    return TokenizerSpec(
        tokenizer,
        bos=named["bos_token"],
        eos=named["eos_token"],
        unk=named["unk_token"],
        pad=named["pad_token"],
        chat_templates=templates_of_directory(directory),
    )


def _config(directory: Path) -> dict[str, Any]:
    """tokenizer_config.json, completed by special_tokens_map.json; {} without either."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        if path.is_file():
            config |= {k: v for k, v in read_json(path).items() if v is not None}
    return config


def _from_json(path: Path) -> tokenizers.Tokenizer:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ModelError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB")
    with library_errors(path):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
        # A file may have been saved with these on; a prompt must never be cut in silence.
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return tokenizer


def _from_model_file(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    pieces = sentencepiece.read_model_file(path)
    for key, token_id in (
        ("bos_token", pieces.bos_id),
        ("eos_token", pieces.eos_id),
        ("unk_token", pieces.unk_id),
    ):
        token = pieces.token(token_id)
        if token is not None:
            config.setdefault(key, token)
    config.setdefault("add_bos_token", "bos_token" in config)
    with library_errors(path):
        return sentencepiece.build(pieces)


def _from_merges(directory: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    name = config.get("tokenizer_class")
    split = WORD_SPLITS.get(_SPLIT_OF_CLASS.get(name, "")) if isinstance(name, str) else None
    if split is None:
        raise ModelError(
            f"{directory}: vocab.json and merges.txt without tokenizer.json are supported for "
            f"{', '.join(_SPLIT_OF_CLASS)}, not for {name!r}"
        )
    path = directory / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from None
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) != len(pairs):
        raise ModelError(f"{path}: has a line that is not two tokens")
    with library_errors(directory):
        return byte_level_tokenizer(read_json(directory / "vocab.json"), merges, split)


def _rwkv(directory: Path, fields: Fields) -> TokenizerSpec:
    """Token 0, which begins and ends a text, is not in the file."""
    listed = fields.table("added_tokens_decoder").get("0")
    end = _content(listed, fields, "added_tokens_decoder") or "<s>"
    path = directory / longest_match.RWKV_VOCABULARY
    with library_errors(path):
        tokenizer = longest_match.build(longest_match.read_vocabulary(path), {end: 0})
        add_tokens(tokenizer, [end], special=True)
    return TokenizerSpec(
        tokenizer, bos=end, eos=end, chat_templates=templates_of_directory(directory)
    )


def _list_added_tokens(path: Path, config: dict[str, Any]) -> None:
    """Put the {token: id} of an added_tokens.json where newer files list such tokens."""
    if not path.is_file() or "added_tokens_decoder" in config:
        return
    fields = Fields(read_json(path), str(path))
    config["added_tokens_decoder"] = {
        str(fields.integer(token)): {"content": token} for token in fields.values
    }


def _add_listed_tokens(
    tokenizer: tokenizers.Tokenizer, config: dict[str, Any], fields: Fields
) -> None:
    """Tokens that tokenizer_config.json lists and tokenizer.json does not know as added."""
    known = tokenizer.get_added_tokens_decoder()
    table = fields.table("added_tokens_decoder")
    for token_id, entry in sorted(table.items(), key=lambda item: _number(item[0], fields)):
        content = _content(entry, fields, "added_tokens_decoder")
        number = _number(token_id, fields)
        if content is None or number in known:
            continue
        options = entry if isinstance(entry, dict) else {}
        token = AddedToken(
            content,
            special=bool(options.get("special", False)),
            normalized=bool(options.get("normalized", False)),
            lstrip=bool(options.get("lstrip", False)),
            rstrip=bool(options.get("rstrip", False)),
            single_word=bool(options.get("single_word", False)),
        )
        tokenizer.add_tokens([token])
        if tokenizer.token_to_id(content) != number:
            raise ModelError(
                f"{fields.where}: added token {content!r} should have the id {number}, but gets "
                f"{tokenizer.token_to_id(content)}"
            )
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    extra_tokens = extra.values() if isinstance(extra, dict) else extra
    if not isinstance(extra, dict | list):
        raise fields.wrong("additional_special_tokens", "a list of tokens")
    contents = [_content(item, fields, "additional_special_tokens") for item in extra_tokens]
    add_tokens(tokenizer, [content for content in contents if content], special=True)


def _number(key: str, fields: Fields) -> int:
    if not key.isascii() or not key.isdigit():
        raise fields.wrong("added_tokens_decoder", "an object keyed by token ids")
    return int(key)


def _content(value: Any, fields: Fields, key: str) -> str | None:
    """The text of a token that is given as text or as {"content": text, …}."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is not None and not isinstance(value, str):
        raise fields.wrong(key, "a token")
    return value
