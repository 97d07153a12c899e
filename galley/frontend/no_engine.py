"""The client of a front end without engines: prompts are checked, and nothing is generated."""

from __future__ import annotations

from typing import Any, NoReturn

from galley.errors import Unsupported
from galley.frontend.remote_client import RemoteClient


class NoEngineClient(RemoteClient):
    """An `EngineClient` whose launcher starts no engines."""

    @property
    def healthy(self) -> bool:
        return True

    def generate(self, *args: Any, **options: Any) -> NoReturn:
        raise Unsupported("this server renders prompts: it has no engine.")

    pool = generate

    async def call(self, method: str, *args: Any) -> list[Any]:
        """No engine, no results."""
        return []
