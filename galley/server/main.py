"""The API server process: loads tokenizer and template, connects to the engines, serves HTTP.

It starts while the engine core loads the model. Until an engine is up, /health answers 503 and
requests wait in the engine client.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galley.config import EngineConfig, ModelInfo
from galley.config.pooling import pooling_settings
from galley.config.resolve import Machine, resolve
from galley.config.server import LoRAModule, ServerConfig
from galley.engine.control import ADAPTERS, Serving
from galley.errors import ConfigError
from galley.frontend.input_processor import InputProcessor, default_sampling_params, limits_of
from galley.frontend.no_engine import NoEngineClient
from galley.frontend.output_processor import OutputProcessor, figures_of
from galley.frontend.remote_client import LauncherLink, RemoteClient
from galley.loader import read_model_info, resolve_source, resolve_tokenizer
from galley.observability.http_metrics import HttpMetrics
from galley.observability.logging import configure_logging, silence_access_log
from galley.observability.metrics import EngineMetrics
from galley.observability.observer import BatchingObserver, Observers, RequestObserver
from galley.observability.registry import exposition, new_registry
from galley.observability.reliability import ReliabilityMetrics
from galley.observability.sleep_metrics import SleepMetrics
from galley.observability.stats_line import StatsLine
from galley.runner.logits_processor import processor_classes
from galley.server.admission import Admission
from galley.server.app import build_app
from galley.server.certificates import Certificates
from galley.server.context import Context
from galley.server.environment import Environment, read_environment
from galley.server.hosting import open_hosting
from galley.server.listener import Listener, uvicorn_config
from galley.server.output_log import OutputLog
from galley.server.sagemaker_sessions import open_sessions
from galley.server.shared_counts import SharedCounts

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from galley.chat.parsers import OutputFormats
    from galley.chat.templates import ChatRenderer
    from galley.observability.adapter_metrics import AdapterInfo
    from galley.observability.tracing import RequestTracer
    from galley.server.adapters import ServedAdapters
    from galley.text import Tokenizer

logger = logging.getLogger(__name__)

#: Seconds between two updates of the metrics that other processes read.
METRICS_INTERVAL = 1.0
#: Seconds between two checks for replaced TLS files.
CERTIFICATE_INTERVAL = 2.0


@dataclass(frozen=True)
class ServedModel:
    """The model without its weights."""

    config: EngineConfig
    model_info: ModelInfo
    name: str
    tokenizer: Tokenizer | None
    chat: ChatRenderer | None
    formats: OutputFormats | None


def run(
    sock: socket.socket,
    link: LauncherLink,
    config: EngineConfig,
    server: ServerConfig,
    sources: Mapping[str, str],
    renders_only: bool = False,
) -> None:
    """Serve on `sock` until a signal comes.

    Args:
        sources: where the values that were given came from, by name of the flag.
        renders_only: there are no engines.

    Raises:
        ConfigError, ModelError: before anything is served.
    """
    configure_logging()
    environment = read_environment()
    server = environment.apply(server)
    if environment.store_responses and server.api_server_count > 1:
        raise ConfigError(
            "VLLM_ENABLE_RESPONSES_API_STORE=1 needs --api-server-count 1: each process would keep "
            "its own responses.",
            field="api_server_count",
        )
    if server.disable_access_log_for_endpoints:
        silence_access_log(server.disable_access_log_for_endpoints.split(","))
    model = load_model(config, server)
    client_type = NoEngineClient if renders_only else RemoteClient
    _run_loop(_serve(sock, link, model, server, environment, sources, client_type))


def load_model(config: EngineConfig, server: ServerConfig) -> ServedModel:
    """Tokenizer, template and facts of the model, from its files' headers."""
    source = resolve_source(config.model, config.load)
    model_info = read_model_info(source)
    tokenizer = chat = trial = None
    if not config.model.skip_tokenizer_init:
        from galley.chat.templates import ChatRenderer
        from galley.text import load_tokenizer

        tokenizer = load_tokenizer(resolve_tokenizer(config.model, config.load, source))
        chat = ChatRenderer.of(tokenizer, server.chat_template, server.chat_template_content_format)
        if chat is not None:
            trial = chat.start_trial()
    resolved = resolve(config, Machine.detect(), model_info)
    if trial is not None:
        trial()
    return ServedModel(
        resolved, model_info, source.name, tokenizer, chat, formats_of(server, tokenizer)
    )


def formats_of(server: ServerConfig, tokenizer: Tokenizer | None = None) -> OutputFormats | None:
    """Formats of reasoning and tool calls; None where none is named.

    Raises ConfigError for a name that does not exist, or a plugin that cannot be loaded.
    """
    if not (server.reasoning_parser or server.tool_call_parser):
        return None
    from galley.chat.parsers import open_formats

    return open_formats(
        server.reasoning_parser,
        server.tool_call_parser,
        {
            "tool_parser_plugin": server.tool_parser_plugin,
            "reasoning_parser_plugin": server.reasoning_parser_plugin,
        },
        () if tokenizer is None else tokenizer.added_tokens.values(),
    )


@dataclass(frozen=True)
class Monitoring:
    """The observers of this process's requests.

    Attributes:
        metrics: None with --disable-log-stats.
        derived: see `exposition`.
    """

    registry: CollectorRegistry
    metrics: EngineMetrics | None
    admission: Admission
    stats_line: StatsLine
    tracer: RequestTracer | None
    output_log: OutputLog | None
    observers: BatchingObserver
    derived: tuple[AdapterInfo, ...] = ()

    def exposition(self) -> tuple[bytes, str]:
        """The text of /metrics and its content type."""
        self.observers.catch_up()
        return exposition(self.registry, self.derived)

    def write_line(self) -> None:
        self.observers.catch_up()
        self.stats_line.write()


def open_adapters(
    model: ServedModel, server: ServerConfig, link: LauncherLink, environment: Environment
) -> ServedAdapters | None:
    """The adapters that are offered; None without --enable-lora.

    Raises ConfigError for one that cannot be used.
    """
    modules = [LoRAModule.read(text) for text in server.lora_modules]
    if not model.config.lora.enable_lora:
        if modules:
            raise ConfigError("--lora-modules needs --enable-lora.", field="lora_modules")
        return None
    from galley.frontend.adapters import AdapterLoader
    from galley.server.adapters import ServedAdapters
    from galley.server.resolvers import open_resolvers

    assert link.directory is not None
    loader = AdapterLoader(model.config, model.model_info, Path(link.directory, ADAPTERS))
    resolvers = open_resolvers(os.environ) if environment.update_adapters else []
    adapters = ServedAdapters(loader, model.config.model.served_model_name, resolvers)
    for module in modules:
        adapters.load_static(module)
    return adapters


def start_monitoring(
    model: ServedModel,
    server: ServerConfig,
    link: LauncherLink,
    adapters: ServedAdapters | None = None,
) -> Monitoring:
    """Raises ConfigError where tracing is asked for and cannot be."""
    registry, stats_line = new_registry(), StatsLine()
    metrics: EngineMetrics | None = None
    observers: list[RequestObserver] = []
    if not model.config.observability.disable_log_stats:
        metrics = engine_metrics(registry, model.config, model.model_info)
        name = model.config.model.served_model_name[0]
        observers = [metrics, ReliabilityMetrics(registry, name), stats_line]
    derived: tuple[AdapterInfo, ...] = ()
    if metrics is not None and adapters is not None:
        from galley.observability.adapter_metrics import AdapterMetrics

        most = model.config.lora.max_loras
        by_adapter = AdapterMetrics(registry, most, adapters.name_of)
        observers.append(by_adapter)
        derived = (by_adapter.info,)
    tracer = open_tracer_of(model.config)
    if tracer is not None:
        observers.append(tracer)
    output_log = OutputLog(server.max_log_len) if server.enable_log_outputs else None
    if output_log is not None:
        observers.append(output_log)
    admission = make_admission(server, link, None if metrics is None else metrics.rejected)
    observers.append(admission)
    batched = BatchingObserver(Observers(*observers))
    return Monitoring(
        registry, metrics, admission, stats_line, tracer, output_log, batched, derived
    )


def make_admission(
    server: ServerConfig, link: LauncherLink, rejected: Callable[[str], None] | None
) -> Admission:
    """Limits that count the requests of all API servers."""
    limits = server.max_num_queued_reqs, server.max_num_queued_tokens
    shared = None
    if server.api_server_count > 1 and link.directory is not None and any(limits):
        shared = SharedCounts(Path(link.directory) / "admission", link.client_index)
    return Admission(*limits, rejected, shared)


def make_client(
    link: LauncherLink,
    model: ServedModel,
    environment: Environment,
    observer: RequestObserver,
    client_type: type[RemoteClient] = RemoteClient,
) -> RemoteClient:
    ends = model.tokenizer.end_ids if model.tokenizer else ()
    limits = limits_of(model.config, model.model_info, environment.caps.n, ends)
    inputs = InputProcessor(
        limits,
        model.tokenizer,
        seed=model.config.model.seed,
        client_index=link.client_index,
        structured=model.config.structured.settings,
        pooling=pooling_settings(model.config.model, model.model_info),
        processors=processor_classes(model.config),
    )
    interval, figures = model.config.scheduler.stream_interval, figures_of(model.config)
    outputs = OutputProcessor(model.tokenizer, observer, interval, figures)
    return client_type(link, inputs, outputs)


def make_context(
    client: RemoteClient,
    model: ServedModel,
    server: ServerConfig,
    environment: Environment,
    monitoring: Monitoring,
    adapters: ServedAdapters | None,
    sources: Mapping[str, str],
) -> Context:
    optional: dict[str, Any] = {}
    if environment.dev_mode:
        logger.warning(
            "VLLM_SERVER_DEV_MODE=1: routes that can stop the server are open to anyone. "
            "Never do this in production."
        )
        optional["sleep_metrics"] = SleepMetrics(monitoring.registry)
        if monitoring.metrics is not None:
            optional["on_sleep"] = monitoring.metrics.sleeps
    if server.tool_call_parser:
        from galley.observability.tool_metrics import ToolCallMetrics  # for this flag alone

        name = model.config.model.served_model_name[0]
        optional["tool_metrics"] = ToolCallMetrics(monitoring.registry, name)
    return Context(
        engine=client,
        config=model.config,
        server=server,
        tokenizer=model.tokenizer,
        chat=model.chat,
        formats=model.formats,
        pooling=pooling_settings(model.config.model, model.model_info),
        metrics=monitoring.exposition,
        defaults=default_sampling_params(model.config, model.model_info),
        caps=environment.caps,
        root=model.name,
        admit=monitoring.admission.check,
        renders_only=isinstance(client, NoEngineClient),
        any_model_name=environment.any_model_name,
        adapters=adapters,
        update_adapters=environment.update_adapters,
        store_responses=environment.store_responses,
        dev_mode=environment.dev_mode,
        output_log=monitoring.output_log,
        hosting=open_hosting(os.environ),
        sessions=open_sessions(os.environ),
        sources=sources,
        **optional,
    )


async def _serve(
    sock: socket.socket,
    link: LauncherLink,
    model: ServedModel,
    server: ServerConfig,
    environment: Environment,
    sources: Mapping[str, str],
    client_type: type[RemoteClient],
) -> None:
    adapters = open_adapters(model, server, link, environment)
    monitoring = start_monitoring(model, server, link, adapters)
    client = make_client(link, model, environment, monitoring.observers, client_type)
    client.start()
    ctx = make_context(client, model, server, environment, monitoring, adapters, sources)
    app = build_app(ctx, HttpMetrics(monitoring.registry))
    http = uvicorn_config(app, server, environment.keep_alive)
    listener = Listener(
        http,
        on_serving=lambda: link.channel.send(Serving()),
        drain=server.shutdown_timeout,
        on_draining=ctx.load.drain,
        is_busy=lambda: ctx.load.count > 0 or client.num_unfinished > 0,
        on_drained=client.close,
    )
    # Objects made at start-up live as long as the process: the collector need not scan them again.
    gc.collect()
    gc.freeze()
    gc.enable()
    periodic = [
        _every(environment.stats_interval, monitoring.write_line),
        # Other API servers serve the metrics that are counted here.
        _every(METRICS_INTERVAL, monitoring.observers.catch_up),
    ]
    if server.enable_ssl_refresh and http.ssl is not None:
        periodic.append(
            _every(CERTIFICATE_INTERVAL, Certificates(http.ssl, server).reload_if_changed)
        )
    tickers = [asyncio.ensure_future(work) for work in periodic]
    try:
        await listener.serve([sock])
    finally:
        for ticker in tickers:
            ticker.cancel()
        client.close()
        if monitoring.tracer is not None:
            await asyncio.to_thread(monitoring.tracer.shutdown)


def open_tracer_of(config: EngineConfig) -> RequestTracer | None:
    """Raises ConfigError where tracing is asked for and cannot be."""
    observing = config.observability
    if not observing.otlp_traces_endpoint:
        return None
    from galley.observability.tracing import PROTOCOL, open_tracer

    return open_tracer(
        observing.otlp_traces_endpoint,
        os.environ.get(PROTOCOL) or "grpc",
        config.model.served_model_name[0],
        detailed=bool(observing.collect_detailed_traces),
    )


def engine_metrics(
    registry: CollectorRegistry, config: EngineConfig, model_info: ModelInfo
) -> EngineMetrics:
    """The engines' metrics under the model's first name."""
    length = config.model.max_model_len
    longest = model_info.max_position if length in (None, -1) else int(length or 0)
    return EngineMetrics.of(registry, config, longest)


async def _every(seconds: float, act: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(seconds)
        act()


def _run_loop(main: Coroutine[Any, Any, None]) -> None:
    import uvloop

    uvloop.run(main)
