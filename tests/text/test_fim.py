"""Fill-in-the-middle marks, as vocabularies spell them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as LibraryTokenizer

from galley.text import load_tokenizer
from galley.text.fim import KNOWN, Spelling, find_fim
from tests.text.vocabularies import trained_bpe


def spelled(known: Spelling) -> list[str]:
    return [name for name in (known.prefix, known.suffix, known.middle) if name is not None]


@pytest.mark.parametrize("known", KNOWN, ids=[known.prefix for known in KNOWN])
def test_known_spellings_are_found(tmp_path: Path, known: Spelling) -> None:
    library = LibraryTokenizer.from_str(trained_bpe().to_str())
    library.add_special_tokens(spelled(known))
    library.save(str(tmp_path / "tokenizer.json"))
    fim = load_tokenizer(tmp_path).fim
    assert fim is not None
    prefix, suffix = [1000, 1, 2], [1001, 3]
    marked = suffix + prefix if known.suffix_first else prefix + suffix
    assert fim.prompt([1, 2], [3]) == marked + ([1002] if known.middle else [])


def test_the_order_of_each_family() -> None:
    """As the model cards have it."""
    texts = {
        "<fim_prefix>": "<fim_prefix>a<fim_suffix>b<fim_middle>",
        "<｜fim▁begin｜>": "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>",
        "<|code_prefix|>": "<|code_suffix|>b<|code_prefix|>a<|code_middle|>",
        "[PREFIX]": "[SUFFIX]b[PREFIX]a",
    }
    for known in KNOWN:
        if known.prefix in texts:
            names = {"a": 0, "b": 1} | {name: i for i, name in enumerate(spelled(known), 2)}
            fim = find_fim(names.get, {})
            assert fim is not None
            spelling = {i: name for name, i in names.items()}
            assert "".join(spelling[i] for i in fim.prompt([0], [1])) == texts[known.prefix]


def test_two_of_three_are_not_enough(tmp_path: Path) -> None:
    library = LibraryTokenizer.from_str(trained_bpe().to_str())
    library.add_special_tokens(spelled(KNOWN[0])[:2])
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).fim is None
