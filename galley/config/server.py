"""Configuration of the HTTP server: each frozen field is a flag with vLLM's name.

The docstring under a field is the flag's help. Values are checked when the object is made; it does
not change afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Literal

from galley.errors import ConfigError


@dataclass(frozen=True)
class LoRAModule:
    """An adapter of --lora-modules."""

    name: str
    path: str
    base_model_name: str | None = None

    @staticmethod
    def read(text: str) -> LoRAModule:
        """From NAME=PATH, or a JSON object of the fields. Raises ConfigError."""
        if not text.startswith("{"):
            name, _, path = text.partition("=")
            fields: object = {"name": name, "path": path}
        else:
            try:
                fields = json.loads(text)
            except ValueError as error:
                raise ConfigError(
                    f"--lora-modules {text:.200} is not valid JSON: {error}", field="lora_modules"
                ) from None
        assert isinstance(fields, dict)
        fields.pop("is_3d_lora_weight", None)  # the adapter's files tell
        unknown = set(fields) - {"name", "path", "base_model_name"}
        values = [fields.get("name"), fields.get("path")]
        if unknown or not all(isinstance(value, str) and value for value in values):
            raise ConfigError(
                f"--lora-modules {text:.200} must be NAME=PATH, or a JSON object of name, path and "
                "base_model_name.",
                field="lora_modules",
            )
        return LoRAModule(**fields)


@dataclass(frozen=True)
class ServerConfig:
    """Frontend

    The HTTP server: address, keys, TLS, limits, logs, chat template, tools.
    """

    host: str | None = None
    """Address to listen on. Default: all interfaces."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    uds: str | None = None
    """Path of a Unix socket to listen on, instead of host and port."""
    api_server_count: int = 1
    """Number of API server processes, which share the port and the engine. For many short requests
    or many small streams, when one process is always busy."""
    api_key: tuple[str, ...] = ()
    """Accepted keys: requests under /v1, /v2, /inference, /cohere and /ui/api must send one of them
    (`Authorization: Bearer KEY`). Default: VLLM_API_KEY; without either, no key is required."""
    chat_template: str | None = None
    """Chat template that replaces the model's own: a file, or the template itself in one line."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    """How message content is passed to the template: as a `string`, or as a list of parts in
    `openai` form. `auto` inspects the template."""
    trust_request_chat_template: bool = False
    """Allow requests to set their own `chat_template`."""
    default_chat_template_kwargs: dict[str, object] = field(default_factory=dict)
    """JSON object of template variables for every chat request; a request may override them."""
    enable_auto_tool_choice: bool = False
    """Let the model decide whether it calls tools (`tool_choice` `auto`, the default of requests
    with tools). Needs --tool-call-parser."""
    exclude_tools_when_tool_choice_none: bool = False
    """Leave the tools out of the prompt of requests with `tool_choice` `none`."""
    tool_call_parser: str | None = None
    """Format in which the model writes tool calls, by name: `hermes`, `llama3_json`, `mistral` …
    (docs/tool-calling.md lists them)."""
    tool_parser_plugin: str = ""
    """Python file with formats of one's own, which --tool-call-parser may name."""
    reasoning_parser: str = ""
    """Format in which the model writes its reasoning, by name: `deepseek_r1`, `qwen3` …
    (docs/tool-calling.md lists them). Default: reasoning is part of the content."""
    reasoning_parser_plugin: str = ""
    """Python file with formats of one's own, which --reasoning-parser may name."""
    lora_modules: tuple[str, ...] = ()
    """Adapters to offer from the start: `name=path` each, or a JSON object of `name`, `path` and
    `base_model_name`. Needs --enable-lora."""
    response_role: str = "assistant"
    """Role of the response to a chat request with `add_generation_prompt`."""
    return_tokens_as_token_ids: bool = False
    """Write `token_id:N` instead of token texts in logprobs, so that tokens that are not valid text
    can be distinguished."""
    enable_prompt_tokens_details: bool = False
    """Report cached prompt tokens in `usage.prompt_tokens_details`."""
    enable_per_request_metrics: bool = False
    """Report in responses to chats and completions (`metrics`; in a stream, next to its usage) the
    queue time, the time to first token and the time between tokens."""
    enable_force_include_usage: bool = False
    """Send usage in every event of a stream and at its end, even if not requested."""
    enable_tokenizer_info_endpoint: bool = False
    """Serve /tokenizer_info: special tokens and the chat template, which may be confidential."""
    enable_scale_out: bool = False
    """Serve the routes that split a server in two: /v1/…/render (a request becomes token ids),
    /inference/v1/generate (token ids in and out) and /v1/…/derender (token ids become the answer).
    """
    tokens_only: bool = False
    """Serve /inference/v1/generate and no other route that generates; no tokenizer is loaded."""
    strict_requests: bool = False
    """Refuse requests with unknown fields (400). Default: the header X-Ignored-Fields of the answer
    names them."""
    enable_server_load_tracking: bool = False
    """Count requests in flight for /load."""
    enable_request_id_headers: bool = False
    """Send an X-Request-Id header with responses: the client's own, or a new one."""
    enable_log_requests: bool = False
    """Log each request with its parameters and prompt."""
    enable_log_outputs: bool = False
    """Log each complete output. Needs --enable-log-requests."""
    log_error_stack: bool = False
    """Log the stack trace of errors that are returned to clients."""
    max_log_len: int | None = None
    """Maximum logged characters, or token ids, of a prompt or an output. Default: all."""
    disable_uvicorn_access_log: bool = False
    """Write no access log."""
    disable_access_log_for_endpoints: str | None = None
    """Paths excluded from the access log, separated by commas (`/health,/metrics`)."""
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = "info"
    """Log level of the HTTP layer; a higher --log-level wins."""
    allow_credentials: bool = False
    """CORS: allow credentials."""
    allowed_origins: tuple[str, ...] = ()
    """CORS: origins that may call from a browser, as a JSON list; `["*"]` for all. Default: none,
    and no CORS headers are sent."""
    allowed_methods: tuple[str, ...] = ("*",)
    """CORS: allowed methods, as a JSON list."""
    allowed_headers: tuple[str, ...] = ("*",)
    """CORS: allowed headers, as a JSON list."""
    ssl_keyfile: str | None = None
    """TLS: file of the private key."""
    ssl_certfile: str | None = None
    """TLS: file of the certificate; switches HTTPS on."""
    ssl_ca_certs: str | None = None
    """TLS: file of CA certificates that client certificates are verified against."""
    ssl_cert_reqs: int = 0
    """TLS: client certificates are 0 not requested, 1 optional, 2 required."""
    ssl_ciphers: str | None = None
    """TLS: ciphers for TLS 1.2 and older, in OpenSSL's notation."""
    enable_ssl_refresh: bool = False
    """TLS: reload certificates that were replaced on disk, for new connections."""
    middleware: tuple[str, ...] = ()
    """Additional ASGI middleware by import path (`package.module.Class`, or a function of request
    and call_next); the last one is the outermost."""
    root_path: str | None = None
    """Path prefix under which a proxy publishes the server."""
    disable_fastapi_docs: bool = False
    """Serve no /docs, /redoc and /openapi.json."""
    ui: bool = True
    """Serve /ui: a page to chat with the model, and to see what the engine does. Read-only, and
    for browsers on this machine alone; its data need an API key where one is set."""
    ui_public: bool = False
    """Let browsers on other machines use /ui, too."""
    h11_max_incomplete_event_size: int = 4_194_304
    """Maximum bytes of request line and headers."""
    h11_max_header_count: int = 256
    """Maximum header fields of a request."""
    max_request_body_bytes: int = 64 * 2**20
    """Maximum bytes of a request body (accepts 64M)."""
    sse_keep_alive_interval: int = 0
    """Idle seconds after which a stream sends a comment, so that proxies keep it open; 0 = never.
    """
    max_num_queued_reqs: int | None = None
    """Maximum sequences in flight, waiting or running; further ones get a 503. Default: no limit.
    """
    max_num_queued_tokens: int | None = None
    """Maximum prompt tokens of requests without a first token; beyond it requests get a 503. A good
    value is prompt throughput × target TTFT."""
    logging_config: dict[str, object] = field(default_factory=dict)
    """JSON object: `log_level`, `formatter` (`text`, or `json` for one JSON object a line),
    `pylogging_config_file` (a file for Python's logging.config), `configure_logging`."""
    log_level: Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET"] | None = None
    """Level of the log. Default: VLLM_LOGGING_LEVEL, else INFO."""
    log_config_file: str | None = None
    """JSON file for Python's logging.config.dictConfig. Default: VLLM_LOGGING_CONFIG_PATH."""
    fingerprint_mode: Literal["full", "hash", "custom", "none"] = "full"
    """Content of `system_fingerprint`: version and configuration hash (`full`), only the `hash`, a
    `custom` value, or `none`."""
    fingerprint_value: str | None = None
    """The fingerprint with --fingerprint-mode custom."""
    shutdown_timeout: int = 0
    """Seconds that requests in flight get to finish at shutdown; 0 aborts them."""
    engine_step_timeout: float = 60.0
    """Seconds without progress after which a busy engine is killed and restarted; its requests
    continue in the new one. 0 = never."""
    max_engine_restarts: int = 5
    """Most restarts in a row within 60 seconds that bring no progress. After one more such death of
    an engine the server fails all requests and exits with code 1; an engine that computes anything
    between its deaths is restarted without limit."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of range, naming the flag."""
        for ok, name, want in (
            (0 <= self.port <= 65_535, "port", "in 0 … 65535"),
            (1 <= self.api_server_count <= 64, "api_server_count", "in 1 … 64"),
            (self.max_log_len is None or self.max_log_len >= 0, "max_log_len", "at least 0"),
            (self.ssl_cert_reqs in (0, 1, 2), "ssl_cert_reqs", "0, 1 or 2"),
            (
                self.h11_max_incomplete_event_size >= 1024,
                "h11_max_incomplete_event_size",
                "at least 1024",
            ),
            (self.h11_max_header_count >= 8, "h11_max_header_count", "at least 8"),
            (self.max_request_body_bytes >= 1024, "max_request_body_bytes", "at least 1024"),
            (self.sse_keep_alive_interval >= 0, "sse_keep_alive_interval", "at least 0"),
            (
                self.max_num_queued_reqs is None or self.max_num_queued_reqs >= 1,
                "max_num_queued_reqs",
                "at least 1",
            ),
            (
                self.max_num_queued_tokens is None or self.max_num_queued_tokens >= 1,
                "max_num_queued_tokens",
                "at least 1",
            ),
            (self.shutdown_timeout >= 0, "shutdown_timeout", "at least 0"),
            (self.engine_step_timeout >= 0, "engine_step_timeout", "at least 0"),
            (self.max_engine_restarts >= 0, "max_engine_restarts", "at least 0"),
        ):
            if not ok:
                option = "--" + name.replace("_", "-")
                raise ConfigError(
                    f"{option} must be {want}, got {getattr(self, name)}.", field=name
                )
        if self.ssl_certfile is None and (self.ssl_keyfile or self.ssl_ca_certs):
            raise ConfigError("TLS needs --ssl-certfile.", field="ssl_certfile")
        if self.enable_ssl_refresh and self.ssl_certfile is None:
            raise ConfigError("--enable-ssl-refresh needs --ssl-certfile.", field="ssl_certfile")
        if self.enable_log_outputs and not self.enable_log_requests:
            raise ConfigError(
                "--enable-log-outputs needs --enable-log-requests.", field="enable_log_outputs"
            )
        if self.enable_auto_tool_choice and not self.tool_call_parser:
            raise ConfigError(
                "--enable-auto-tool-choice requires --tool-call-parser.",
                field="enable_auto_tool_choice",
            )
        if self.ui_public and not self.ui:
            raise ConfigError("--ui-public contradicts --no-ui.", field="ui_public")
        if self.fingerprint_mode == "custom" and not self.fingerprint_value:
            raise ConfigError(
                "--fingerprint-mode custom needs --fingerprint-value.", field="fingerprint_value"
            )

    def logging_environment(self) -> dict[str, str]:
        """The logging flags as the environment variables that every process reads.

        Raises:
            ConfigError: a key or value of --logging-config that does not exist.
        """
        settings = dict(self.logging_config)
        if self.log_level is not None:
            settings["log_level"] = self.log_level
        if self.log_config_file is not None:
            settings["pylogging_config_file"] = self.log_config_file
        variables: dict[str, str] = {}
        for key, value in settings.items():
            if key not in _LOGGING:
                raise ConfigError(
                    f"--logging-config has no key {key!r}; one of {', '.join(_LOGGING)}.",
                    field="logging_config",
                )
            if value is not None:
                text = str(int(value)) if isinstance(value, bool) else str(value)
                variables[f"GALLEY_{_LOGGING[key]}"] = text
        return variables


_LOGGING = {
    "log_level": "LOGGING_LEVEL",
    "formatter": "LOGGING_FORMAT",
    "configure_logging": "CONFIGURE_LOGGING",
    "pylogging_config_file": "LOGGING_CONFIG_PATH",
}
