"""A chat template is untrusted code: it reaches nothing, and it ends."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from galley.chat import template_process
from galley.chat.sandbox import MAX_SOURCE, MAX_TEXT
from galley.chat.template_process import TemplateFailure, TemplateProcess
from galley.chat.templates import MAX_QUICK_MESSAGES, ChatRenderer
from galley.errors import InvalidRequest, ModelError

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess(cpu_seconds=0.5, memory=64 << 20)
    yield process
    process.close()


@pytest.fixture(scope="module")
def renderer(process: TemplateProcess) -> ChatRenderer:
    return ChatRenderer({"default": "x"}, {}, process=process)


def _repeat(expression: str) -> str:
    """A template that applies `expression` to its own result 60 times and writes it."""
    return (
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
        f"{{% set ns.x = {expression} %}}{{% endfor %}}{{{{ ns.x }}}}"
    )


ENDLESS = {
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "CPU time",
    ),
    "branching recursion": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
        "{{ f(60) }}",
        "CPU time",
    ),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "recursive loop": ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "Recursion"),
    "long range": ("{{ range(10 ** 9) | list | length }}", "[Rr]ange"),
    "long number": ("{{ 10 ** (10 ** 8) }}", "CPU time"),
    "long number while compiling": ("{% set x = 10 ** (10 ** 8) %}", "CPU time"),
    "long text": ("{{ 'a' * 10 ** 9 }}", "MiB of memory"),
    "long list": ("{{ ([0] * 10 ** 9) | length }}", "MiB of memory"),
    "padding": ("{{ 'x'.rjust(10 ** 9) }}", "MiB of memory"),
    "format width": ("{{ '%*d' % (999999999, 1) }}", "MiB of memory"),
    "doubled text": (_repeat("ns.x ~ ns.x"), "MiB of memory"),
    "doubled references": (_repeat("[ns.x, ns.x]"), "MiB of memory|CPU time"),
    "sorts": (
        "{% for i in range(9999) %}{% set y = range(99999) | sort %}{% endfor %}",
        "CPU time",
    ),
    "long output": (
        "{% set line = 'x' * 1000000 %}{% for i in range(99) %}{{ line }}{% endfor %}",
        f"more than {MAX_TEXT} characters",
    ),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_a_template_without_end_or_bound_is_stopped(renderer: ChatRenderer, case: str) -> None:
    template, says = ENDLESS[case]
    with pytest.raises(InvalidRequest, match=says) as caught:
        renderer.render(MESSAGES, chat_template=template)
    assert caught.value.field in ("messages", "chat_template")
    assert renderer.render(MESSAGES, chat_template="{{ messages | length }}") == "1"


@pytest.mark.parametrize("case", ["nested loops", "long text", "long output"])
def test_a_model_whose_template_has_no_end_is_refused_at_the_start(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_process, "CPU_SECONDS", 0.5)
    renderer = ChatRenderer({"default": ENDLESS[case][0]}, {})
    with pytest.raises(ModelError, match=f"chat template 'default' is refused.*{ENDLESS[case][1]}"):
        renderer.start_trial()()


def test_a_model_may_refuse_a_message() -> None:
    picky = "{% if messages | length < 9 %}{{ raise_exception('nine, please') }}{% endif %}ok"
    renderer = ChatRenderer({"default": picky}, {})
    renderer.start_trial()()
    assert renderer.render(MESSAGES * 9) == "ok"


# ---------------------------------------------------------------------------- the child process


def test_very_large_conversations_and_counts_are_rendered_under_the_limits(
    process: TemplateProcess,
) -> None:
    """Also by a template that is quick with small ones."""
    cubic = "{% for a in messages %}{% for b in messages %}{{ 'x' * n }}{% endfor %}{% endfor %}"
    renderer = ChatRenderer({"default": cubic}, {}, process=process)
    assert renderer.render(MESSAGES * 3, kwargs={"n": 1}) == "x" * 9
    with pytest.raises(InvalidRequest, match=r"CPU time|characters"):
        renderer.render(MESSAGES * 100 * MAX_QUICK_MESSAGES, kwargs={"n": 1})
    with pytest.raises(InvalidRequest, match="MiB of memory"):
        renderer.render(MESSAGES, kwargs={"n": 1 << 40})


def test_a_large_conversation_is_rendered_as_a_small_one_is(renderer: ChatRenderer) -> None:
    talk = [{"role": "user", "content": f" é日🤗\ud800 {i}"} for i in range(MAX_QUICK_MESSAGES + 1)]
    source = "{% for m in messages %}{{ m.content }}{{ m | tojson }}{{ extra }}{% endfor %}"
    own = ChatRenderer({"default": source}, {}, process=renderer._process)
    kwargs = {"extra": {"a": [1, 2.5, None, True]}}
    assert not own.is_quick(talk, kwargs=kwargs)
    parts = [own.render([message], kwargs=kwargs) for message in talk]
    assert own.is_quick(talk[:1], kwargs=kwargs)
    assert own.render(talk, kwargs=kwargs) == "".join(parts)


def test_threads_share_one_child(process: TemplateProcess) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = pool.map(lambda i: process.render("{{ i }}!", {"i": i}), range(50))
        assert list(texts) == [f"{i}!" for i in range(50)]


def test_the_child_knows_no_keys(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    process.close()
    process.render("x", {})
    environment = Path(f"/proc/{process.process.pid}/environ").read_bytes()
    assert b"PYTHONPATH" in environment
    assert b"secret" not in environment


def test_a_killed_child_is_replaced(process: TemplateProcess) -> None:
    process.render("x", {})
    pid = process.process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSEGV)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert process.render("y", {}) == "y"


def test_the_child_ends_with_its_parent() -> None:
    """Killed, so that it cannot clean up."""
    program = (
        "import os, signal; from galley.chat.template_process import TemplateProcess;"
        "p = TemplateProcess(); p.render('x', {}); print(p.process.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=False)
    assert parent.returncode == -signal.SIGKILL
    try:
        descriptor = os.pidfd_open(int(parent.stdout))
    except ProcessLookupError:
        return
    with os.fdopen(descriptor) as child:
        assert select.select([child], [], [], 60)[0]


def test_variables_that_are_not_data_are_refused(process: TemplateProcess) -> None:
    with pytest.raises(TemplateFailure, match="plain data"):
        process.render("x", {"x": object()})


# ---------------------------------------------------------------------------- the sandbox


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
    """In this process, where a checkpoint's runs."""
    try:
        text = ChatRenderer({"default": template}, {}).render(MESSAGES)
    except (InvalidRequest, ModelError):
        text = ""
    assert not any(word in text for word in ("class", "root:", "module", "function"))
    assert MESSAGES == [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("what", ["messages.__class__", "''.__class__", "messages|attr('__len__')"])
def test_a_template_that_reads_internals_is_refused(renderer: ChatRenderer, what: str) -> None:
    source = "{{ " + what + " }}"
    with pytest.raises(InvalidRequest, match="reads __"):
        ChatRenderer({"default": source}, {}).render(MESSAGES)
    with pytest.raises(InvalidRequest, match="reads __"):
        renderer.render(MESSAGES, chat_template=source)


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
def test_a_template_that_cannot_be_compiled_is_refused(
    renderer: ChatRenderer, template: str
) -> None:
    with pytest.raises(InvalidRequest, match="not valid jinja") as caught:
        renderer.render(MESSAGES, chat_template=template)
    assert caught.value.field == "chat_template"
