"""Compiles constraints in a thread of its own, and keeps what it has compiled.

    get ──▶ jobs ──▶ grammars (a thread) ──▶ grammar (a thread) ──▶ done ──▶ take
                         └─ waits, at most `limit` seconds a constraint

A constraint has been compiled once, under limits, before the engine gets it (`check.py`). Where a
library needs far longer with the model's vocabulary, the request fails, and the thread that still
compiles is left to itself: the next constraint gets another one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from queue import Empty, SimpleQueue

import msgspec

from galley.errors import ClientError, GalleyError
from galley.request import Constraint, Failure, FailureKind
from galley.structured.backend import Backend, Grammar, open_backend
from galley.structured.vocabulary import Vocabulary

log = logging.getLogger(__name__)

#: Most grammars that are kept.
KEPT = 256
#: Seconds that one may take to compile, the library's start included.
LIMIT = 20.0

#: Makes the vocabulary of a model whose texts end at these ids.
VocabularySource = Callable[[tuple[int, ...]], Vocabulary]


class Compiled(msgspec.Struct, frozen=True):
    """A grammar and the library that fills its masks, or why there is none.

    Attributes:
        error: the constraint's own: its request fails.
        fatal: the process cannot go on, for instance without memory: `Compiler.take` raises it.
    """

    grammar: Grammar | None = None
    backend: Backend | None = None
    error: Failure | None = None
    fatal: Exception | None = None


class _Job(msgspec.Struct, frozen=True):
    key: Constraint
    end_ids: tuple[int, ...]


class _Worker:
    """A thread that compiles one constraint after the other."""

    def __init__(self, compile: Callable[[_Job], Compiled]) -> None:
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.compiled: SimpleQueue[Compiled] = SimpleQueue()
        self._compile = compile
        threading.Thread(target=self._run, name="grammar", daemon=True).start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            self.compiled.put(self._compile(job))


class Compiler:
    """Its methods belong to the engine's thread.

    Args:
        limit: seconds that a constraint may take.

    Attributes:
        wake: called in the compiling thread when a job is done.
        seconds: spent compiling.
    """

    def __init__(self, vocabulary: VocabularySource, limit: float = LIMIT) -> None:
        self.wake: Callable[[], None] | None = None
        self.seconds = 0.0
        self._vocabulary = vocabulary
        self._limit = limit
        self._worker: _Worker | None = None
        self._backends: dict[tuple[str, tuple[int, ...]], Backend] = {}
        self._kept: OrderedDict[Constraint, Compiled] = OrderedDict()
        self._waiting: set[Constraint] = set()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[Constraint, Compiled]] = SimpleQueue()
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None

    def get(self, constraint: Constraint, end_ids: tuple[int, ...]) -> Compiled | None:
        """The compiled constraint. None while it compiles: it is in one of the next `take`."""
        key = key_of(constraint)
        compiled = self._kept.get(key)
        if compiled is not None:
            self._kept.move_to_end(key)
            return compiled
        if key not in self._waiting:
            self._waiting.add(key)
            self._submit(_Job(key, end_ids))
        return None

    @property
    def has_done(self) -> bool:
        """Whether `take` would return something."""
        return not self._done.empty()

    @property
    def compiling(self) -> bool:
        """Whether something is being compiled, or waits to be taken."""
        return bool(self._waiting)

    def wait(self, seconds: float) -> None:
        """Sleep until a job is done."""
        if self.compiling and not self.has_done:
            self._finished.wait(seconds)

    def take(self) -> list[tuple[Constraint, Compiled]]:
        """Grammars compiled since the last call, by `key_of` the constraint.

        Raises:
            MemoryError, RuntimeError: there was no memory, or no thread, to compile one.
        """
        self._finished.clear()
        done = []
        while not self._done.empty():
            key, compiled = self._done.get()
            if compiled.fatal is not None:
                raise compiled.fatal
            self._waiting.discard(key)
            if compiled.error is None:
                self._kept[key] = compiled
            done.append((key, compiled))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return done

    def close(self) -> None:
        """End the thread, after what it is doing."""
        self._jobs.put(None)

    def _submit(self, job: _Job) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            begin = time.perf_counter()
            try:
                compiled = self._compiled_in_time(job)
            except RuntimeError as error:  # no thread can be started
                compiled = Compiled(fatal=error)
            self._done.put((job.key, compiled))
            self.seconds += time.perf_counter() - begin
            self._finished.set()
            if self.wake is not None:
                self.wake()
        if self._worker is not None:
            self._worker.jobs.put(None)

    def _compiled_in_time(self, job: _Job) -> Compiled:
        worker = self._worker = self._worker or _Worker(self._compile)
        worker.jobs.put(job)
        try:
            return worker.compiled.get(timeout=self._limit)
        except Empty:
            worker.jobs.put(None)
            self._worker = None
            log.error("A constraint has not been compiled within %g s.", self._limit)
            field = job.key.field
            reason = (
                f"{field} is too complex: it takes more than {self._limit:g} seconds to compile "
                "with this model's vocabulary."
            )
            return Compiled(error=Failure(reason, FailureKind.REQUEST, field))

    def _compile(self, job: _Job) -> Compiled:
        try:
            name = job.key.backend, job.end_ids
            backend = self._backends.get(name)
            if backend is None:
                backend = open_backend(job.key.backend, self._vocabulary(job.end_ids))
                self._backends[name] = backend
            return Compiled(backend.compile(job.key), backend)
        except GalleyError as error:
            refused = isinstance(error, ClientError)
            kind = FailureKind.REQUEST if refused else FailureKind.ENGINE
            return Compiled(error=Failure(error.message, kind, error.field))
        except MemoryError as error:
            return Compiled(fatal=error)
        except Exception as error:  # one constraint fails, not the engine
            log.exception("A constraint could not be compiled.")
            return Compiled(error=Failure(f"{job.key.field} cannot be compiled: {error}"))


def key_of(constraint: Constraint) -> Constraint:
    """The part of a constraint that is compiled: without its start condition."""
    if not (constraint.start_after or constraint.num_written):
        return constraint
    return msgspec.structs.replace(constraint, start_after=(), num_written=0)
