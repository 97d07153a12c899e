"""Configuration of the HTTP server: one frozen field = one flag of vLLM's name.

The docstring under a field is the flag's help. Values are checked when the object is made;
nothing here changes afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from galley.errors import ConfigError


@dataclass(frozen=True)
class ServerConfig:
    """Frontend"""

    host: str | None = None
    """Address to listen on. Default: all interfaces."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    uds: str | None = None
    """Path of a Unix socket to listen on, in place of host and port."""
    api_server_count: int = 1
    """API server processes that share the port and the engine; for many short requests or many
    small streams, when one process is busy all the time."""
    api_key: tuple[str, ...] = ()
    """Keys of which a request under /v1, /v2, /inference or /cohere must bear one
    (`Authorization: Bearer KEY`). Default: VLLM_API_KEY; without either, no key is asked for."""
    chat_template: str | None = None
    """Chat template that wins over the model's own: a file, or the template itself in one line."""
    chat_template_content_format: Literal["auto", "string", "openai"] = "auto"
    """How message content is given to the template: as a `string`, or as a list of parts in
    `openai` form. `auto` looks at the template."""
    trust_request_chat_template: bool = False
    """Let requests bring their own `chat_template`."""
    default_chat_template_kwargs: dict[str, object] = field(default_factory=dict)
    """JSON object of template variables for every chat request; a request's own win."""
    response_role: str = "assistant"
    """Role of the answer to a chat request with `add_generation_prompt`."""
    return_tokens_as_token_ids: bool = False
    """Write `token_id:N` in place of token texts in logprobs, so that tokens that are not valid
    text can be told apart."""
    enable_prompt_tokens_details: bool = False
    """Report cached prompt tokens in `usage.prompt_tokens_details`."""
    enable_per_request_metrics: bool = False
    """Tell in the answers to chats and completions (`metrics`; in a stream, beside its usage) how
    long the request waited, how long its first token took, and the others."""
    enable_force_include_usage: bool = False
    """Send usage at the end of every stream, asked for or not."""
    enable_tokenizer_info_endpoint: bool = False
    """Serve /tokenizer_info: special tokens and chat template, which may hold more than all should
    know."""
    enable_server_load_tracking: bool = False
    """Count requests in flight for /load."""
    enable_request_id_headers: bool = False
    """Answer with an X-Request-Id header: the client's own, or a new one."""
    enable_log_requests: bool = False
    """Log each request with its parameters and prompt."""
    enable_log_outputs: bool = False
    """Log each answer, too, once it is complete. Needs --enable-log-requests."""
    log_error_stack: bool = False
    """Log where in the code an error was found that a request is answered with."""
    max_log_len: int | None = None
    """Most characters of a prompt or an answer, or token ids, that are logged. Default: all."""
    disable_uvicorn_access_log: bool = False
    """Write no access log."""
    disable_access_log_for_endpoints: str | None = None
    """Paths without access log, separated by commas (`/health,/metrics`)."""
    uvicorn_log_level: Literal["critical", "error", "warning", "info", "debug", "trace"] = "info"
    """Log level of the HTTP layer."""
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
    """TLS: file of certificates that client certificates are checked against."""
    ssl_cert_reqs: int = 0
    """TLS: client certificates are 0 not asked for, 1 optional, 2 required."""
    ssl_ciphers: str | None = None
    """TLS: ciphers for TLS 1.2 and older, in OpenSSL's notation."""
    enable_ssl_refresh: bool = False
    """TLS: use certificates that have been replaced on disk, for new connections."""
    middleware: tuple[str, ...] = ()
    """Further ASGI middleware by import path (`package.module.Class`, or a function of request and
    call_next); the last one named is the outermost."""
    root_path: str | None = None
    """Path prefix under which a proxy publishes the server."""
    disable_fastapi_docs: bool = False
    """Serve no /docs, /redoc and /openapi.json."""
    h11_max_incomplete_event_size: int = 4_194_304
    """Most bytes of request line and headers."""
    h11_max_header_count: int = 256
    """Most header fields of a request."""
    max_request_body_bytes: int = 64 * 2**20
    """Most bytes of a request body (accepts 64M)."""
    sse_keep_alive_interval: int = 0
    """Seconds of silence after which a stream sends a comment, so that proxies keep it; 0 = never.
    """
    max_num_queued_reqs: int | None = None
    """Most sequences in flight, waiting or running; more are answered 503. Default: no limit."""
    max_num_queued_tokens: int | None = None
    """Most prompt tokens that wait for their first token; while they are reached, requests are
    answered 503. About prompt throughput × the TTFT to be kept."""
    logging_config: dict[str, object] = field(default_factory=dict)
    """JSON object: `log_level`, `formatter` (`text`, or `json` for one JSON object a line),
    `pylogging_config_file` (a file for Python's logging.config), `configure_logging`."""
    log_level: Literal["CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG", "NOTSET"] | None = None
    """Level of the log. Default: VLLM_LOGGING_LEVEL, else INFO."""
    log_config_file: str | None = None
    """JSON file for Python's logging.config.dictConfig. Default: VLLM_LOGGING_CONFIG_PATH."""
    fingerprint_mode: Literal["full", "hash", "custom", "none"] = "full"
    """What `system_fingerprint` tells: version and configuration hash, the `hash` alone, a
    `custom` value, or nothing."""
    fingerprint_value: str | None = None
    """The fingerprint with --fingerprint-mode custom."""
    shutdown_timeout: int = 0
    """Seconds that requests in flight get to finish at shutdown; 0 aborts them."""
    engine_step_timeout: float = 60.0
    """Seconds without progress after which a busy engine is killed and started anew; its requests
    go on in the next one. 0 = never."""
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
        if self.fingerprint_mode == "custom" and not self.fingerprint_value:
            raise ConfigError(
                "--fingerprint-mode custom needs --fingerprint-value.", field="fingerprint_value"
            )

    def logging_environment(self) -> dict[str, str]:
        """The flags of the log as the variables that every process reads.

        Raises:
            ConfigError: a key or value of --logging-config that does not exist.
        """
        given = dict(self.logging_config)
        if self.log_level is not None:
            given["log_level"] = self.log_level
        if self.log_config_file is not None:
            given["pylogging_config_file"] = self.log_config_file
        found: dict[str, str] = {}
        for key, value in given.items():
            if key not in _LOGGING:
                raise ConfigError(
                    f"--logging-config has no key {key!r}; one of {', '.join(_LOGGING)}.",
                    field="logging_config",
                )
            if value is not None:
                text = str(int(value)) if isinstance(value, bool) else str(value)
                found[f"GALLEY_{_LOGGING[key]}"] = text
        return found


_LOGGING = {
    "log_level": "LOGGING_LEVEL",
    "formatter": "LOGGING_FORMAT",
    "configure_logging": "CONFIGURE_LOGGING",
    "pylogging_config_file": "LOGGING_CONFIG_PATH",
}
