"""The interface of a library that makes masks: an open set, one file each.

To add one: write a class with the methods of `Backend` and a function `validate` in its own file,
and add its module to `BACKENDS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from galley.request import Constraint
from galley.structured.vocabulary import Vocabulary

#: uint64 [rows, ceil(vocab_size / 64)]: bit t % 64 of word t / 64 = token t is allowed.
MaskRows = NDArray[np.uint64]

#: vLLM's name of a backend → its module, imported when it is used first.
BACKENDS = {
    "guidance": "galley.structured.llguidance_backend",
    "xgrammar": "galley.structured.xgrammar_backend",
}


class Matcher(Protocol):
    """The state of one sequence: what it has so far, and so what may come next."""

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Append tokens; False if the constraint does not allow them, and the state is unusable."""

    def accepted(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens are allowed, one after the other."""

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens."""

    def forced_tokens(self) -> list[int]:
        """Tokens that follow for certain: each is the only one that the mask at its place leaves.
        May be shorter than what is certain, or empty.
        """

    @property
    def finished(self) -> bool:
        """The text is complete: only an end token may follow."""

    @property
    def error(self) -> str | None:
        """Why the state is unusable; None where it is not."""


class Grammar(Protocol):
    """A compiled constraint."""

    def matcher(self) -> Matcher:
        """The state of a new sequence."""


class Backend(Protocol):
    """Compiles constraints for one vocabulary and fills masks."""

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises InvalidRequest. Called in a thread."""

    def fill(self, matchers: Sequence[Any], rows: Sequence[int], masks: MaskRows) -> None:
        """Write the mask of each matcher's next token to its row, in native code.

        A matcher whose text is complete allows the end tokens alone.
        """


def open_backend(name: str, vocabulary: Vocabulary) -> Backend:
    """The backend of this name for a vocabulary."""
    backend: Backend = load_backend(name).open_backend(vocabulary)
    return backend


def validate(constraint: Constraint) -> None:
    """Raise InvalidRequest, with the field at fault, for a constraint that cannot be compiled."""
    load_backend(constraint.backend).validate(constraint)


def load_backend(name: str) -> Any:
    """The module of a backend, imported if it is not yet."""
    return importlib.import_module(BACKENDS[name])
