"""`galley run-batch`: answer a file of requests in OpenAI's batch format.

The requests go to a private server on a Unix socket, so that they are answered exactly as by
`galley serve`. A line that cannot be read or served gets an error in the output and does not stop
the others.

    input  {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {…}}
    output {"id": …, "custom_id": "1", "response": {"status_code", "request_id", "body"}, "error"}
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from galley.cli.parser import CommandParser, engine_flags, make
from galley.config import EngineConfig
from galley.config.resolve import SECTIONS, from_kwargs
from galley.config.server import ServerConfig
from galley.errors import ConfigError

S = TypeVar("S")
T = TypeVar("T")

#: Endpoints that a line may name.
URLS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
    *("/v1/embeddings", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
)
#: Failures that are printed; the rest are counted.
MOST_SHOWN = 10
#: Requests in flight per sequence that the engine runs at once, so that it is never idle.
AHEAD = 4
#: Attempts per request if the connection breaks before a response.
TRIES = 3
_PR_SET_PDEATHSIG = 1
#: Flags of `galley serve` on how it is reached and protected: a batch's server is private, and with
#: --enable-metrics open at --host.
OF_SERVERS = (
    *("host", "uds", "api_key", "root_path", "shutdown_timeout", "ui", "ui_public"),
    *("allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers"),
    *("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers"),
    *("enable_ssl_refresh", "disable_fastapi_docs", "enable_scale_out", "tokens_only"),
    *("enable_request_id_headers", "disable_uvicorn_access_log", "uvicorn_log_level"),
    *("disable_access_log_for_endpoints", "h11_max_incomplete_event_size"),
    *("h11_max_header_count", "max_num_queued_reqs", "max_num_queued_tokens"),
)


@dataclass(frozen=True)
class BatchFlags:
    """Batch"""

    input_file: str | None = None
    """File of requests, one JSON object a line: a path, or an http(s) URL."""
    output_file: str | None = None
    """File of answers: a path, or an http(s) URL that it is PUT to."""
    output_tmp_dir: str | None = None
    """Folder in which a file for a URL is written first."""
    enable_metrics: bool = False
    """Serve /metrics, and the rest of the API, at --host and --port while the batch runs."""
    host: str | None = None
    """Address that --enable-metrics listens on; its port is --port."""
    url: str = "0.0.0.0"
    """Older name of --host."""
    resume: bool = False
    """Keep the answers that the output file has, and go on after them."""
    fail_on_error: bool = False
    """Exit with 1 if a request failed. A line without `custom_id` always does that."""

    def __post_init__(self) -> None:
        for name in ("input_file", "output_file"):
            if not getattr(self, name):
                raise ConfigError(f"--{name.replace('_', '-')} is needed.", field=name)
        if self.resume and is_url(str(self.output_file)):
            raise ConfigError("--resume needs an --output-file that is a path.", field="resume")


def is_url(text: str) -> bool:
    return text.startswith(("http://", "https://"))


@dataclass(frozen=True)
class Address:
    """Address of the server: a Unix socket, or a port of this machine."""

    path: str | None
    port: int = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self.path is not None:
            return await asyncio.open_unix_connection(self.path)
        return await asyncio.open_connection("127.0.0.1", self.port)


class Line(NamedTuple):
    """A line of the input that is not blank, and its number in the file."""

    number: int
    text: str


@dataclass
class UsageCounter:
    """Counts of answered requests, and a sentence for each of the first failures.

    Attributes:
        nameless: lines without a custom_id: their answers belong to no request.
    """

    done: int = 0
    failed: int = 0
    nameless: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, source: Line, line: dict[str, Any]) -> None:
        self.done += 1
        self.nameless += line["custom_id"] is None
        if line["error"] is not None:
            self.failed += 1
            if self.failed <= MOST_SHOWN:
                name = "" if line["custom_id"] is None else f" ({line['custom_id']})"
                message = line["error"]["message"]
                self.failures.append(f"line {source.number}{name}: {message}")
        body = line["response"]["body"]
        usage = body.get("usage") if isinstance(body, dict) else None
        if isinstance(usage, dict):
            for field, names in _USAGE.items():
                count = next((usage[n] for n in names if isinstance(usage.get(n), int)), 0)
                setattr(self, field, getattr(self, field) + count)


_USAGE = {
    "prompt_tokens": ("prompt_tokens", "input_tokens"),
    "output_tokens": ("completion_tokens", "output_tokens"),
}


def parser() -> CommandParser:
    return CommandParser(
        "run-batch",
        "Answer a file of requests in OpenAI's batch format.",
        [BatchFlags, ServerConfig, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf, or hub name"),),
        without=OF_SERVERS,
        examples=(
            "galley run-batch -i requests.jsonl -o answers.jsonl",
            "galley run-batch model.gguf -i https://host/in.jsonl -o https://host/out.jsonl",
        ),
    )


def main(argv: list[str]) -> int:
    given = parser().read(argv)
    flags, server = make(BatchFlags, given), make(ServerConfig, given)
    config = from_kwargs(engine_flags(given), "server")
    lines = read_input(str(flags.input_file))
    done = answered(Path(str(flags.output_file)).expanduser(), lines) if flags.resume else 0
    if done:
        print(f"galley: {done} of {len(lines)} requests are answered already", file=sys.stderr)
    lines = lines[done:]
    warn_of_duplicates(lines)
    target = Target(str(flags.output_file), flags.output_tmp_dir, bool(done))
    if not lines:
        return 0
    counter = UsageCounter()
    with tempfile.TemporaryDirectory(prefix="galley-batch-") as folder:
        server, address = listening(server, flags, f"{folder}/server")
        pid = start_server(config, server)
        try:
            code = asyncio.run(run(lines, target, address, config, pid, counter))
        except KeyboardInterrupt:
            more = "" if target.is_url else " --resume goes on after them."
            print(
                f"\ngalley: interrupted: {counter.done} of {len(lines)} requests are answered, in "
                f"{target.path}.{more}",
                file=sys.stderr,
            )
            raise
        finally:
            stop_server(pid)
    if code == 0:
        target.deliver()
        print_summary(counter, target)
    return code or int(counter.nameless > 0 or (flags.fail_on_error and counter.failed > 0))


def print_summary(counter: UsageCounter, target: Target) -> None:
    for sentence in counter.failures:
        print(f"galley: {sentence}", file=sys.stderr)
    if counter.failed > len(counter.failures):
        print(f"galley: … and {counter.failed - len(counter.failures)} more", file=sys.stderr)
    print(
        f"galley: {counter.done} requests, {counter.failed} of them failed; "
        f"{counter.prompt_tokens} prompt tokens, {counter.output_tokens} output tokens; "
        f"answers in {target.name}",
        file=sys.stderr,
    )


# ---------------------------------------------------------------------- files


def read_input(source: str) -> list[Line]:
    """Return the lines that are not blank. Raises ConfigError."""
    try:
        if source.startswith(("http://", "https://")):
            with urllib.request.urlopen(source) as reply:
                text = reply.read().decode()
        else:
            text = Path(source).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, urllib.error.URLError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise ConfigError(f"--input-file {source}: {reason}", field="input_file") from e
    lines = text.split("\n")
    return [Line(i, line) for i, line in enumerate(lines, 1) if line.strip()]


def custom_id_of(text: str) -> Any:
    """The id of an input or output line; None if it has none."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return given.get("custom_id") if isinstance(given, dict) else None


def answered(path: Path, lines: list[Line]) -> int:
    """Requests that the output file answers; cuts off what an interrupted run left of a line.

    Raises:
        ConfigError: the file holds answers of other requests.
    """
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    answers = content[:whole].decode(errors="replace").split("\n")[:-1]
    ids = [custom_id_of(answer) for answer in answers]
    if ids != [custom_id_of(line.text) for line in lines[: len(ids)]]:
        raise ConfigError(
            f"--resume: {path} holds other answers than those of the input's first lines.",
            field="resume",
        )
    os.truncate(path, whole)
    return len(ids)


def warn_of_duplicates(lines: list[Line]) -> None:
    """Answers of two lines with one custom_id cannot be told apart."""
    first: dict[str, int] = {}
    for line in lines:
        name = custom_id_of(line.text)
        if isinstance(name, str) and first.setdefault(name, line.number) != line.number:
            print(
                f"galley: line {line.number} has the custom_id of line {first[name]}: {name}",
                file=sys.stderr,
            )


class Target:
    """The output: a file, or a URL that a file is sent to at the end.

    Raises:
        ConfigError: nothing can be written there.
    """

    def __init__(self, target: str, folder: str | None, append: bool = False) -> None:
        self.name = target
        self._url = target if is_url(target) else None
        try:
            if self._url:
                number, name = tempfile.mkstemp(".jsonl", "galley-batch-", folder)
                self._path = Path(name)
                self._file = os.fdopen(number, "w", encoding="utf-8")
            else:
                self._path = Path(target).expanduser()
                self._file = self._path.open("a" if append else "w", encoding="utf-8")
        except OSError as e:
            raise ConfigError(f"--output-file {target}: {e}", field="output_file") from e

    @property
    def is_url(self) -> bool:
        return self._url is not None

    @property
    def path(self) -> Path:
        """The file on this machine."""
        return self._path

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def deliver(self) -> None:
        """Finish writing; upload to the URL. Raises ConfigError if the upload fails."""
        self._file.close()
        if self._url is None:
            return
        kind = {"Content-Type": "application/jsonl"}
        request = urllib.request.Request(self._url, self._path.read_bytes(), kind, method="PUT")
        try:
            urllib.request.urlopen(request).close()
        except (OSError, urllib.error.URLError) as e:
            raise ConfigError(
                f"--output-file {self._url}: {e}. The answers are in {self._path}.",
                field="output_file",
            ) from e
        self._path.unlink()


# ---------------------------------------------------------------------- the server


def listening(server: ServerConfig, flags: BatchFlags, path: str) -> tuple[ServerConfig, Address]:
    """The server's configuration and where it will listen."""
    quiet = replace(server, disable_uvicorn_access_log=True, uvicorn_log_level="warning")
    if flags.enable_metrics:
        return replace(quiet, host=flags.host or flags.url), Address(None, quiet.port)
    return replace(quiet, uds=path), Address(path)


def start_server(config: EngineConfig, server: ServerConfig) -> int:
    """Fork the launcher of a server; returns its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        die_with(parent)
        # The private socket needs no key.
        for name in ("VLLM_API_KEY", "GALLEY_API_KEY"):
            os.environ.pop(name, None)
        from galley.cli.parser import run as reporting
        from galley.launcher.main import launch

        code = reporting(lambda: launch(config, server, {}, is_private=bool(server.uds)))
    finally:
        os._exit(code)


def die_with(parent: int) -> None:
    """Have the kernel send us SIGTERM when the parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)


def stop_server(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        # It exited by itself and was reaped by `ended`.
        pass


def ended(pid: int) -> int | None:
    """The launcher's exit code, None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


# ---------------------------------------------------------------------- the batch


async def run(
    lines: list[Line],
    target: Target,
    address: Address,
    config: EngineConfig,
    pid: int,
    counter: UsageCounter,
) -> int:
    """Answer all lines in order; returns the exit code."""
    code = await until_healthy(address, pid)
    if code is not None:
        return code or 1
    from galley.frontend.progress import progress_bar

    ahead = AHEAD * (config.scheduler.max_num_seqs or 1)
    sources = iter(lines)
    with progress_bar(len(lines), "Requests", sys.stderr.isatty()) as bar:
        async for line in in_order(lines, lambda each: answer(each.text, address), ahead):
            target.write(line)
            counter.add(next(sources), line)
            if bar is not None and bar.is_due(counter.done):
                bar.draw(counter.done, counter.prompt_tokens, counter.output_tokens)
    return 0


async def until_healthy(address: Address, pid: int) -> int | None:
    """Wait for the engine. Returns the exit code if the server exits instead."""
    while True:
        code = ended(pid)
        if code is not None:
            return code
        try:
            status, _ = await exchange(address, "GET", "/health", b"")
            if status == 200:
                return None
        except (OSError, EOFError, ValueError):
            # Not listening yet.
            pass
        await asyncio.sleep(0.05)


async def in_order(
    lines: Iterable[S], act: Callable[[S], Coroutine[Any, Any, T]], most: int
) -> AsyncGenerator[T, None]:
    """Results of `act` in the order of `lines`, at most `most` in flight."""
    pending: deque[asyncio.Task[T]] = deque()
    rest: Iterator[S] = iter(lines)
    try:
        while True:
            while len(pending) < most and (text := next(rest, None)) is not None:
                pending.append(asyncio.ensure_future(act(text)))
            if not pending:
                return
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()


async def answer(text: str, address: Address) -> dict[str, Any]:
    """The output line for an input line."""
    custom_id = None
    try:
        try:
            given = json.loads(text)
        except ValueError as e:
            raise ValueError(f"the line is not JSON: {e}") from e
        if not isinstance(given, dict):
            raise ValueError("a line must be a JSON object")
        custom_id = given.get("custom_id")
        url, body = check(given)
    except (ValueError, RecursionError) as e:
        return output(custom_id, 400, {"error": {"message": str(e), "type": "BadRequestError"}})
    content = json.dumps(body).encode()
    for _ in range(TRIES):
        try:
            status, reply = await exchange(address, "POST", url, content)
            return output(custom_id, status, json.loads(reply))
        except (OSError, EOFError, ValueError) as e:
            failure = str(e) or type(e).__name__
            await asyncio.sleep(0.2)
    lost = {"message": f"the server could not be reached: {failure}", "type": "ServerError"}
    return output(custom_id, 503, {"error": lost})


def check(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the URL and body of a line. Raises ValueError with a message."""
    if not isinstance(given.get("custom_id"), str):
        raise ValueError("custom_id must be a string")
    if given.get("method") != "POST":
        raise ValueError("method must be POST")
    url, body = given.get("url"), given.get("body")
    if url not in URLS:
        raise ValueError(f"url must be one of {', '.join(URLS)}; got {str(url)[:100]!r}")
    if not isinstance(body, dict):
        raise ValueError("body must be a JSON object")
    for name in ("stream", "background"):
        if body.get(name):
            raise ValueError(f"{name} is not available in a batch")
    return url, body


def output(custom_id: Any, status: int, body: Any) -> dict[str, Any]:
    """A line of the output file. As in vLLM's, a request that failed has an `error` and no body."""
    error = None
    if status != 200:
        found = body.get("error") if isinstance(body, dict) else None
        known = found if isinstance(found, dict) else {}
        error = {"message": f"the server answered {status}", **known, "code": str(status)}
        body = None
    reply = {"status_code": status, "request_id": f"galley-batch-{uuid.uuid4().hex}", "body": body}
    line = {"id": f"galley-{uuid.uuid4().hex}", "custom_id": custom_id, "response": reply}
    return {**line, "error": error}


async def exchange(address: Address, method: str, url: str, body: bytes) -> tuple[int, bytes]:
    """One request on a connection of its own: (status, body of the answer).

    Raises:
        OSError, EOFError: the connection could not be made, or broke.
        ValueError: the reply is not HTTP.
    """
    reader, writer = await address.connect()
    try:
        writer.write(
            f"{method} {url} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        first, *fields = head.decode("latin-1").split("\r\n")
        named = dict(f.lower().split(": ", 1) for f in fields if ": " in f)
        length = int(named.get("content-length", "0"))
        return int(first.split()[1]), await reader.readexactly(length)
    finally:
        writer.close()
