"""What /ui says about the server: its model, and how it runs."""

from __future__ import annotations

import msgspec

from galley import __version__
from galley.server.context import Context


class Facts(msgspec.Struct):
    """Attributes:
    models: names that requests may use.
    generates: it answers chats and completions.
    """

    version: str
    models: list[str]
    root: str
    generates: bool
    chats: bool
    key_needed: bool


def facts(ctx: Context) -> Facts:
    adapters = list(ctx.adapters.entries) if ctx.adapters else []
    return Facts(
        version=__version__,
        models=[*ctx.model_names, *adapters],
        root=ctx.root,
        generates=ctx.config.model.runner != "pooling" and ctx.tokenizer is not None,
        chats=ctx.chat is not None,
        key_needed=bool(ctx.server.api_key),
    )
