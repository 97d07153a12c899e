"""The default model's tokenizer: equal to Hugging Face's of the same vocabulary."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from galley.errors import InvalidRequest
from galley.loader.source import default_model
from galley.text import Tokenizer, load_tokenizer
from tests.loader.gguf_files import plain_arrays
from tests.text.vocabularies import SAMPLES, book


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(default_model())


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerBase:
    path = default_model()
    with plain_arrays():
        loaded = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    # Transformers takes GPT-2's words for every vocabulary that it does not know; SmolLM's own
    # tokenizer.json cuts digits apart first.
    loaded._tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return loaded


def test_ids_of_a_whole_book(tokenizer: Tokenizer, theirs: PreTrainedTokenizerBase) -> None:
    text = book()
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text)
    assert len(ids) > 12_000
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", [*SAMPLES, "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>"])
def test_ids_of_samples(tokenizer: Tokenizer, theirs: PreTrainedTokenizerBase, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_any_ids_decode_alike(tokenizer: Tokenizer, theirs: PreTrainedTokenizerBase) -> None:
    draw = random.Random(0)
    for _ in range(1000):
        ids = [draw.randrange(49152) for _ in range(draw.randrange(1, 10))]
        assert tokenizer.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_names_of_tokens(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.unk_token, tokenizer.pad_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer.vocab_size == 49152
    assert tokenizer.special_ids == frozenset(range(17))
    assert tokenizer.token_to_id("Ġthe") == 260
    assert tokenizer.id_to_token(260) == "Ġthe"
    assert tokenizer.decode_token(260) == " the"
    assert tokenizer.token_bytes(260) == b" the"
    assert "<|im_start|>" in tokenizer.chat_templates["default"]
    assert tokenizer.fim is None


def test_ids_outside_the_vocabulary_are_nothing(tokenizer: Tokenizer) -> None:
    for token_id in (-1, 49152, 2**31):
        assert tokenizer.id_to_token(token_id) is None
        assert tokenizer.decode_token(token_id) == ""
        assert tokenizer.token_bytes(token_id) == b""
    assert tokenizer.decode([260, 49152, 260]) == " the the"


def test_text_that_is_no_unicode_is_the_callers_fault(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="not valid Unicode"):
        tokenizer.encode("half a pair: \ud83e")


def test_bos_is_not_added_since_the_file_says_so(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("hi", True) == tokenizer.encode("hi", False)


def test_loading_is_fast_and_imports_neither_torch_nor_transformers() -> None:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        load_tokenizer(default_model())
        best = min(best, time.process_time() - start)
    assert best < 1.0
    script = (
        "import sys\n"
        "from galley.loader.source import default_model\n"
        "from galley.text import load_tokenizer\n"
        "assert load_tokenizer(default_model()).encode('hi')\n"
        "print(sorted({'torch', 'transformers', 'sentencepiece', 'gguf'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
