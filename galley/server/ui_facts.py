"""Facts that /ui shows about the server: its model, and how it runs."""

from __future__ import annotations

import msgspec

from galley import __version__
from galley.server.context import Context
from galley.ui import guide


class Facts(msgspec.Struct):
    """Attributes:
    models: names that requests may use.
    chats: it answers chats.
    guide: its pages are there.
    """

    version: str
    models: list[str]
    root: str
    chats: bool
    guide: bool


def facts(ctx: Context) -> Facts:
    adapters = list(ctx.adapters.entries) if ctx.adapters else []
    return Facts(
        version=__version__,
        models=[*ctx.model_names, *adapters],
        root=ctx.root,
        chats=ctx.config.model.runner != "pooling" and ctx.chat is not None,
        guide=guide.folder() is not None,
    )
