"""Chat templates over HTTP: quick ones run at once, others in a child process beside everything."""

from __future__ import annotations

import threading
import time
from typing import Any

from galley.chat.templates import MAX_QUICK_MESSAGES
from galley.config.server import ServerConfig
from tests.server.served import MODEL, serve

HI = {"role": "user", "content": "hi"}
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def _body(count: int = 1, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [HI] * count, "max_tokens": 3, **more}


def _template_threads() -> int:
    return sum(t.name.startswith("chat-template") for t in threading.enumerate())


def test_a_quick_template_needs_no_thread_and_a_large_conversation_does() -> None:
    with serve(chat_template="{{ messages[-1].content }}{{ messages | length }}") as served:
        before = _template_threads()
        assert served.post("/v1/chat/completions", json=_body()).status_code == 200
        assert _template_threads() == before
        body = {"model": MODEL, "messages": [HI] * (MAX_QUICK_MESSAGES + 1)}
        count = served.post("/tokenize", json=body)
        assert count.json()["count"] == len(served.engine.outputs.tokenizer.encode("hi501", False))
        assert _template_threads() == before + 1


def test_an_endless_template_of_a_request_is_a_400_that_names_the_limit() -> None:
    """And a stream that runs beside it goes on."""
    with serve(ServerConfig(trust_request_chat_template=True)) as served:
        replies: list[Any] = []
        hostile = threading.Thread(
            target=lambda: replies.append(
                served.post("/v1/chat/completions", json=_body(chat_template=ENDLESS))
            )
        )
        hostile.start()
        for _ in range(5):
            time.sleep(0.1)
            assert served.post("/v1/chat/completions", json=_body()).status_code == 200
        assert hostile.is_alive(), "the others were answered beside it"
        hostile.join()
        [refused] = replies
        fine = served.post("/v1/chat/completions", json=_body(chat_template="fine"))
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages"
    assert "more than 2 seconds of CPU time" in refused.json()["error"]["message"]
    assert fine.status_code == 200
