"""An engine core without a model, and a tokenizer of letters: tokens are a function of history.

`answer(prompt, n)` is what any engine says to a prompt, whatever crashed on the way.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np

from galley.messages import Counters, Finished, Outputs, Started, Stats
from galley.request import FinishReason, Request, SamplingParams

VOCAB = 128
EOS = 0


def next_token(history: list[int]) -> int:
    """A letter that depends on all that came before."""
    mixed = len(history)
    for token in history:
        mixed = (mixed * 31 + token) & 0xFFFFFFFF
    return 97 + (mixed >> 7) % 26


def answer(prompt: list[int], n: int) -> list[int]:
    history = list(prompt)
    for _ in range(n):
        history.append(next_token(history))
    return history[len(prompt) :]


class LetterTokenizer:
    """One token per ASCII character; stop strings as in the real one, the naive way."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode_token(self, token_id: int) -> str:
        return chr(token_id)

    def stream(self, prompt_token_ids: list[int], params: SamplingParams) -> LetterStream:
        return LetterStream(params)


class LetterStream:
    def __init__(self, params: SamplingParams) -> None:
        self.stops = params.stop or []
        self.include = params.include_stop_str_in_output
        self.matched: str | None = None
        self._held = ""

    def push(self, token_id: int) -> str:
        text = self._held + chr(token_id)
        for stop in self.stops:
            if stop in text:
                self.matched, self._held = stop, ""
                at = text.index(stop)
                return text[: at + len(stop) if self.include else at]
        keep = max(
            (k for s in self.stops for k in range(1, len(s)) if text.endswith(s[:k])), default=0
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        return self._held


class Row:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.prompt = array("i", request.prompt_token_ids).tolist()
        self.history = self.prompt + array("i", request.output_token_ids).tolist()
        self.started = False


class ScriptedIdleTasks:
    """Returns one scripted event a call, then none; raises those that are errors."""

    def __init__(self) -> None:
        self.finds: list[Stats | Exception | None] = []

    def run(self, clients: Iterable[int]) -> list[tuple[int, Outputs]]:
        found = self.finds.pop(0) if self.finds else None
        if isinstance(found, Exception):
            raise found
        return [(c, Outputs(0, 1, 0, 0.0, stats=found)) for c in clients] if found else []


class ScriptedCore:
    """One token per request and step.

    Args:
        pause: seconds that a step takes.
        on_step: called with the rows of each step before it: where a test crashes the engine.
        short: request id → tokens after which it ends early.
    """

    def __init__(
        self,
        epoch: int = 1,
        pause: float = 0.0,
        on_step: Callable[[list[Row]], None] | None = None,
        short: dict[str, int] | None = None,
    ) -> None:
        self.epoch = epoch
        self.pause = pause
        self.on_step = on_step
        self.short = short or {}
        self.observers: list[Any] = []
        self.while_waiting: Callable[[], None] | None = None
        self.executor = ScriptedExecutor()
        self.pausing = SimpleNamespace(sleep_level=None)
        self.idle_tasks = ScriptedIdleTasks()
        self.rows: dict[int, Row] = {}
        self.aborted: dict[int, list[int]] = {}
        self.aborts: list[tuple[set[int], int]] = []
        self.num_steps = 0
        self.added: list[Request] = []
        self.shut = False

    @property
    def has_work(self) -> bool:
        return bool(self.rows or self.aborted)

    def add(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.added.append(request)
            self.rows[request.handle] = Row(request)

    def abort(self, handles: Iterable[int], client_index: int = 0) -> None:
        handles = set(handles)
        if handles:
            self.aborts.append((handles, client_index))
        for handle in handles:
            if self.rows.pop(handle, None):
                self.aborted.setdefault(client_index, []).append(handle)

    def on_compiled(self, notify: Callable[[], None]) -> None:
        """Nothing is compiled here."""

    def wait(self, seconds: float) -> None:
        """Nothing to wait for."""

    def reset_prefix_cache(self, reset_running_requests: bool = False) -> bool:
        return not self.rows

    def check_integrity(self) -> None:
        raise AssertionError("two blocks are one")

    def shutdown(self) -> None:
        self.shut = True

    def step(self) -> list[tuple[int, Outputs]]:
        rows = list(self.rows.values())
        if not rows:
            return [(client, self._outputs([], client)) for client in list(self.aborted)]
        plan = SimpleNamespace(slots=slice(None))
        table = SimpleNamespace(
            handles=np.array([r.request.handle for r in rows], np.int64),
            num_tokens=np.array([len(r.history) for r in rows], np.int32),
        )
        for observer in self.observers:
            observer.planned(plan, table)
        if self.on_step is not None:
            self.on_step(rows)
        time.sleep(self.pause)
        if self.while_waiting is not None:
            self.while_waiting()
        for observer in self.observers:
            observer.committed()
        self.num_steps += 1
        clients: dict[int, list[Row]] = {}
        for row in rows:
            if row.request.handle in self.rows:
                clients.setdefault(row.request.client_index, []).append(row)
        for client in self.aborted:
            clients.setdefault(client, [])
        return [(client, self._outputs(mine, client)) for client, mine in clients.items()]

    def _outputs(self, rows: list[Row], client: int) -> Outputs:
        started, finished, tokens = [], [], []
        ends = [Finished(h, FinishReason.ABORT) for h in self.aborted.pop(client, [])]
        for row in rows:
            request = row.request
            if not row.started:
                row.started = True
                started.append(Started(request.handle, 0, time.time(), time.time()))
            token = next_token(row.history)
            row.history.append(token)
            tokens.append(token)
            if token in (request.sampling.stop_token_ids or ()):
                finished.append(Finished(request.handle, FinishReason.STOP, token))
            elif (
                len(row.history) - len(row.prompt) == self.short.get(request.request_id)
                or len(row.history) >= request.max_total_tokens
            ):
                finished.append(Finished(request.handle, FinishReason.LENGTH))
        for end in finished:
            del self.rows[end.handle]
        return Outputs(
            step=self.num_steps,
            epoch=self.epoch,
            engine_index=0,
            timestamp=time.time(),
            handles=array("q", [r.request.handle for r in rows]).tobytes(),
            token_ids=array("i", tokens).tobytes(),
            started=started,
            finished=[*ends, *finished],
            stats=Stats(num_running=len(self.rows), counters=Counters(num_steps=1)),
        )


class ScriptedExecutor:
    def rpc(self, method: str, *args: Any) -> list[Any]:
        if method == "set_heartbeat":
            return [None]
        if method != "echo":
            raise ValueError(f"no method {method}")
        return list(args)
