"""Patterns against Python's own engine, and what is refused by name."""

from __future__ import annotations

import random
import re

import pytest

from galley.structured.regex import (
    Automaton,
    UnsupportedPattern,
    render,
    search,
    search_not,
    whole,
)

PATTERNS = [
    "^a|b$",
    "(^a|^b)c",
    "a",
    "x*",
    "^$",
    "^(a|)$",
    "^[a-z0-9]+(-[a-z0-9]+)*$",
    "^(?!foo)[a-z]*$",
    "^(?=.*\\d).{2,4}$",
    "^(foo|bar)$",
    "^\\d{1,2}-\\d*$",
    "^[^\\s@]+@[^\\s@]+$",
    "(?i)^ab?$",
    "\\$r?",
    "[\\w.-]+9",
    "^(?!\\.)(?!.*\\.$)[a-z.]+$",
    "a{,2}b",
    "x{",
    "^([A-Z]{2,3}|x)(,[a-z]+)*$",
    "(?s).b",
    "a+?b*?",
    "(?P<name>a)b",
    "[^\\W]x",
]


def _strings(count: int) -> list[str]:
    rng = random.Random(1)
    alphabet = "abfor.-x19@ ,A${\n"
    return ["".join(rng.choices(alphabet, k=rng.randint(0, 6))) for _ in range(count)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_search_is_that_of_python(pattern: str) -> None:
    found = Automaton.of_languages(search(pattern))
    missing = [Automaton.of_languages(part) for part in search_not(pattern)]
    for text in _strings(600):
        expected = re.search(pattern, text) is not None
        # Python's `$` matches before a last newline, too; other dialects' does not.
        if not text.endswith("\n"):
            assert found.matches(text) == expected, (pattern, text)
        assert all(part.matches(text) for part in missing) == (not expected), (pattern, text)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_text_of_an_automaton_means_the_same(pattern: str) -> None:
    automaton = Automaton.of_languages(search(pattern))
    text = re.sub(
        r"\\x\{([0-9A-F]+)\}", lambda found: f"\\U{int(found[1], 16):08x}", render(automaton.tree())
    )
    compiled = re.compile(text)
    for string in _strings(300):
        assert (compiled.fullmatch(string) is not None) == automaton.matches(string)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(?<=a)b", "lookbehind"),
        ("(?<!a)b", "lookbehind"),
        ("a(?=b)", "lookahead that does not stand at the start"),
        ("\\ba", "word boundary"),
        ("(a)\\1", "back reference"),
        ("(?P<n>a)(?P=n)", "back reference"),
        ("a++", "possessive"),
        ("(?>a)", "atomic"),
        ("(a", "unclosed"),
        ("a)", "unmatched"),
        ("[z-a]", "reversed range"),
        ("[]a]", "empty set"),
        ("*a", "nothing to repeat"),
        ("a{9,1}", "reversed"),
        ("a{99999999}", "repeats more than"),
        ("\\q", "unknown escape"),
        ("\\p{Nonsense}", "property"),
        ("(" * 200 + ")" * 200, "deeper"),
        ("a" * 30_000, "longer"),
    ],
)
def test_what_is_refused_is_named(pattern: str, reason: str) -> None:
    with pytest.raises(UnsupportedPattern, match=re.escape(reason)):
        search(pattern)


def test_a_class_is_what_dialects_agree_on() -> None:
    """٣ is a digit in Python and none in ECMAScript."""
    digit, no_digit = (Automaton.of_languages(whole(p)) for p in ("\\d", "\\D"))
    (not_found,) = (Automaton.of_languages(part) for part in search_not("\\d"))
    assert digit.matches("3")
    assert not digit.matches("٣")
    assert not no_digit.matches("٣")
    assert not not_found.matches("٣")


def test_finite_languages_are_listed() -> None:
    assert Automaton.of_languages(search("^(foo|ba[rz])$")).strings(5) == ["bar", "baz", "foo"]
    assert Automaton.of_languages(search("^a*$")).strings(5) is None
    assert Automaton.of_languages(search("^[ab]{3}$")).strings(5) is None
