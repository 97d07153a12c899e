"""Languages and automata of `pattern`s, remembered."""

from __future__ import annotations

from functools import lru_cache

from galley.structured.regex import Automaton, Language, search


@lru_cache(maxsize=2048)
def languages_of(pattern: str) -> tuple[Language, ...]:
    """Strings in which the pattern is found. Raises UnsupportedPattern."""
    return search(pattern)


@lru_cache(maxsize=512)
def automaton_of(pattern: str) -> Automaton:
    """The automaton of `languages_of`. Raises UnsupportedPattern, TooManyStates."""
    return Automaton.of_languages(languages_of(pattern))


@lru_cache(maxsize=512)
def generous_automaton_of(pattern: str) -> Automaton:
    """Strings in which the pattern is found in any dialect. Raises as `automaton_of`."""
    return Automaton.of_languages(search(pattern, generous=True))


@lru_cache(maxsize=512)
def automaton_of_languages(languages: tuple[Language, ...]) -> Automaton:
    """Strings of at least one of the languages. Raises TooManyStates."""
    return Automaton.of_languages(languages)
