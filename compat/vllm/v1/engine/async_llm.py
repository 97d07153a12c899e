"""`AsyncLLM`: the engine for asyncio. A thread of its own steps it while there are requests."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from galley import LLM, LoRARequest, PromptType, RequestOutput, SamplingParams
from galley.errors import RequestFailed
from vllm._names import missing
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.llm_engine import LLMEngine

__all__ = ["AsyncLLM"]

T = TypeVar("T")
Item = RequestOutput | BaseException


class AsyncLLM:
    """Requests of coroutines on one engine.

    All calls of the engine run in its thread, between two steps.
    """

    def __init__(self, engine: LLMEngine) -> None:
        self._engine = engine
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._readers: dict[str, Callable[[Item], None]] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, *_: Any, **__: Any) -> AsyncLLM:
        return cls(LLMEngine(LLM(**engine_args.given)))

    @classmethod
    def from_vllm_config(cls, *_: Any, **__: Any) -> AsyncLLM:
        missing(f"{cls.__name__}.from_vllm_config", "from_engine_args takes the flags")
        raise AssertionError

    async def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
        **_: Any,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the outputs of a request; leaving the loop aborts it.

        Raises:
            InvalidRequest, Unsupported: of the prompt or the parameters.
            RequestFailed: it failed in the engine, or was aborted.
        """
        loop = asyncio.get_running_loop()
        outputs: asyncio.Queue[Item] = asyncio.Queue()

        def add() -> None:
            self._engine.add_request(
                request_id, prompt, sampling_params, lora_request=lora_request, priority=priority
            )
            self._readers[request_id] = lambda item: _post(loop, outputs, item)

        await self._call(add)
        finished = False
        try:
            while not finished:
                item = await outputs.get()
                finished = isinstance(item, BaseException) or item.finished
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            if not finished and not self._closed:
                self._calls.put(lambda: self._abort(request_id))

    async def abort(self, request_id: str | list[str], internal: bool = False) -> None:
        """End requests: their readers get RequestFailed."""
        for each in [request_id] if isinstance(request_id, str) else request_id:
            await self._call(lambda each=each: self._abort(each))

    async def encode(self, *_: Any, **__: Any) -> Any:
        missing("AsyncLLM.encode", "LLM(runner='pooling').encode pools, and `galley serve` does")

    async def get_tokenizer(self) -> Any:
        return self._engine.get_tokenizer()

    async def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    async def get_num_unfinished_requests(self) -> int:
        return len(self._readers)

    async def check_health(self) -> None:
        """Raises what ended the engine."""
        if self._error is not None:
            raise self._error

    async def is_tracing_enabled(self) -> bool:
        return False

    async def do_log_stats(self) -> None:
        """Statistics are in LLM.get_metrics()."""

    async def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        return await self._call(lambda: self._engine.reset_prefix_cache(*args, **kwargs))

    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True) -> None:
        """Take no step until `resume_generation`; new requests wait.

        Args:
            mode: "abort" the requests in flight, "wait" for them, or "keep" them for later.
        """
        await self._call(lambda: self._engine.pause(mode, clear_cache))
        while mode == "wait" and self._readers:
            await asyncio.sleep(0.01)

    async def resume_generation(self) -> None:
        await self._call(self._engine.resume)

    async def is_paused(self) -> bool:
        return await self._call(lambda: self._engine.is_paused)

    async def sleep(self, level: int = 1, mode: str = "abort") -> None:
        await self._call(lambda: self._engine.sleep(level, mode))

    async def wake_up(self, tags: list[str] | None = None) -> None:
        await self._call(lambda: self._engine.wake_up(tags))

    @property
    def is_running(self) -> bool:
        return not self._closed and self._error is None

    @property
    def is_stopped(self) -> bool:
        return not self.is_running

    @property
    def errored(self) -> bool:
        return self._error is not None

    @property
    def dead_error(self) -> BaseException | None:
        return self._error

    def shutdown(self, timeout: float | None = None) -> None:
        """Stop the engine; requests in flight end with RequestFailed."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)
            self._thread.join(timeout)

    # ------------------------------------------------------------------ the thread

    async def _call(self, act: Callable[[], T]) -> T:
        """Run `act` between two steps. Raises what it raises, and RequestFailed once stopped."""
        if not self.is_running:
            raise RequestFailed("the engine is stopped.") from self._error
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(act())
            except BaseException as e:  # noqa: BLE001 - the caller gets it
                done.set_exception(e)

        self._calls.put(run)
        return await asyncio.wrap_future(done)

    def _abort(self, request_id: str) -> None:
        self._engine.abort_request(request_id)
        reader = self._readers.pop(request_id, None)
        if reader is not None:
            reader(RequestFailed("the request was aborted."))

    def _run(self) -> None:
        try:
            while True:
                busy = self._engine.has_unfinished_requests() and not self._engine.is_paused
                try:
                    act = self._calls.get(block=not busy)
                    if act is None:
                        break
                    act()
                except queue.Empty:
                    self._step()
        except BaseException as e:  # noqa: BLE001 - readers get it, and check_health
            self._error = e
        self._end(self._error or RequestFailed("the engine was shut down."))

    def _end(self, error: BaseException) -> None:
        for reader in self._readers.values():
            reader(error)
        self._readers.clear()
        self._engine.shutdown()

    def _step(self) -> None:
        """Run a step and pass its outputs to their readers."""
        self._engine.llm.client.step()
        requests = self._engine.requests
        for request_id, state in list(requests.items()):
            try:
                item: Item | None = state.take()
            except Exception as e:  # noqa: BLE001 - of this request alone
                item = e
            if item is not None:
                self._readers[request_id](item)
            if state.ended:
                del requests[request_id]
                del self._readers[request_id]


def _post(loop: asyncio.AbstractEventLoop, outputs: asyncio.Queue[Item], item: Item) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(outputs.put_nowait, item)
