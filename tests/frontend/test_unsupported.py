"""Attributes that vLLM's LLM has and ours has not."""

from __future__ import annotations

import re

import pytest

from galley import LLM
from galley.frontend.unsupported import REASONS, UnsupportedMethods


@pytest.mark.parametrize("name", REASONS)
def test_an_unsupported_method_gives_its_reason(name: str) -> None:
    assert not hasattr(LLM, name)
    with pytest.raises(AttributeError, match=re.escape(f"{name!r}: {REASONS[name]}")):
        getattr(UnsupportedMethods(), name)


def test_other_attributes_are_missing_as_usual() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        _ = UnsupportedMethods().nothing  # type: ignore[attr-defined]
