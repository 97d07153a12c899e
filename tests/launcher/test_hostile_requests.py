"""Hostile requests: refused with 400 soon, and no other request is delayed."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.launcher.serving import API_SERVER, Server

pytestmark = pytest.mark.alone

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
#: Seconds of one answer while others do harm, on a machine that may be busy; harm that is done
#: goes on for minutes. And CPU seconds of the API server for one refusal.
PATIENCE, COST = 20.0, 3.0

_GROW = (
    "{{% set ns = namespace(x='aaaaaaaa') %}}{{% for i in range(99) %}}{{% set ns.x = {} %}}"
    "{{% endfor %}}"
)
TEMPLATES = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "much text": _GROW.format("ns.x ~ ns.x"),
    "many references": _GROW.format("[ns.x, ns.x]"),
    "a number": _GROW.format("9 ** 9999 * 9 ** 9999"),
    "padding": "{{ '%999999999d' % 1 }}",
    "a file": "{% include '/etc/passwd' %}",
    "an attribute": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "internals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "a long template": "{{ x }}" * 300_000,
    "many parts": "{{x+x}}" * 9_000,
    "nesting": "{{ " + "(" * 20_000 + "x" + ")" * 20_000 + " }}",
    "blocks": "{% for a in messages %}" * 50 + "{% endfor %}" * 50,
}


def _deep(depth: int) -> str:
    return "[" * depth + "]" * depth


#: Bodies after `{"model": …, "messages"/"prompt": …, `, each to be refused.
BODIES = {
    "deep logit_bias": (COMPLETIONS, f'"prompt": "x", "logit_bias": {_deep(50_000)}'),
    "deep unknown field": (COMPLETIONS, f'"prompt": "x", "what": {_deep(50_000)}'),
    "deep prompt": (COMPLETIONS, f'"prompt": {_deep(50_000)}'),
    "deep content": (CHAT, f'"messages": [{{"role": "user", "content": {_deep(900)}}}]'),
    "deep field of a message": (
        CHAT,
        f'"messages": [{{"role": "user", "content": "x", "more": {_deep(2_000)}}}]',
    ),
    "deep arguments": (
        CHAT,
        '"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"function": '
        f'{{"arguments": "{_deep(90_000)}"}}}}]}}]',
    ),
    "deep kwargs": (CHAT, f'"messages": {json.dumps(HI)}, "chat_template_kwargs": {_deep(900)}'),
    "huge integer": (COMPLETIONS, '"prompt": "x", "max_tokens": 1' + "0" * 100_000),
    "huge float": (COMPLETIONS, '"prompt": "x", "temperature": 1e999999'),
    "many digits": (COMPLETIONS, '"prompt": "x", "temperature": 0.' + "1" * 100_000 + "e400"),
    "huge seed": (COMPLETIONS, '"prompt": "x", "seed": ' + "9" * 5_000),
    "token beyond all": (COMPLETIONS, '"prompt": [1, 99999999999999999999]'),
    "many stop strings": (COMPLETIONS, '"prompt": "x", "stop": [' + '"a",' * 200_000 + '"b"]'),
    "evil regex": (
        COMPLETIONS,
        '"prompt": "x", "structured_outputs": {"regex": "(?!(a|b)*a(a|b){20})x*"}',
    ),
    "evil pattern": (
        CHAT,
        f'"messages": {json.dumps(HI)}, "response_format": {{"type": "json_schema", '
        '"json_schema": {"name": "x", "schema": {"not": {"pattern": "(a|b)*a(a|b){20}"}}}}',
    ),
    "lone surrogate": (COMPLETIONS, '"prompt": "\\ud800"'),
    "long prompt": (COMPLETIONS, '"prompt": "' + "a " * 2_000_000 + '"'),
    "many prompts": (COMPLETIONS, '"prompt": [' + '"a",' * 300_000 + '"b"]'),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--trust-request-chat-template")
    yield server
    server.process.terminate()
    server.process.wait(60)


def cpu_seconds(server: Server) -> float:
    """Of the API server: how busy the machine is does not matter."""
    stat = Path(f"/proc/{server.children[API_SERVER]}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


class Others:
    """Clients that ask for little, again and again, and how long each answer took."""

    def __init__(self, server: Server) -> None:
        self._server, self._over = server, threading.Event()
        self.longest = 0.0
        self.count = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Others:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        body = {"prompt": "Once", "max_tokens": 4, "temperature": 0}
        with httpx.Client(base_url=self._server.url, timeout=60) as client:
            while not self._over.is_set():
                start = time.monotonic()
                assert client.get("/health").status_code == 200
                assert client.post(COMPLETIONS, json=body).status_code == 200
                self.longest = max(self.longest, time.monotonic() - start)
                self.count += 1


def test_endless_templates_are_refused_and_delay_no_other(server: Server) -> None:
    def ask(template: str) -> tuple[int, str]:
        body: dict[str, Any] = {"messages": HI, "max_tokens": 1, "chat_template": template}
        reply = httpx.post(server.url + CHAT, json=body, timeout=120)
        return reply.status_code, reply.text

    with Others(server) as others, ThreadPoolExecutor(4) as pool:
        answers = dict(zip(TEMPLATES, pool.map(ask, TEMPLATES.values()), strict=True))
    for name, (status, text) in answers.items():
        assert status == 400, (name, text)
        assert "uid=" not in text
    assert others.count >= 3
    assert others.longest < PATIENCE, f"another client waited {others.longest:.1f} s"


@pytest.mark.parametrize("case", BODIES)
def test_hostile_bodies_are_refused_soon(server: Server, case: str) -> None:
    route, fields = BODIES[case]
    before = cpu_seconds(server)
    reply = httpx.post(
        server.url + route,
        content="{" + fields + "}",
        headers={"content-type": "application/json"},
        timeout=120,
    )
    seconds = cpu_seconds(server) - before
    assert reply.status_code == 400, reply.text[:500]
    assert reply.json()["error"]["message"]
    assert seconds < COST
    assert httpx.get(f"{server.url}/health").status_code == 200
