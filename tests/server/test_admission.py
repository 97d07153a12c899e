"""--max-num-queued-reqs and --max-num-queued-tokens: 503 with Retry-After, and counted."""

from __future__ import annotations

import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import httpx
import pytest

from galley.config.server import ServerConfig
from galley.errors import Overloaded
from galley.messages import Outputs
from galley.request import FinishReason, Request, SamplingParams
from galley.server.admission import Admission
from galley.server.shared_counts import SharedCounts
from tests.server.served import Served, serve
from tests.server.test_disconnect import send, wait_for

BODY: dict[str, Any] = {"prompt": "hi there", "max_tokens": 4}
REJECTED = "vllm:admission_rejections_total"


def refused(answer: httpx.Response, flag: str) -> None:
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    error = answer.json()["error"]
    assert error["type"] == "ServiceUnavailableError"
    assert flag in error["message"]


def hold(served: Served, body: dict[str, Any], sequences: int) -> Any:
    """A request that the engine keeps."""
    served.engine.hold = True
    before = served.engine.num_unfinished
    sock = send(served, "/v1/completions", body)
    wait_for(lambda: served.engine.num_unfinished == before + sequences)
    return sock


def test_requests() -> None:
    with serve(ServerConfig(max_num_queued_reqs=3)) as served:
        assert served.post("/v1/completions", {**BODY, "n": 5}).status_code == 200
        with hold(served, {**BODY, "n": 3}, 3):
            for path, body in (
                ("/v1/completions", BODY),
                ("/v1/completions", {**BODY, "use_beam_search": True}),
                ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
            ):
                refused(served.post(path, body), "--max-num-queued-reqs")
            assert served.get("/health").status_code == 200
            served.engine.hold = False
        wait_for(lambda: served.engine.num_unfinished == 0)
        assert served.post("/v1/completions", BODY).status_code == 200
        assert served.metric(REJECTED + '{reason="max_num_queued_reqs"}') == 3
        assert served.metric(REJECTED + '{reason="max_num_queued_tokens"}') == 0


def test_tokens() -> None:
    with serve(ServerConfig(max_num_queued_tokens=8)) as served:
        # The limit bars the next one, however long this one is.
        long = {**BODY, "prompt": [7] * 20}
        assert served.post("/v1/completions", long).status_code == 200
        first = {**BODY, "prompt": [7] * 7, "n": 2}
        with hold(served, first, 2), hold(served, {**BODY, "prompt": [7]}, 1):
            refused(served.post("/v1/completions", BODY), "--max-num-queued-tokens")
            served.engine.pause = 0.2
            served.engine.hold = False
            # Past its first token a prompt waits no more.
            wait_for(lambda: served.post("/v1/completions", BODY).status_code == 200)
        assert served.metric(REJECTED + '{reason="max_num_queued_tokens"}') >= 1


def test_one_of_several_prompts_takes_back_the_others() -> None:
    with serve(ServerConfig(max_num_queued_reqs=2)) as served:
        served.engine.hold = True
        refused(
            served.post("/v1/completions", {**BODY, "prompt": ["a", "b", "c"]}),
            "--max-num-queued-reqs",
        )
        assert served.engine.num_unfinished == 0


@pytest.mark.parametrize("field", ["max_num_queued_reqs", "max_num_queued_tokens"])
def test_a_limit_is_at_least_one(field: str) -> None:
    with pytest.raises(ValueError, match=field.replace("_", "-")):
        ServerConfig(**{field: 0})


def test_limits_hold_over_all_servers(tmp_path: Path) -> None:
    """Requests of other live API servers count."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine, dead = (SharedCounts(tmp_path / "counts", i) for i in (0, 1))
    dead.publish(2, 5)
    assert mine.of_others() == (2, 5)
    rejected: list[str] = []
    admission = Admission(3, 6, rejected.append, mine)
    admission.check()
    dead.publish(3, 5)
    with pytest.raises(Overloaded, match="3 requests are in flight"):
        admission.check()
    dead.publish(0, 6)
    with pytest.raises(Overloaded, match="6 prompt tokens are waiting"):
        admission.check()
    assert rejected == ["max_num_queued_reqs", "max_num_queued_tokens"]
    dead._words[dead._own] = gone.pid
    admission.check()
    assert mine.of_others() == (0, 0)


def test_other_servers_hear_of_first_tokens_and_of_ends(tmp_path: Path) -> None:
    mine, other = (SharedCounts(tmp_path / "counts", i) for i in (0, 1))
    admission = Admission(9, 99, shared=mine)
    request = Request(
        handle=7,
        request_id="r",
        prompt_token_ids=array("i", [1, 2, 3]).tobytes(),
        params=SamplingParams(),
        max_total_tokens=9,
        eos_token_ids=(),
    )
    admission.added(request, 0, 1)
    assert other.of_others() == (1, 3)
    outputs = Outputs(step=1, epoch=1, engine_index=0, timestamp=0.0)
    outputs.handles = array("q", [7]).tobytes()
    admission.outputs(outputs)
    assert other.of_others() == (1, 0)
    admission.finished(7, FinishReason.STOP, 1)
    assert other.of_others() == (0, 0)
