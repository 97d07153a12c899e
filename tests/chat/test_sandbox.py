"""A chat template is somebody else's program: it reaches nothing, and it ends."""

from __future__ import annotations

import time

import pytest

from galley.chat import ChatRenderer
from galley.errors import InvalidRequest

MESSAGES = [{"role": "user", "content": "hi"}]


def _render(template: str) -> str:
    return ChatRenderer({"default": "x"}, {}).render(MESSAGES, chat_template=template)


_DEEP = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"

ENDLESS = {
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}"
        "{% endfor %}",
        "steps",
    ),
    "loops in filters of loops": (
        "{% for i in range(99999) if i % 2 %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "steps",
    ),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "branching recursion": (_DEEP + "{{ f(60) }}", "steps"),
    "recursive loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "Recursion"),
    "long range": ("{{ range(10 ** 9) | list | length }}", "range"),
    "long text": ("{{ 'a' * 10 ** 9 }}", "without bound"),
    "long list": ("{{ ([0] * 10 ** 9) | length }}", "without bound"),
    "number first": ("{{ 10 ** 9 * 'a' }}", "without bound"),
    "long number": ("{{ 10 ** (10 ** 8) }}", r"\*\*"),
    "padding": ("{{ 'x'.rjust(10 ** 9) }}", "1000000000 characters"),
    "long output": (
        "{% set line = 'x' * 60000000 %}{% for i in range(9) %}{{ line }}{% endfor %}",
        "writes more than",
    ),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_without_end_or_bound_is_stopped(case: str) -> None:
    template, says = ENDLESS[case]
    start = time.process_time()
    with pytest.raises(InvalidRequest, match=says):
        _render(template)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    "template",
    [
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as x %}",
        "{% extends 'base.html' %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ ''|attr('__class__') }}{{ ''|attr('__class__')|attr('__mro__') }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{% set messages[0].role = 'x' %}",
    ],
)
def test_a_template_reaches_neither_files_nor_internals_nor_the_messages(template: str) -> None:
    try:
        text = _render(template)
    except InvalidRequest:
        text = ""
    assert not any(word in text for word in ("class", "root:", "module", "function"))
    assert MESSAGES == [{"role": "user", "content": "hi"}]


def test_each_rendering_has_a_budget_of_its_own() -> None:
    renderer = ChatRenderer(
        {"default": "{% for i in range(90000) %}{% endfor %}{{ messages | length }}"}, {}
    )
    for _ in range(60):
        assert renderer.render(MESSAGES) == "1"


def test_long_conversations_fit() -> None:
    quadratic = (
        "{% for m in messages %}{% set ns = namespace(n=0) %}{% for other in messages %}"
        "{% set ns.n = loop.index %}{% endfor %}{{ m.content.strip() }}{% endfor %}"
    )
    messages = [{"role": "user", "content": " x "}] * 500
    assert ChatRenderer({"default": quadratic}, {}).render(messages) == "x" * 500
