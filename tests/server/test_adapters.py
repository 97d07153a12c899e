"""Adapters over HTTP: listed, chosen by name, loaded, replaced and unloaded while others run."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from galley.config.server import LoRAModule
from galley.errors import ConfigError
from galley.kernels.adapters import AdapterShape, PackedAdapter
from galley.lora import AdapterFolder, load_number
from galley.messages import Finished, Outputs, Started
from galley.observability.adapter_metrics import AdapterMetrics
from galley.request import FinishReason, LoRARequest, Request, SamplingParams
from galley.server.adapters import ServedAdapters
from galley.server.resolvers import FolderResolver
from tests.lora.checkpoints import WEIGHTS, random_adapter, save_adapter, uniform
from tests.lora.test_many import model_shapes
from tests.server.fake_engine import FakeEngine
from tests.server.served import LIMITS, Served, serve
from tests.small_model import small_model

ROOT = Path(__file__).parents[2]
BASE = "small"
PROMPT = "The lens bends the light of the sun, and"


class Real(Served):
    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid = port, pid

    def said(self, model: str, prompt: str = PROMPT, **options: Any) -> str:
        options = {"max_tokens": 12, "temperature": 1.0, "seed": 3, **options}
        answer = self.client(timeout=60).completions.create(model=model, prompt=prompt, **options)
        return answer.choices[0].text

    def load(self, name: str, path: Path | str, **fields: Any) -> tuple[int, str]:
        body = {"lora_name": name, "lora_path": str(path), **fields}
        answer = self.post("/v1/load_lora_adapter", body)
        return answer.status_code, answer.text

    def unload(self, name: str) -> tuple[int, str]:
        answer = self.post("/v1/unload_lora_adapter", {"lora_name": name})
        return answer.status_code, answer.text

    def listed(self) -> dict[str, dict[str, Any]]:
        return {card["id"]: card for card in self.get("/v1/models").json()["data"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters a0 … a4; `found` in a subfolder for the resolver."""
    folder, shapes = tmp_path_factory.mktemp("adapters"), model_shapes(small_model())
    for i, name in enumerate(("a0", "a1", "a2", "a3", "a4", "cache/found")):
        save_adapter(folder / name, random_adapter(shapes, uniform(8), i, 0.05), 8)
    return folder


@pytest.fixture(scope="module")
def real(folder: Path) -> Iterator[Real]:
    flags = ["--port", "0", "--host", "127.0.0.1", "--max-model-len", "512"]
    flags += ["--served-model-name", BASE, "--enable-lora", "--max-loras", "3"]
    flags += ["--api-server-count", "2", "--kv-cache-memory-bytes", "64M"]
    flags += ["--lora-modules", f"a0={folder}/a0"]
    flags += [json.dumps({"name": "a1", "path": f"{folder}/a1", "base_model_name": "parent"})]
    child = subprocess.Popen(
        [sys.executable, "-m", "galley", "serve", str(small_model()), *flags],
        cwd=ROOT,
        env={
            **os.environ,
            "VLLM_LOGGING_STREAM": "ext://sys.stderr",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_LORA_RESOLVER_CACHE_DIR": f"{folder}/cache",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        lines = []
        for line in child.stderr:
            lines.append(line)
            found = re.search(r"serving at http://127.0.0.1:(\d+)", line)
            if found:
                break
        else:
            pytest.fail("".join(lines))
        with ThreadPoolExecutor(1) as drain:
            rest = drain.submit(child.stderr.read)
            yield Real(int(found[1]), child.pid)
            child.send_signal(signal.SIGTERM)
            assert child.wait(20) == 0
            assert "Traceback" not in rest.result(20)
    finally:
        child.kill()
        child.wait()


def test_adapters_are_listed_and_chosen_by_name(real: Real, folder: Path) -> None:
    listed = real.listed()
    assert list(listed) == [BASE, "a0", "a1"]
    assert (listed["a0"]["parent"], listed["a0"]["root"]) == (BASE, f"{folder}/a0")
    assert listed["a1"]["parent"] == "parent"
    assert listed[BASE]["parent"] is None
    assert len({real.said(name) for name in listed}) == 3
    message = [{"role": "user", "content": "Hello"}]
    chats = {
        real.client().chat.completions.create(model=name, messages=message, max_tokens=8).model
        for name in listed
    }
    assert chats == set(listed)


def test_without_the_variable_the_routes_are_not_there() -> None:
    with serve() as server:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters"):
            assert server.post(path, {}).status_code == 404


@pytest.mark.parametrize(
    ("text", "name", "path", "base"),
    [
        ("a=b", "a", "b", None),
        ("a=b=c", "a", "b=c", None),
        ('{"name": "a", "path": "b", "base_model_name": "c"}', "a", "b", "c"),
    ],
)
def test_modules_are_named_on_the_command_line(
    text: str, name: str, path: str, base: str | None
) -> None:
    assert LoRAModule.read(text) == LoRAModule(name, path, base)


@pytest.mark.parametrize(
    "text", ["a", "=b", "a=", "{", '{"name": "a"}', '{"name": 1, "path": "b"}', '{"x": 1}']
)
def test_modules_that_name_nothing_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--lora-modules"):
        LoRAModule.read(text)


def test_metrics_show_adapters_that_wait_and_that_run() -> None:
    registry = CollectorRegistry()
    metrics = AdapterMetrics(registry, 2, {7: "a", 8: "b"}.__getitem__)

    def info() -> list[Any]:
        metric = next(m for m in registry.collect() if m.name == "vllm:lora_requests_info")
        return list(metric.samples)

    for handle, adapter in ((1, 7), (2, 8), (3, 0)):
        request = Request(
            handle=handle,
            request_id="",
            prompt_token_ids=b"",
            params=SamplingParams(),
            max_total_tokens=1,
            adapter=adapter,
        )
        metrics.added(request, 0, 1)
    metrics.outputs(Outputs(1, 1, 0, 0.0, started=[Started(1, 0, 0.0, 0.0)]))
    [sample] = info()
    assert sample.labels == {
        "max_lora": "2",
        "waiting_lora_adapters": "b",
        "running_lora_adapters": "a",
    }
    metrics.finished(1, FinishReason.STOP, 5)
    metrics.finished(2, FinishReason.ABORT, 0)
    [sample] = info()
    assert (sample.labels["waiting_lora_adapters"], sample.labels["running_lora_adapters"]) == (
        "",
        "",
    )
    assert registry.get_sample_value("galley:lora_requests_total", {"adapter": "a"}) == 1
    assert registry.get_sample_value("galley:lora_generation_tokens_total", {"adapter": "a"}) == 5


def test_load_replace_and_unload(real: Real, folder: Path) -> None:
    assert real.load("x", folder / "a2") == (
        200,
        "Success: LoRA adapter 'x' added successfully.",
    )
    first = real.said("x")
    status, text = real.load("x", folder / "a3")
    assert (status, "already been loaded" in text) == (400, True)
    assert real.said("x") == first
    for _ in range(4):  # whichever process answers
        assert real.load("x", folder / "a3", load_inplace=True)[0] == 200
        assert {real.said("x") for _ in range(4)} == {real.said("x")} != {first}
        assert real.load("x", folder / "a2", load_inplace=True)[0] == 200
        assert real.said("x") == first
    assert real.unload("x") == (200, "Success: LoRA adapter 'x' removed successfully.")
    for _ in range(4):
        answer = real.post("/v1/completions", {"model": "x", "prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, 404)
    assert real.unload("x")[0] == 404
    assert "x" not in real.listed()
    assert real.post("/adapters", {"name": "y", "src": str(folder / "a2")}).status_code == 200
    assert real.said("y") == first
    assert httpx.delete(f"{real.url}/adapters/y").status_code == 200
    assert httpx.delete(f"{real.url}/adapters/y").status_code == 404


def test_broken_adapters_are_refused_and_change_nothing(
    real: Real, folder: Path, tmp_path: Path
) -> None:
    before = real.said("a0")
    shapes = model_shapes(small_model())
    wide = save_adapter(tmp_path / "wide", random_adapter(shapes, uniform(32), 1), 32)
    cut = save_adapter(tmp_path / "cut", random_adapter(shapes, uniform(4), 1), 4)
    (cut / WEIGHTS).write_bytes((cut / WEIGHTS).read_bytes()[:999])
    for name, path, status, message in (
        ("b", wide, 400, "LoRA rank 32 is greater than max_lora_rank 16"),
        ("b", cut, 400, "truncated"),
        ("b", wide / WEIGHTS, 400, "not a GGUF file"),
        ("b", tmp_path / "absent", 404, "No adapter found"),
        ("b", tmp_path, 400, "adapter_config.json"),
        ("", folder / "a2", 400, "needs a name"),
        ("b\n", folder / "a2", 400, "printable"),
        (BASE, folder / "a2", 400, "The model itself"),
    ):
        got, text = real.load(name, path)
        assert (got, message in json.loads(text)["error"]["message"]) == (status, True), text
    assert real.post("/v1/load_lora_adapter", {"lora_name": "b"}).status_code == 400
    assert list(real.listed()) == [BASE, "a0", "a1"]
    assert real.said("a0") == before


def test_a_file_is_closed_when_its_last_request_ends(tmp_path: Path) -> None:
    """At once, although readers still hold the request."""
    packed = PackedAdapter.empty(AdapterShape((8,), (False,), (8,), (0,)), [1], [1.0], False)
    loader: Any = SimpleNamespace(folder=AdapterFolder(tmp_path / "packed"), read=lambda _: packed)
    adapters = ServedAdapters(loader, ())
    adapters.load_static(LoRAModule("a", str(tmp_path)))
    file = tmp_path / "packed" / str(load_number(packed))
    engine = FakeEngine(None, LIMITS, lambda _: [])
    given = SamplingParams(n=2, detokenize=False)
    submission = engine.inputs.process([1, 2], given, "r", adapter=adapters.find("a"))
    state = engine.outputs.add(submission)
    asyncio.run(adapters.unload("a"))

    def is_open() -> bool:
        opened = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
        return str(file) in opened

    first, second = state.sequences
    for sequence, left in ((first, True), (second, False)):
        assert is_open()
        end = Finished(sequence.request.handle, FinishReason.STOP)
        engine.outputs.process(Outputs(1, 1, 0, 0.0, finished=[end]))
        assert is_open() == left
    output = state.take()
    assert output is not None
    assert output.lora_request == LoRARequest("a", 1, str(tmp_path))
    assert adapters.find("a") is None
    assert not file.exists()


def test_a_resolver_finds_folders_by_name(real: Real, folder: Path) -> None:
    for name in ("../a2", "..", "cache/found", "absent"):
        answer = real.post("/v1/completions", {"model": name, "prompt": "a"})
        assert answer.status_code == 404
    assert real.said("found") not in (real.said(BASE), real.said("a0"))
    assert real.listed()["found"]["root"] == f"{folder}/cache/found"
    assert real.unload("found")[0] == 200


def test_a_resolver_finds_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(b"")
    (tmp_path.parent / "outside.gguf").write_bytes(b"")
    resolver = FolderResolver(tmp_path)
    assert asyncio.run(resolver.find("one")) == tmp_path / "one.gguf"
    for name in ("two", "one.gguf", "../outside", "..\\outside"):
        assert asyncio.run(resolver.find(name)) is None


def test_several_servers_agree(real: Real, folder: Path) -> None:
    """Whichever of the two answers: a new connection each time."""
    assert real.load("z", folder / "a4")[0] == 200
    wanted = real.said("z")
    for _ in range(8):
        with httpx.Client(base_url=real.url) as client:
            cards = {card["id"]: card for card in client.get("/v1/models").json()["data"]}
            assert cards["z"]["root"] == f"{folder}/a4"
        assert real.said("z") == wanted
    assert real.unload("z")[0] == 200
    for _ in range(8):
        assert "z" not in real.listed()


def test_metrics_name_the_adapters(real: Real) -> None:
    real.said("a0")
    text = real.get("/metrics").text
    assert re.search(r'galley:lora_requests_total\{adapter="a0"\} [1-9]', text)
    assert 'vllm:lora_requests_info{max_lora="3",running_lora_adapters="",waiting' in text


def test_metrics_show_adapters_of_all_servers(real: Real) -> None:
    """Whichever process has the request, and whichever answers."""
    seen = threading.Event()

    def keep_asking(name: str) -> None:
        for _ in range(100):
            if seen.is_set():
                return
            real.said(name, max_tokens=400, extra_body={"ignore_eos": True})

    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(keep_asking, name) for name in ("a0", "a1")]
        while not seen.is_set() and not all(future.done() for future in asked):
            if 'running_lora_adapters="a0,a1"' in real.get("/metrics").text:
                seen.set()
        for future in asked:
            future.result()
    assert seen.is_set()


def test_answers_stay_right_under_loads_and_kills(real: Real, folder: Path) -> None:
    """Requests in flight finish on the weights that they began with, also after a crash."""
    wanted = {name: real.said(name, max_tokens=32) for name in (BASE, "a0", "a1")}
    assert real.load("z", folder / "a4")[0] == 200
    wanted["z"] = real.said("z", max_tokens=32)
    stop = threading.Event()

    def change() -> int:
        loads = 0
        while not stop.is_set():
            for path in ("a2", "a3"):
                assert real.load("w", folder / path, load_inplace=True)[0] == 200
                loads += 1
        return loads

    def ask(i: int) -> tuple[str, str]:
        name = list(wanted)[i % len(wanted)]
        return name, real.said(name, max_tokens=32)

    with ThreadPoolExecutor(9) as threads:
        changing = threads.submit(change)
        try:
            answers = threads.map(ask, range(24))
            kill_engine(real.pid)
            for name, answer in answers:
                assert answer == wanted[name]
        finally:
            stop.set()
        assert changing.result() > 0
    assert real.unload("w")[0] == real.unload("z")[0] == 200


def kill_engine(launcher: int) -> None:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for pid in map(int, children):
        if b"Engine" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
            return
    pytest.fail("there is no engine process")
