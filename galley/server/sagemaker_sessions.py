"""Stateful sessions of SageMaker's /invocations, as model_hosting_container_standards has them.

    {"requestType": "NEW_SESSION"}   a session is created, named in a header of the answer
    {"requestType": "CLOSE"}         the session that the request's header names is closed

Any other request may name a session, which must then exist. A session is a folder that holds the
time at which it expires, so all API servers know it. Variables:

    SAGEMAKER_ENABLE_STATEFUL_SESSIONS   true or 1; else requests with a session are refused
    SAGEMAKER_SESSIONS_EXPIRATION        seconds that a session lives (1200)
    SAGEMAKER_SESSIONS_PATH              folder of the sessions (/dev/shm/sagemaker_sessions)
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from galley.errors import ConfigError, InvalidRequest

SESSION = "X-Amzn-SageMaker-Session-Id"
CREATED = "X-Amzn-SageMaker-New-Session-Id"
CLOSED = "X-Amzn-SageMaker-Closed-Session-Id"
#: Sessions that are open at the same time; creating one reads them all.
MAX_SESSIONS = 1000
_DISABLED = "stateful sessions are not enabled (SAGEMAKER_ENABLE_STATEFUL_SESSIONS)."


class Sessions:
    """The sessions in a folder.

    Args:
        lifetime: seconds after which a session expires.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path, lifetime: int) -> None:
        self._folder, self._lifetime = folder, lifetime
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigError(f"SAGEMAKER_SESSIONS_PATH={folder}: {e.strerror}.") from e

    def create(self) -> tuple[str, float]:
        """The name of a new session and when it expires (seconds since the epoch). Raises
        HTTPException where too many are open."""
        num_open = 0
        for folder in self._folder.iterdir():
            if self._expires(folder) > time.time():
                num_open += 1
            else:
                shutil.rmtree(folder, ignore_errors=True)
        if num_open >= MAX_SESSIONS:
            raise HTTPException(503, f"Failed to create session: {num_open} are open")
        name, expires = str(uuid.uuid4()), time.time() + self._lifetime
        folder = self._folder / name
        folder.mkdir()
        (folder / ".expiration_ts").write_text(json.dumps(expires))
        return name, expires

    def find(self, name: str) -> Path:
        """The folder of a session. Raises InvalidRequest if there is none, or it has expired."""
        try:
            folder = self._folder / str(uuid.UUID(name))
        except ValueError:
            folder = None
        if folder is None or self._expires(folder) <= time.time():
            raise InvalidRequest(f"{SESSION}: session not found: {name[:100]}")
        return folder

    def close(self, name: str) -> None:
        """Remove a session. Raises InvalidRequest if there is none."""
        shutil.rmtree(self.find(name))

    def _expires(self, folder: Path) -> float:
        try:
            return float((folder / ".expiration_ts").read_text())
        except (OSError, ValueError):
            pass  # not written yet, or no such session
        try:
            return folder.stat().st_mtime + self._lifetime
        except OSError:
            return 0.0


def open_sessions(env: Mapping[str, str]) -> Sessions | None:
    """The sessions that an environment asks for. Raises ConfigError."""
    if env.get("SAGEMAKER_ENABLE_STATEFUL_SESSIONS", "").lower() not in ("1", "true"):
        return None
    lifetime = env.get("SAGEMAKER_SESSIONS_EXPIRATION") or "1200"
    if not lifetime.isdecimal() or int(lifetime) < 1:
        raise ConfigError(
            f"SAGEMAKER_SESSIONS_EXPIRATION must be a number of seconds above 0, got {lifetime!r}."
        )
    shared = Path("/dev/shm")
    default = (shared if shared.is_dir() else Path(tempfile.gettempdir())) / "sagemaker_sessions"
    return Sessions(Path(env.get("SAGEMAKER_SESSIONS_PATH") or default), int(lifetime))


def session_reply(
    sessions: Sessions | None, raw: Request, keys: Mapping[str, msgspec.Raw]
) -> Response | None:
    """The answer to a request that creates or closes a session; None for all others.

    Args:
        keys: of the request's body.

    Raises:
        InvalidRequest: the request names a session that does not exist, or sessions are off.
        HTTPException: 424, no session is named that could be closed.
    """
    name, wanted = raw.headers.get(SESSION), _request_type(keys)
    if wanted is None and name is None:
        return None
    if sessions is None:
        raise InvalidRequest(f"{'requestType' if wanted else SESSION}: {_DISABLED}")
    if wanted == "NEW_SESSION":
        created, expires = sessions.create()
        until = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return _text(f"Session {created} created", {CREATED: f"{created}; Expires={until}"})
    if name is None:
        raise HTTPException(424, f"Failed to close session: no {SESSION} header")
    if wanted is None:
        sessions.find(name)
        return None
    sessions.close(name)
    return _text(f"Session {name} closed", {CLOSED: name})


def _request_type(keys: Mapping[str, msgspec.Raw]) -> str | None:
    """The body's `requestType`; None where it has none. Raises InvalidRequest."""
    if "requestType" not in keys:
        return None
    value: Any = msgspec.json.decode(keys["requestType"])
    if value not in ("NEW_SESSION", "CLOSE") or len(keys) > 1:
        raise InvalidRequest(
            'requestType must be "NEW_SESSION" or "CLOSE", in a body of its own.',
            field="requestType",
        )
    return str(value)


def _text(content: str, headers: dict[str, str]) -> Response:
    return PlainTextResponse(content, headers=headers)
