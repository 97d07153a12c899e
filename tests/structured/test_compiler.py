"""The compiler of constraints where the process fails, not the constraint."""

import threading

import pytest

from galley.request import Constraint, Failure
from galley.structured import compiler as module
from galley.structured import llguidance_backend
from galley.structured.backend import Backend
from galley.structured.compiler import Compiler
from galley.structured.vocabulary import Vocabulary

PLUS = Constraint(kind="regex", text="a+", field="regex")


def compiled(compiler: Compiler) -> list[Failure | None]:
    compiler.get(PLUS, (256,))
    compiler.wait(20)
    return [done.error for _, done in compiler.take()]


def vocabulary(end_ids: tuple[int, ...]) -> Vocabulary:
    tokens = [bytes([i]) for i in range(256)] + [b"</s>"]
    return Vocabulary(257, tokens, frozenset(end_ids), end_ids, lambda text: [*text.encode()])


def raising(error: Exception) -> object:
    def open_backend(name: str, vocabulary: Vocabulary) -> Backend:
        raise error

    return open_backend


def test_a_failure_of_the_library_is_the_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler(vocabulary)
    assert compiled(compiler) == [None]
    monkeypatch.setattr(module, "open_backend", raising(ValueError("a defect")))
    assert compiled(Compiler(vocabulary)) == [Failure("regex cannot be compiled: a defect")]


def test_no_memory_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_backend", raising(MemoryError("none left")))
    with pytest.raises(MemoryError, match="none left"):
        compiled(Compiler(vocabulary))


def test_no_threads_for_masks_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def executor(num_threads: int) -> object:
        raise ValueError("Resource temporarily unavailable (os error 11)")

    monkeypatch.setattr(llguidance_backend, "LLExecutor", executor)
    with pytest.raises(MemoryError, match="threads that fill masks"):
        compiled(Compiler(vocabulary))


def test_no_thread_for_a_grammar_ends_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "grammar":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        compiled(Compiler(vocabulary))
