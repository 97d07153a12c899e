"""How users come in: one command, or one import (checklist 151–154, 159, 160).

Expected values are what the words of the list say, tried from outside.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks import tiny
from benchmarks.served import ROOT, SMALL, serve
from galley import LLM, SamplingParams
from galley.cli.main import main
from galley.cli.serve import parser
from galley.config.server import ServerConfig
from galley.errors import GalleyError
from galley.loader.source import default_model
from tests.small_model import small_model

#: Flag → its default as shown in the help; None: refused, with a reason.
FLAGS = {
    "--gpu-memory-utilization": "0.9",
    "--max-num-seqs": "",
    "--max-num-batched-tokens": "",
    "--max-model-len": "",
    "--tensor-parallel-size": "1",
    "--quantization": None,
    "--enable-prefix-caching": "True",
    "--scheduling-policy": "fcfs",
}


def python(code: str) -> str:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---------------------------------------------------------------- one command


def test_one_command_serves_a_folder(tmp_path: Path) -> None:
    """Checklist 151."""
    assert ServerConfig().port == 8000
    assert parser().parse([]).values.get("port", ServerConfig().port) == 8000
    flags = tiny.flags(tmp_path)
    assert flags[0] == "--model"
    with serve(flags[1], *flags[2:]) as server:
        assert server.status("/health") == 200
        body = {"model": tiny.NAME, "prompt": "Hi", "max_tokens": 2}
        answer = httpx.post(server.url + "/v1/completions", json=body, timeout=30)
        assert answer.json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("topic", "words"),
    [
        ("", ["option groups", "--help=GROUP", "examples"]),
        ("all", ["--max-model-len", "--api-key", "--scheduling-policy"]),
        ("Frontend", ["--api-key", "--ssl-keyfile"]),
        ("max-num-seqs", ["--max-num-seqs", "Maximum sequences"]),
    ],
)
@pytest.mark.parametrize("command", [("serve",), ("bench", "serve")])
def test_help_by_group_and_flag(
    command: tuple[str, ...], topic: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Checklist 160."""
    if command != ("serve",):
        topic, words = {
            "": ("", ["--request-rate", "examples"]),
            "all": ("all", ["--request-rate", "--num-prompts", "--save-result"]),
            "Frontend": ("Arrivals", ["--request-rate", "--burstiness"]),
            "max-num-seqs": ("request-rate", ["--request-rate"]),
        }[topic]
    with pytest.raises(SystemExit) as ended:
        main([*command, f"--help={topic}" if topic else "--help"])
    assert not ended.value.code
    told = capsys.readouterr().out
    assert all(word in told for word in words), told


@pytest.mark.parametrize("flag", FLAGS)
def test_the_help_of_a_flag_shows_its_default(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checklist 159."""
    with pytest.raises(SystemExit):
        parser().parse([f"--help={flag[2:]}"])
    told = capsys.readouterr().out
    assert flag in told
    default = FLAGS[flag]
    assert re.search(r"\(default: .+\)", told) or default in ("", None), told
    if default:
        assert f"(default: {default})" in told


def test_what_needs_more_devices_or_another_format_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Checklist 159."""
    for words, reason in (
        (("--tensor-parallel-size", "4", "--max-model-len", "4096"), "one rank"),
        (("--quantization", "awq"), "Weights are used in its format"),
    ):
        assert main(["serve", str(default_model()), *words]) == 2
        said = capsys.readouterr().err
        assert words[0] in said
        assert reason in said
        assert said.count("\n") == 1


class Load:
    """The answers of a server with some flags to the same four requests."""

    def __init__(self, *flags: str) -> None:
        with serve(str(small_model()), *SMALL, *flags) as server:
            words = "One two three four five six seven. " * 20
            body = {"prompt": [words] * 4, "max_tokens": 4, "temperature": 0}
            reply = httpx.post(server.url + "/v1/completions", json=body, timeout=120)
            self.status = reply.status_code
            late = {**body, "prompt": "Hi", "priority": 1}
            self.late = httpx.post(server.url + "/v1/completions", json=late, timeout=60)
            self.models = httpx.get(server.url + "/v1/models").json()["data"]
            self.metrics = server.wait_idle()
            self.log = "".join(server.log)

    def step(self, q: float) -> float:
        return self.metrics.quantile("galley:step_tokens", q)


def test_each_flag_has_its_effect() -> None:
    """Checklist 159: against the same load without the flags."""
    plain = Load()
    other = Load(
        *("--max-num-batched-tokens", "64", "--max-num-seqs", "1"),
        *("--no-enable-prefix-caching", "--scheduling-policy", "priority"),
        *("--max-model-len", "1024"),
    )
    assert plain.status == other.status == 200
    assert [load.models[0]["max_model_len"] for load in (plain, other)] == [2048, 1024]
    assert plain.step(1.0) > 64 >= other.step(1.0)
    hits = "vllm:prefix_cache_hits_total"
    assert plain.metrics.sum(hits) > 0 == other.metrics.sum(hits)
    queued = "vllm:request_queue_time_seconds"
    assert other.metrics.mean(queued) > plain.metrics.mean(queued)
    assert [load.late.status_code for load in (plain, other)] == [200, 200]
    with LLM(str(small_model()), gpu_memory_utilization=0.9, max_model_len=512) as llm:
        assert llm.generate("Hi", use_tqdm=False)[0].outputs[0].token_ids
    with pytest.raises(GalleyError, match="gpu_memory_utilization"):
        LLM(str(small_model()), gpu_memory_utilization=0.0001, max_model_len=512)


# ---------------------------------------------------------------- one import


def test_the_snippet_of_every_guide() -> None:
    """Checklist 152: vLLM's own first example, with the package's name in place of vLLM's."""
    said = python(
        """
        from galley import LLM, SamplingParams

        prompts = [
            "Hello, my name is",
            "The president of the United States is",
            "The capital of France is",
            "The future of AI is",
        ]
        sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
        llm = LLM(model="", max_model_len=512)
        outputs = llm.generate(prompts, sampling_params)
        for output in outputs:
            prompt = output.prompt
            generated_text = output.outputs[0].text
            print(f"Prompt: {prompt!r}, Generated text: {generated_text!r}")
        """
    )
    assert re.findall(r"^Prompt: '(.+?)',", said, re.M) == [
        "Hello, my name is",
        "The president of the United States is",
        "The capital of France is",
        "The future of AI is",
    ]
    assert len(re.findall(r"Generated text: ['\"].+['\"]$", said, re.M)) == 4


def test_sampling_parameters_do_what_they_say() -> None:
    """Checklist 153: greedy is deterministic, a seed repeats, a small top_p is greedy."""
    with LLM(str(small_model()), max_model_len=512) as llm:

        def texts(**params: Any) -> list[str]:
            prompts = ["Once upon a time"] * 3
            asked = SamplingParams(max_tokens=16, **params)
            return [o.outputs[0].text for o in llm.generate(prompts, asked, use_tqdm=False)]

        greedy = texts(temperature=0)
        assert len(set(greedy)) == 1
        assert texts(temperature=0) == greedy
        seeded = texts(temperature=1.0, seed=3)
        assert len(set(seeded)) == 1
        assert texts(temperature=1.0, seed=3) == seeded
        assert texts(temperature=1.0, seed=4) != seeded
        assert len(set(texts(temperature=1.5))) == 3
        assert texts(temperature=1.0, top_p=1e-6) == greedy
        assert texts(temperature=1.0, top_k=1) == greedy


@pytest.fixture
def quiet_ports() -> Iterator[None]:
    """A TCP socket of the test's own, so that the listing below is known to work."""
    with socket.create_server(("127.0.0.1", 0)):
        yield


def test_offline_no_port_is_opened(quiet_ports: None) -> None:
    """Checklist 154: no Internet socket, listening or not, in the process or its children."""
    listing = """
        import os, re
        from pathlib import Path

        def sockets(pid):
            inodes = set()
            for link in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    found = re.fullmatch(r"socket:\\[(\\d+)\\]", os.readlink(link))
                except OSError:
                    continue
                if found:
                    inodes.add(found[1])
            lines = [l.split() for name in ("tcp", "tcp6", "udp", "udp6")
                     for l in Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]]
            return [l for l in lines if l[9] in inodes]
        """
    said = python(
        textwrap.dedent(listing)
        + textwrap.dedent(
            f"""
            assert sockets({os.getpid()}), "the listing does not work"
            from galley import LLM, SamplingParams
            with LLM(max_model_len=512) as llm:
                outputs = llm.generate(["Hi"] * 8, SamplingParams(max_tokens=8), use_tqdm=False)
                pids = [os.getpid()]
                for pid in pids:
                    for children in Path(f"/proc/{{pid}}/task").glob("*/children"):
                        pids += map(int, children.read_text().split())
                assert not any(sockets(pid) for pid in pids)
            print(len(outputs), "answers")
            """
        )
    )
    assert said.strip() == "8 answers"
