"""Regular expressions of requests: parsed, checked, and rewritten for the grammar libraries.

    pattern ── syntax.parse ──▶ tree ── anchors.search, whole ──▶ languages of whole strings
            languages ── text.render ──▶ pattern in the syntax of Rust's regex crate
            languages ── automaton.Automaton ──▶ complement, intersection, finite lists, matching

Python's and ECMAScript's dialects differ in what some classes mean (`\\d`, `\\w`, `\\s`, `.`). Each
class is read as the characters that both dialects agree on, so what matches here matches in both.
"""

from __future__ import annotations

from galley.structured.regex.anchors import Language, search, search_not, whole
from galley.structured.regex.automaton import Automaton, TooManyStates, other_than, pattern_of
from galley.structured.regex.syntax import UnsupportedPattern
from galley.structured.regex.text import render

__all__ = [
    "Automaton",
    "Language",
    "TooManyStates",
    "UnsupportedPattern",
    "other_than",
    "pattern_of",
    "render",
    "search",
    "search_not",
    "whole",
]
