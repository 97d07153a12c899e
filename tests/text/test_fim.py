"""Fill-in-the-middle marks, as vocabularies spell them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer as LibraryTokenizer

from galley.text import load_tokenizer
from galley.text.fim import KNOWN
from tests.text.vocabularies import trained_bpe


@pytest.mark.parametrize("names", KNOWN, ids=[names[0] for names in KNOWN])
def test_known_spellings_are_found(tmp_path: Path, names: tuple[str, str, str]) -> None:
    library = LibraryTokenizer.from_str(trained_bpe().to_str())
    library.add_special_tokens(list(names))
    library.save(str(tmp_path / "tokenizer.json"))
    fim = load_tokenizer(tmp_path).fim
    assert fim is not None
    assert fim.prompt([1, 2], [3]) == [1000, 1, 2, 1001, 3, 1002]


def test_two_of_three_are_not_enough(tmp_path: Path) -> None:
    library = LibraryTokenizer.from_str(trained_bpe().to_str())
    library.add_special_tokens(list(KNOWN[0][:2]))
    library.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).fim is None
