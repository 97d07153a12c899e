"""The tokenizer that users are given: equal to that of transformers where both have a name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from galley.chat.tokenizer import ChatTokenizer
from galley.errors import InvalidRequest, Unsupported
from galley.loader.source import default_model
from galley.text import Tokenizer, load_tokenizer

TEXT = "Écris-moi <|im_end|> two words 😀"
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
TALKS = [TALK, [{"role": "user", "content": "Ho"}, {"role": "assistant", "content": "So"}]]


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return load_tokenizer(default_model())


@pytest.fixture(scope="module")
def ours(plain: Tokenizer) -> ChatTokenizer:
    return ChatTokenizer(plain)


@pytest.fixture(scope="module")
def theirs(plain: Tokenizer) -> Any:
    made = PreTrainedTokenizerFast(
        tokenizer_object=plain._library,
        bos_token=plain.bos_token,
        eos_token=plain.eos_token,
        pad_token=plain.pad_token,
        unk_token=plain.unk_token,
    )
    made.chat_template = plain.chat_templates["default"]
    return made


def test_names_of_tokens(ours: ChatTokenizer, theirs: Any) -> None:
    for name in (
        *("bos_token", "bos_token_id", "eos_token", "eos_token_id", "pad_token", "pad_token_id"),
        *("unk_token", "unk_token_id", "vocab_size", "is_fast", "chat_template"),
    ):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.get_added_vocab() == theirs.get_added_vocab()
    assert {ours.eos_token_id, ours.bos_token_id} <= set(ours.all_special_ids)
    assert ours.convert_tokens_to_ids(ours.all_special_tokens) == ours.all_special_ids  # type: ignore[arg-type]


def test_text_and_ids(ours: ChatTokenizer, theirs: Any) -> None:
    ids = theirs.encode(TEXT)
    assert ours.encode(TEXT) == ids
    assert ours.decode(ids) == theirs.decode(ids) == TEXT
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
        ids, skip_special_tokens=True
    )
    assert ours.decode(ids[0]) == theirs.decode(ids[0])
    assert ours.batch_decode([ids, ids[:2]]) == theirs.batch_decode([ids, ids[:2]])
    assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens(2) == theirs.convert_ids_to_tokens(2)
    assert ours.convert_tokens_to_ids("<|im_end|>") == theirs.convert_tokens_to_ids("<|im_end|>")
    assert ours(TEXT)["input_ids"] == ours(TEXT).input_ids == theirs(TEXT).input_ids
    assert ours(["a", TEXT]).attention_mask == theirs(["a", TEXT]).attention_mask
    with pytest.raises(AttributeError):
        _ = ours(TEXT).token_type_ids


@pytest.mark.parametrize(
    "options",
    [
        {"tokenize": False},
        {"tokenize": False, "add_generation_prompt": True},
        {"add_generation_prompt": True},
        {"tokenize": False, "continue_final_message": True},
        {"tokenize": False, "chat_template": "{{ mood }}{{ messages | length }}", "mood": "calm"},
    ],
)
def test_conversations(ours: ChatTokenizer, theirs: Any, options: dict[str, Any]) -> None:
    for talk in (TALK, TALKS):
        want = theirs.apply_chat_template(talk, return_dict=False, **options)
        assert ours.apply_chat_template(talk, **options) == want
    if options.get("tokenize", True):
        told = ours.apply_chat_template(TALK, return_dict=True, **options)
        assert told.input_ids == ours.apply_chat_template(TALK, **options)


def test_what_it_does_not_do(ours: ChatTokenizer, plain: Tokenizer) -> None:
    with pytest.raises(Unsupported, match="return_tensors"):
        ours.apply_chat_template(TALK, return_tensors="pt")
    with pytest.raises(InvalidRequest):
        ours.apply_chat_template([])
    own = ChatTokenizer(plain, "{{ messages[0].content }}!")
    assert own.apply_chat_template(TALK, tokenize=False) == "Be brief.!"
    assert own.chat_template == "{{ messages[0].content }}!"
