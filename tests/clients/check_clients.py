"""Clients that are too heavy for every test run, each as its users use it (`make check-clients`):
litellm, langchain-openai, guidellm, and vLLM's own `vllm bench serve` (checklist 156, 157); tools
and typed answers of openai, anthropic, langchain-openai, instructor, PydanticAI and the OpenAI
Agents SDK, on the built-in model (checklist 111); embeddings and reranking by openai, cohere,
langchain-openai, llama-index and litellm.

They run in environments of their own, made by the Makefile; vLLM's is under LAB where that is set,
as for `make bench-peers`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tiny
from benchmarks.served import MODEL, ROOT, SMALL, Server, serve
from galley.cli.bench.backends import Outcome
from galley.cli.bench.metrics import METRICS, summarize
from tests.models.checkpoints import Case, make
from tests.models.encoders import SIZES
from tests.server.test_cross_encoder import write_tokenizer

#: Several start PyTorch.
pytestmark = pytest.mark.timeout(900)
CLIENTS = ROOT / "build" / "clients" / "bin"
VLLM = Path(os.environ.get("LAB", ROOT / "build" / "lab")) / "vllmcpu" / "bin" / "vllm"
PROGRAMS = Path(__file__).parent / "programs"
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
#: Flags of `vllm bench serve` that are tried, and metrics that must come of them.
BENCHES: dict[str, tuple[str, ...]] = {
    "random": ("--dataset-name random --random-input-len 32 --random-output-len 16 --ignore-eos",),
    "rate": (
        "--backend openai-chat --endpoint /v1/chat/completions --dataset-name sharegpt",
        "--dataset-path {folder}/sharegpt.json --sharegpt-output-len 12 --request-rate 20",
        "--burstiness 0.5 --goodput ttft:5000 tpot:500 --save-detailed",
        "--percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,90,99",
    ),
    "custom": (
        "--dataset-name custom --dataset-path {folder}/custom.jsonl --custom-output-len 8",
        "--max-concurrency 4 --num-warmups 2 --logprobs 2 --temperature 0.5 --top-p 0.9 --top-k 20",
        "--skip-chat-template --request-id-prefix mine- --profile",
    ),
    "prefix": (
        "--dataset-name prefix_repetition --prefix-repetition-prefix-len 64",
        "--prefix-repetition-suffix-len 16 --prefix-repetition-num-prefixes 2",
        "--prefix-repetition-output-len 8 --ramp-up-strategy linear --ramp-up-start-rps 5",
        "--ramp-up-end-rps 40",
    ),
    "responses": (
        "--backend openai-responses --endpoint /v1/responses --dataset-name random",
        "--random-input-len 32 --random-output-len 16",
    ),
}


def run(command: list[str | Path], folder: Path, seconds: int = 300) -> str:
    """Its output. Fails if it fails."""
    env = {**os.environ, **OFFLINE, "NO_COLOR": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as Hugging Face keeps it, and two data sets."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("clients")
    file = tiny.tokenizer_file()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(folder / "tokenizer")
    texts = [f"Tell me about lamp number {i}, and what it shines on." for i in range(64)]
    (folder / "custom.jsonl").write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    talks = [
        {"conversations": [{"from": "human", "value": t}, {"from": "gpt", "value": t}]}
        for t in texts
    ]
    (folder / "sharegpt.json").write_text(json.dumps(talks))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    profiler = json.dumps({"profiler": "torch", "torch_profiler_dir": str(folder / "profiles")})
    flags = tiny.flags(folder, 1024)
    with serve(*flags, "--profiler-config", profiler) as server:
        yield server
        assert not [line for line in server.log if "ERROR" in line or "Traceback" in line]


@pytest.mark.parametrize("program", ["litellm_client.py", "langchain_client.py"])
def test_library(program: str, server: Server, folder: Path) -> None:
    said = run([CLIENTS / "python", PROGRAMS / program, server.url, tiny.NAME], folder)
    assert said.rstrip().endswith("fine"), said


def test_embeddings_and_reranking(talker: Server, tmp_path: Path) -> None:
    embedder, reranker = tmp_path / "embedder", tmp_path / "reranker"
    for path, head in ((embedder, "Model"), (reranker, "ForSequenceClassification")):
        make(Case("Bert", {**SIZES, "num_labels": 1}, head)).save_pretrained(path)
        write_tokenizer(path)
    flags = ("--served-model-name", "m", "--kv-cache-memory-bytes", "16m")
    with serve(str(embedder), *flags) as one, serve(str(reranker), *flags) as two:
        program = PROGRAMS / "embeddings_client.py"
        said = run([CLIENTS / "python", program, one.url, two.url, "m"], tmp_path)
        assert said.rstrip().endswith("fine"), said
        # Checklist 82, 90: documents are embedded, found, reranked and answered from.
        words = "fox\n\ndog\n\nthe fox is quick\n\na dog sleeps"
        (tmp_path / "notes.txt").write_text(words)
        command: list[str | Path] = [CLIENTS / "python", ROOT / "examples/rag/rag.py"]
        command += ["--embedder", one.url, "--reranker", two.url, "--chat", talker.url]
        said = run([*command, "--documents", "notes.txt", "What does the fox do?"], tmp_path)
        assert said.count("\n- ") == 2, said
        assert len(said.splitlines()) > 3, said


@pytest.fixture(scope="module")
def talker() -> Iterator[Server]:
    """The built-in model, whose answers make sense."""
    with serve(*SMALL, "--enable-auto-tool-choice", "--tool-call-parser", "hermes") as server:
        yield server


@pytest.mark.parametrize("library", ["openai", "anthropic", "langchain"])
def test_tools(library: str, talker: Server, folder: Path) -> None:
    """Checklist 111: a tool's call, its result and the answer, streamed and whole."""
    program = PROGRAMS / f"{library}_tools_client.py"
    said = run([CLIENTS / "python", program, talker.url, MODEL], folder)
    assert ": fine" in said, said


@pytest.mark.parametrize("library", ["instructor", "pydantic_ai", "agents"])
def test_typed_answers(library: str, talker: Server, folder: Path) -> None:
    """Checklist 111: answers of a Pydantic type, by tools and by a schema, streamed and whole."""
    program = PROGRAMS / f"{library}_client.py"
    said = run([CLIENTS / "python", program, talker.url, MODEL], folder)
    assert ": fine" in said, said


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_guidellm(path: str, server: Server, folder: Path) -> None:
    """Checklist 157."""
    report = folder / "guide.json"
    command: list[str | Path] = [CLIENTS / "guidellm", "run", "--disable-progress"]
    command += ["--backend", f"kind=openai_http,target={server.url},request_format={path}"]
    command += ["--profile", "kind=concurrent,streams=4"]
    command += ["--constraint", "kind=max_requests,count=40"]
    command += ["--tokenizer", f"kind=huggingface_auto,model={folder / 'tokenizer'}"]
    command += ["--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16"]
    run([*command, "--output", f"kind=json,path={report}"], folder)
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["errored"] == 0, totals
    assert totals["successful"] >= 36, totals
    for name in ("time_to_first_token_ms", "inter_token_latency_ms", "output_tokens_per_second"):
        assert benchmark["metrics"][name]["successful"]["mean"] > 0, name


def bench_command(
    server: Server, folder: Path, program: list[str | Path], model: str, flags: str, name: str
) -> list[str | Path]:
    command = [*program, "bench", "serve", "--base-url", server.url, "--model", model]
    command += ["--tokenizer", folder / "tokenizer", "--save-result", "--result-dir", folder]
    return [*command, "--result-filename", name, *flags.split()]


def bench(server: Server, folder: Path, model: str, flags: str, name: str) -> dict[str, Any]:
    """The result file of `vllm bench serve`."""
    run(bench_command(server, folder, [VLLM], model, flags, name), folder)
    told: dict[str, Any] = json.loads((folder / name).read_text())
    return told


@pytest.mark.parametrize("name", BENCHES)
def test_vllm_bench_serve(name: str, server: Server, folder: Path) -> None:
    """Checklist 156: vLLM's program against this server, by way of several of its flags."""
    flags = " ".join(BENCHES[name]).format(folder=folder) + " --num-prompts 40"
    told = bench(server, folder, tiny.NAME, flags, f"{name}.json")
    assert told["completed"] == 40, told
    assert told.get("failed", 0) == 0
    assert told["total_output_tokens"] > 100
    assert told["mean_ttft_ms"] > 0
    assert told["mean_tpot_ms"] > 0
    if name == "custom":
        assert list((folder / "profiles").iterdir())


def test_both_benches_report_the_same(server: Server, folder: Path) -> None:
    """`vllm bench serve` and `galley bench serve` send the same load, and of one run's times they
    report the same figures.
    """
    flags = "--dataset-name random --random-input-len 64 --random-output-len 16 --ignore-eos"
    flags += " --num-prompts 24 --max-concurrency 4 --seed 1 --temperature 0 --save-detailed"
    flags += " --percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,99"
    theirs = bench(server, folder, tiny.NAME, flags, "theirs.json")
    own: list[str | Path] = [sys.executable, "-m", "galley"]
    run(bench_command(server, folder, own, tiny.NAME, flags, "ours.json"), ROOT)
    ours = json.loads((folder / "ours.json").read_text())
    for name in ("completed", "total_input_tokens", "total_output_tokens"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.02), name
    columns = ("input_lens", "output_lens", "ttfts", "itls", "start_times")
    outcomes = [
        Outcome(
            success=True,
            prompt_tokens=prompt,
            output_tokens=output,
            start=start,
            ttft=ttft,
            itls=itls,
            latency=ttft + sum(itls),
        )
        for prompt, output, ttft, itls, start in zip(*(theirs[c] for c in columns), strict=True)
    ]
    figures = summarize(outcomes, theirs["duration"], {}, tuple(METRICS), (50, 99))
    for name in sorted(figures.keys() & theirs.keys()):
        if isinstance(theirs[name], float):
            assert figures[name] == pytest.approx(theirs[name], rel=0.01), name
