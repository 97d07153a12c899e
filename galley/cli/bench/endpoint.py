"""Server requests other than load: readiness, the served model, and counters."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galley.cli.bench.acceptance import Drafted
from galley.errors import ConfigError, GalleyError, ServerError
from galley.text.tokenizer import Tokenizer, load_tokenizer

_DRAFTS = re.compile(
    r"^vllm:spec_decode_num_(drafts|draft_tokens|accepted_tokens|accepted_tokens_per_pos)_total"
    r'(?:\{(?:[^}]*position="(\d+)")?[^}]*\})? (\S+)$',
    re.MULTILINE,
)
_HITS = re.compile(r"^vllm:prefix_cache_(hits|queries)_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Served:
    """The first model a server lists: its name in requests, and the path of its files."""

    name: str
    root: str


class Endpoint:
    """A server of any engine at a base URL, e.g. http://127.0.0.1:8000."""

    def __init__(self, base: str, headers: Mapping[str, str], insecure: bool = False) -> None:
        self.base = base.rstrip("/").removesuffix("/v1")
        self.headers = dict(headers)
        self.context = ssl._create_unverified_context() if insecure else None

    def get(self, path: str, timeout: float = 10.0) -> bytes:
        """Raises OSError unless the answer has status 200."""
        request = urllib.request.Request(self.base + path, headers=self.headers)
        with urllib.request.urlopen(request, timeout=timeout, context=self.context) as answer:
            return bytes(answer.read())

    def served(self, timeout: float) -> Served:
        """The served model. Retries until the server answers or `timeout` seconds have passed.

        Raises:
            ServerError: the server did not answer.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                card = json.loads(self.get("/v1/models"))["data"][0]
                return Served(card["id"], card.get("root") or card["id"])
            except (OSError, ValueError, LookupError, TypeError) as e:
                if time.monotonic() >= end:
                    reason = getattr(e, "reason", e)
                    raise ServerError(f"no server answers at {self.base} ({reason}).") from e
            time.sleep(0.2)

    def prefix_cache(self) -> tuple[float, float] | None:
        """Prefix cache hits and queries so far, in prompt tokens, from /metrics; None if the
        server does not report them."""
        try:
            matches = _HITS.findall(self.get("/metrics").decode())
        except (OSError, ValueError):
            return None
        sums = {"hits": 0.0, "queries": 0.0}
        for name, value in matches:
            sums[name] += float(value)
        return (sums["hits"], sums["queries"]) if matches else None

    def drafts(self) -> Drafted | None:
        """Drafts so far, from /metrics; None if the server does not report them."""
        try:
            matches = _DRAFTS.findall(self.get("/metrics").decode())
        except (OSError, ValueError):
            return None
        if not matches:
            return None
        sums: dict[str, float] = {}
        places: dict[int, float] = {}
        for name, place, value in matches:
            if place:
                places[int(place)] = places.get(int(place), 0.0) + float(value)
            else:
                sums[name] = sums.get(name, 0.0) + float(value)
        return Drafted(
            sums.get("drafts", 0.0),
            sums.get("draft_tokens", 0.0),
            sums.get("accepted_tokens", 0.0),
            [places[place] for place in sorted(places)],
        )

    def post(self, path: str) -> bool:
        """Send an empty POST (/start_profile …). Returns whether it succeeded."""
        request = urllib.request.Request(self.base + path, b"", self.headers, method="POST")
        try:
            urllib.request.urlopen(request, timeout=60, context=self.context).close()
        except OSError:
            return False
        return True


def read_headers(pairs: tuple[str, ...]) -> dict[str, str]:
    """`("X-Key=value",)` → headers; OPENAI_API_KEY becomes a bearer token. Raises ConfigError."""
    headers = {}
    key = os.environ.get("OPENAI_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--header takes KEY=VALUE, got {pair!r}.", field="header")
        headers[name.strip()] = value.strip()
    return headers


def find_tokenizer(named: str | None, served: Served | None) -> tuple[str, Tokenizer]:
    """The tokenizer and its name: the one given by --tokenizer, else the served model's if its
    files are on this machine, else the built-in model's.

    Raises:
        ConfigError, ModelError: `named` cannot be loaded.
    """
    from galley.config.engine import LoadConfig, ModelConfig
    from galley.loader.source import resolve_source

    def load(name: str) -> Tokenizer:
        path = Path(name).expanduser()
        if path.name == "tokenizer.json":
            path = path.parent
        if name and path.exists():
            return load_tokenizer(path)
        return load_tokenizer(resolve_source(ModelConfig(model=name), LoadConfig()).path)

    if named is not None:
        return named, load(named)
    for name in (served.root, served.name) if served else ():
        if Path(name).exists():
            with contextlib.suppress(GalleyError):
                return name, load(name)
    return "SmolLM2-135M-Instruct", load("")


def metadata(pairs: tuple[str, ...]) -> dict[str, Any]:
    """`("version=1.2",)` → fields of the result. Raises ConfigError."""
    fields = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise ConfigError(f"--metadata takes KEY=VALUE, got {pair!r}.", field="metadata")
        fields[name.strip()] = value.strip()
    return fields
