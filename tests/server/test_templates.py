"""A model's chat template that takes long works, beside everything else."""

from __future__ import annotations

import threading

from tests.server.served import MODEL, serve

SLOW = (
    "{% for i in range(9999) %}{% for j in range(99) %}{% endfor %}{% endfor %}"
    "{{ messages[0].content }}"
)


def test_a_slow_template_runs_in_a_thread_of_its_own() -> None:
    seen: list[str] = []
    with serve(chat_template=SLOW) as served:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        reply = served.post("/v1/chat/completions", json=body)
        served.call(lambda: seen.extend(t.name for t in threading.enumerate()))
        count = served.post("/tokenize", json={"model": MODEL, "messages": body["messages"]})
    assert reply.status_code == 200, reply.text
    assert any(name.startswith("chat-template") for name in seen)
    assert count.json()["count"] > 0


def test_a_quick_template_needs_no_thread() -> None:
    with serve(chat_template="{{ messages[0].content }}") as served:
        before = sum(t.name.startswith("chat-template") for t in threading.enumerate())
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
        assert served.post("/v1/chat/completions", json=body).status_code == 200
        after = sum(t.name.startswith("chat-template") for t in threading.enumerate())
    assert before == after
