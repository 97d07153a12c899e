"""Parsers of assistants' output by name: an open set, one line and one file each."""

from __future__ import annotations

from galley.chat.parts import ParserFactory
from galley.chat.think_tags import ThinkTags

PARSERS: dict[str, ParserFactory] = {
    "think_tags": ThinkTags,
}
