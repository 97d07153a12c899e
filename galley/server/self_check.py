"""The checklists of docs/security.md and docs/reliability.md, held against how a server runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import msgspec

from galley.server.context import Context
from galley.server.protocol.generation import Caps

State = Literal["good", "warn", "bad"]


class Check(msgspec.Struct):
    """One line.

    Attributes:
        name: what is checked.
        state: "bad" where others may do what they should not, "warn" where it depends.
        found: how it is now.
        by: the flag or variable that changes it.
    """

    name: str
    state: State
    found: str
    by: str


def _check(
    name: str, is_good: bool, good: str, otherwise: str, by: str, worst: State = "warn"
) -> Check:
    return Check(name, "good" if is_good else worst, good if is_good else otherwise, by)


def _is_private(ctx: Context) -> bool:
    """Whether only this machine reaches the server."""
    server = ctx.server
    return bool(server.uds) or server.host in ("localhost", "127.0.0.1", "::1")


def checks(ctx: Context) -> list[Check]:
    """All of them, in the order of the pages."""
    return [*_access(ctx), *_surface(ctx), *_limits(ctx), *_privacy(ctx)]


def _access(ctx: Context) -> Iterator[Check]:
    server, is_private = ctx.server, _is_private(ctx)
    where = f"listens on {server.uds or server.host or 'all interfaces'}"
    yield _check("Interface", is_private, where, where, "--host")
    yield _check(
        "API key",
        bool(server.api_key),
        f"{len(server.api_key)} accepted",
        "none: everyone who reaches the server may use it",
        "--api-key, VLLM_API_KEY",
        worst="warn" if is_private else "bad",
    )
    encrypts = server.ssl_certfile is not None
    plain = "HTTP: others on the way can read it, unless a proxy encrypts"
    good = "HTTPS" if encrypts else "HTTP, on this machine alone"
    by = "--ssl-certfile, --ssl-keyfile"
    yield _check("TLS", encrypts or is_private, good, plain, by)


def _surface(ctx: Context) -> Iterator[Check]:
    server = ctx.server
    yield _check(
        "Development routes",
        not ctx.dev_mode,
        "absent",
        "open: anyone can stop the server's work",
        "VLLM_SERVER_DEV_MODE",
        worst="bad",
    )
    profiles = ctx.config.observability.profiler_config.get("profiler")
    yield _check("Profiler routes", not profiles, "absent", "open", "--profiler-config")
    yield _check(
        "This page",
        not server.ui_public,
        "for browsers on this machine",
        "open to other machines",
        "--ui-public, --no-ui",
        worst="warn" if server.api_key else "bad",
    )
    yield _check(
        "API documentation",
        server.disable_fastapi_docs or _is_private(ctx),
        "absent" if server.disable_fastapi_docs else "for this machine alone",
        "/docs and /openapi.json are served",
        "--disable-fastapi-docs",
    )
    yield _check(
        "Pages of other sites",
        "*" not in server.allowed_origins,
        f"may call: {', '.join(server.allowed_origins) or 'none'}",
        "may call, whatever the site",
        "--allowed-origins",
    )
    yield _check(
        "Templates of requests",
        not server.trust_request_chat_template,
        "refused",
        "run, in a process with limits",
        "--trust-request-chat-template",
    )
    yield _check(
        "Adapters at run time",
        not ctx.update_adapters,
        "clients cannot load any",
        "clients may load files of this machine",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
    )
    user = os.geteuid()
    yield _check("Privileges", user != 0, f"runs as user {user}", "runs as root", "the service")


def _limits(ctx: Context) -> Iterator[Check]:
    server, n = ctx.server, f"n up to {ctx.caps.n:,}"
    capped = ctx.caps.n < Caps().n
    yield _check("Answers to one request", capped, n, n, "VLLM_MAX_N_SEQUENCES")
    sequences, tokens = server.max_num_queued_reqs, server.max_num_queued_tokens
    yield _check(
        "Requests in flight",
        bool(sequences or tokens),
        " and ".join(
            f"at most {most:,} {what}"
            for most, what in ((sequences, "sequences"), (tokens, "prompt tokens"))
            if most
        ),
        "no limit: under overload the queue grows",
        "--max-num-queued-reqs, --max-num-queued-tokens",
    )
    drain = server.shutdown_timeout
    yield _check(
        "Shutdown",
        drain > 0,
        f"requests get {drain} s to finish",
        "requests in flight are aborted",
        "--shutdown-timeout",
    )
    timeout = server.engine_step_timeout
    yield _check(
        "Hanging engine",
        timeout > 0,
        f"restarted after {timeout:g} s",
        "is not noticed",
        "--engine-step-timeout",
    )


def _privacy(ctx: Context) -> Iterator[Check]:
    logs = ctx.server.enable_log_requests
    yield _check("Prompts in the log", not logs, "not written", "written", "--enable-log-requests")
    yield _check(
        "Stored answers",
        not ctx.store_responses,
        "none",
        "kept in memory until the server ends",
        "VLLM_ENABLE_RESPONSES_API_STORE",
    )
    cache = ctx.config.cache
    keys = f"keys are {cache.prefix_caching_hash_algo}"
    yield _check(
        "Prefix cache",
        not cache.enable_prefix_caching or cache.prefix_caching_hash_algo.startswith("sha256"),
        keys if cache.enable_prefix_caching else "off",
        keys,
        "--prefix-caching-hash-algo",
    )
