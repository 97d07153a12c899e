"""A chat template is somebody else's program: it reaches nothing, and it ends."""

from __future__ import annotations

import resource
import time

import pytest

from galley.chat import ChatRenderer
from galley.chat.budget import MoreSteps
from galley.chat.templates import MAX_SOURCE
from galley.errors import InvalidRequest, ModelError

MESSAGES = [{"role": "user", "content": "hi"}]


def _render(template: str) -> str:
    return ChatRenderer({"default": "x"}, {}).render(MESSAGES, chat_template=template)


_DEEP = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
_TIMES_60 = (
    "{{% set ns = namespace(x='aaaaaaaa') %}}{{% for i in range(60) %}}{{% set ns.x = {} %}}"
    "{{% endfor %}}"
)

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
        "{% set line = 'x' * 8000000 %}{% for i in range(9) %}{{ line }}{% endfor %}",
        "a value of",
    ),
    "long output in a block": (
        "{% set line = 'x' * 8000000 %}{% set all %}{% for i in range(99999) %}{{ line }}"
        "{% endfor %}{% endset %}{{ all | length }}",
        "steps",
    ),
    "long text of the template's own": (
        "{% set all %}{% for i in range(99999) %}{% for j in range(9) %}"
        + "x" * 60_000
        + "{% endfor %}{% endfor %}{% endset %}",
        "steps",
    ),
    "doubled by +": (_TIMES_60.format("ns.x + ns.x"), "a value of"),
    "doubled by ~": (_TIMES_60.format("ns.x ~ ns.x"), "a value of"),
    "doubled by a list": (_TIMES_60.format("[ns.x, ns.x]"), "a value of"),
    "doubled by a tuple": (_TIMES_60.format("(ns.x, ns.x)"), "a value of"),
    "doubled by an object": (_TIMES_60.format("{'a': ns.x, 'b': ns.x}"), "a value of"),
    "doubled by dict": (_TIMES_60.format("dict(a=ns.x, b=ns.x)"), "a value of"),
    "doubled by join": (_TIMES_60.format("[ns.x, ns.x] | join"), "a value of"),
    "doubled by replace": (_TIMES_60.format("ns.x | replace('a', 'aa')"), "a value of"),
    "doubled by a method": (_TIMES_60.format("ns.x.replace('a', 'aa')"), "a value of"),
    "doubled by format": (_TIMES_60.format("'%s%s' | format(ns.x, ns.x)"), "a value of"),
    "doubled by %": (_TIMES_60.format("'%s%s' % (ns.x, ns.x)"), "a value of"),
    "doubled by str.format": (_TIMES_60.format("'{0}{0}'.format(ns.x)"), "a value of"),
    "doubled by a macro": (
        "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + _TIMES_60.format("f(ns.x)"),
        "a value of",
    ),
    "doubled by a slice": (_TIMES_60.format("[ns.x, ns.x][:2]"), "a value of"),
    "nested namespaces": (
        _TIMES_60.format("namespace(a=ns.x, b=ns.x)") + "{{ ns.x | string }}",
        "steps",
    ),
    "nested namespaces written": (
        _TIMES_60.format("namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
        "steps",
    ),
    "empty text replaced": (
        "{% set x = 'a' * 8000000 %}{{ x.replace('', x) }}",
        "a value of 64000",
    ),
    "joined by a long text": (
        "{% set x = 'a' * 4000000 %}{{ (range(999) | join(x)) | length }}",
        "a value of",
    ),
    "a text joins itself": ("{% set x = 'a' * 4000000 %}{{ x.join(x) }}", "a value of"),
    "tabs": ("{{ ('\t' * 8000000).expandtabs(9999) }}", "a value of"),
    "indented lines": ("{{ ('\n' * 8000000) | indent(9999, true) }}", "a value of"),
    "format width": ("{{ '%99999999d' % 1 }}", "a value of"),
    "format width elsewhere": ("{{ '%*d' % (999999999, 1) }}", "a value of"),
    "format filter": ("{{ '%99999999d' | format(1) }}", "a value of"),
    "str.format": ("{{ '{:999999999}'.format(1) }}", "a value of"),
    "str.format width elsewhere": ("{{ '{:{}}'.format(1, 999999999) }}", "characters"),
    "center": ("{{ 'x' | center(999999999) }}", "999999999 characters"),
    "JSON": ("{{ messages | tojson(indent=999999999) }}", "999999999 characters"),
    "batch": ("{{ [1] | batch(999999999, 0) | list | length }}", "999999999 characters"),
    "slice": ("{{ [1] | slice(999999999) | list | length }}", "999999999 characters"),
    "long default in map": (
        "{% set x = 'a' * 8000000 %}{{ range(99999) | map(attribute='y', default=x) | join "
        "| length }}",
        "a value of",
    ),
    "filters in map": (
        "{{ range(99999) | map('string') | map('center', 9999) | join | length }}",
        "a value of",
    ),
    "long texts compared": (
        "{% set x = 'a' * 8000000 %}{% set y = x ~ '' %}"
        "{% for i in range(99999) %}{% if x == y %}{% endif %}{% endfor %}",
        "steps",
    ),
    "long texts searched": (
        "{% set x = 'a' * 8000000 %}"
        "{% for i in range(99999) %}{% if 'b' in x %}{% endif %}{% endfor %}",
        "steps",
    ),
    "long texts tested": (
        "{% set x = 'a' * 8000000 %}"
        "{% for i in range(99999) %}{% if 'b' is in x %}{% endif %}{% endfor %}",
        "steps",
    ),
    "long texts counted": (
        "{% set x = 'a' * 8000000 %}{% for i in range(99999) %}{{ x.count('b') }}{% endfor %}",
        "steps",
    ),
    "long texts cut": (
        "{% set x = 'a' * 8000000 %}{% for i in range(99999) %}{% set y = x[1:] %}{% endfor %}",
        "characters|steps",
    ),
    "many sorts": (
        "{% set x = range(99999) | list %}{% for i in range(9999) %}{% set y = x | sort %}"
        "{% endfor %}",
        "characters|steps",
    ),
    "long product": (
        "{% set ns = namespace(x=9 ** 9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}"
        "{% endfor %}",
        "without bound",
    ),
    "sum of lists": ("{{ ([[0]] * 99999) | sum(start=[]) | length }}", "sums of lists"),
}


def _peak() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_without_end_or_bound_is_stopped(case: str) -> None:
    template, says = ENDLESS[case]
    before = _peak()
    start = time.process_time()
    with pytest.raises(InvalidRequest, match=says):
        _render(template)
    assert time.process_time() - start < 30
    assert _peak() - before < 1 << 30


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


@pytest.mark.parametrize("what", ["messages.__class__", "''.__class__", "messages|attr('__len__')"])
def test_a_template_that_reads_internals_is_refused(what: str) -> None:
    with pytest.raises(InvalidRequest, match="reads __"):
        _render("{{ " + what + " }}")


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


@pytest.mark.parametrize("case", ["nested loops", "doubled by ~", "a text joins itself", "tabs"])
def test_a_model_whose_template_has_no_end_is_refused_at_the_start(case: str) -> None:
    with pytest.raises(ModelError, match="chat template 'default' is refused"):
        ChatRenderer({"default": ENDLESS[case][0]}, {})


def test_a_model_may_refuse_a_message() -> None:
    picky = "{% if messages | length < 2 %}{{ raise_exception('two, please') }}{% endif %}ok"
    assert ChatRenderer({"default": picky}, {}).render(MESSAGES * 2) == "ok"


@pytest.mark.parametrize(
    "template",
    [
        "{{ '(' * 3 }}" + "(" * 3 + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% for a in messages %}" * 40 + "{% endfor %}" * 40,
        "{{ " + "1 + " * 20_000 + "1 }}",
        "x" * (MAX_SOURCE + 1),
        "{{a+a}}" * 9_000,
    ],
    ids=["parentheses", "blocks", "a long sum", "length", "parts"],
)
def test_a_template_that_cannot_be_compiled_is_refused_soon(template: str) -> None:
    start = time.process_time()
    with pytest.raises(InvalidRequest, match="not valid jinja"):
        _render(template)
    assert time.process_time() - start < 15


def test_few_steps_say_that_more_are_needed_and_nothing_else() -> None:
    renderer = ChatRenderer({"default": "{% for i in range(9999) %}{% endfor %}end"}, {})
    with pytest.raises(MoreSteps):
        renderer.render(MESSAGES, steps=1000)
    assert renderer.render(MESSAGES, steps=100_000) == "end"
    with pytest.raises(InvalidRequest, match="steps"):
        renderer.render(MESSAGES, chat_template=ENDLESS["nested loops"][0])
