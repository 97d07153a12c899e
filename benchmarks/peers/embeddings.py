"""Embeddings beside peers: throughput of short and of long texts, latency of one, and the start.

    make bench-embeddings LAB=~/lab [EMBEDDINGS_ARGS="--short 2000 --long 200 --runs 3"]

The model is all-MiniLM-L6-v2 in `$LAB/weights/minilm` (`embeddings.sh` unpacks it, and makes the
files of fastembed and llama.cpp). Rows of int8 have their cosines beside them.
Servers are asked for base64 in batches of 64, eight at a time; libraries, and Galley once more, run
in a process of their own, without HTTP: latencies are compared with those of the same kind. A peer
that is not installed is left out. The engines take turns, run by run, each started for its run.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import engines
from benchmarks.peers.engines import Engine, lab

#: Texts a second by kind, seconds of one text ("p50") and of the start, and some vectors.
Run = dict[str, Any]
REFERENCE = "sentence-transformers"
BATCH, AT_ONCE = 64, 8
WORDS = """
what is the best way to learn how does a fox jump over lazy dogs and who invented machine
translation in new york city when winter comes near capital of france population price history
""".split()  # noqa: SIM905
MODEL = "{lab}/weights/minilm"


def _galley(extra: str = "") -> tuple[Engine, str]:
    command = (
        f"{sys.executable} -m galley serve {MODEL} --served-model-name m --port {{port}} "
        f"--host 127.0.0.1 --disable-uvicorn-access-log {extra}"
    )
    return Engine(command), "weights/minilm"


def _llama(weights: str) -> tuple[Engine, str]:
    command = (
        f"{{llama_server}} -m {{lab}}/weights/{weights} --embedding --pooling mean "
        "--host 127.0.0.1 --port {port} -c 8192 -b 8192 -ub 8192 -np 16 -t 2"
    )
    return Engine(command), f"weights/{weights}"


#: Server → how it is started; what must be there.
SERVERS: dict[str, tuple[Engine, str]] = {
    "galley": _galley(),
    "galley int8": _galley("--quantization int8"),
    "vllm": (
        Engine(
            f"{{lab}}/vllmcpu/bin/vllm serve {MODEL} --served-model-name m --port {{port}} "
            "--host 127.0.0.1 --disable-uvicorn-access-log",
            engines.ENGINES["vllm-bf16"].environment,
        ),
        "vllmcpu/bin/vllm",
    ),
    "infinity": (
        Engine(
            f"{{lab}}/infinity/bin/infinity_emb v2 --model-id {MODEL} --served-model-name m "
            "--port {port} --host 127.0.0.1 --url-prefix /v1 --device cpu --engine torch"
        ),
        "infinity/bin/infinity_emb",
    ),
    "llama.cpp": _llama("minilm-bf16.gguf"),
    "llama.cpp q8_0": _llama("minilm-q8_0.gguf"),
}
_LIBRARY = """
import json, sys, time
texts, folder = json.load(open(sys.argv[1])), sys.argv[2]
begin = time.perf_counter()
{make}
embed(texts["short"][:1])
run = {{"start": time.perf_counter() - begin}}
for kind in ("short", "long"):
    begin = time.perf_counter()
    embed(texts[kind])
    run[kind] = len(texts[kind]) / (time.perf_counter() - begin)
times = []
for text in texts["short"][:100]:
    begin = time.perf_counter()
    embed([text])
    times.append(time.perf_counter() - begin)
run["p50"] = sorted(times)[len(times) // 2]
run["vectors"] = [[float(x) for x in v] for v in embed(texts["short"][:20])]
print(json.dumps(run))
"""
#: Library → its environment under LAB ("": this one), and the lines that define `embed`.
LIBRARIES = {
    "galley LLM": (
        "",
        "from galley import LLM\n"
        "model = LLM(folder, runner='pooling')\n"
        "embed = lambda texts: [o.outputs.embedding for o in model.embed(texts, use_tqdm=False)]",
    ),
    "sentence-transformers": (
        "st",
        "from sentence_transformers import SentenceTransformer\n"
        "model = SentenceTransformer(folder, device='cpu')\n"
        "embed = lambda texts: model.encode(texts, normalize_embeddings=True)",
    ),
    "fastembed": (
        "fastembed",
        "from fastembed import TextEmbedding\n"
        "from fastembed.common.model_description import ModelSource, PoolingType\n"
        "TextEmbedding.add_custom_model('m', PoolingType.MEAN, True, ModelSource(url='none'),"
        " 384, 'model.onnx')\n"
        "model = TextEmbedding('m', specific_model_path=folder + '-onnx')\n"
        "embed = lambda texts: list(model.embed(texts))",
    ),
}


def make_texts(short: int, long: int) -> dict[str, list[str]]:
    """Texts of 6 to 14 words (as questions have), and of about 256 tokens."""
    rng = random.Random(0)

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(words))

    return {
        "short": [text(rng.randint(6, 14)) for _ in range(short)],
        "long": [text(250) for _ in range(long)],
    }


def ask(base: str, texts: list[str]) -> list[np.ndarray]:
    """The vectors of texts, from a server."""
    body = json.dumps({"model": "m", "input": texts, "encoding_format": "base64"}).encode()
    request = urllib.request.Request(
        f"{base}/v1/embeddings", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        data = json.load(reply)["data"]
    return [np.frombuffer(base64.b64decode(entry["embedding"]), np.float32) for entry in data]


def measure(base: str, texts: dict[str, list[str]]) -> dict[str, float]:
    """One run against a server: texts a second, and seconds of one text."""
    found = {}
    for kind, items in texts.items():
        parts = [items[at : at + BATCH] for at in range(0, len(items), BATCH)]
        begin = time.perf_counter()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda part: ask(base, part), parts))
        found[kind] = len(items) / (time.perf_counter() - begin)
    times = []
    for text in texts["short"][:100]:
        begin = time.perf_counter()
        ask(base, [text])
        times.append(time.perf_counter() - begin)
    return {**found, "p50": statistics.median(times)}


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def served(name: str, port: int, log: Path) -> Iterator[tuple[str, float]]:
    """A running server: its address, and seconds from the command to the first vector."""
    begin = time.perf_counter()
    server = engines.start(name, SERVERS[name][0], port, log)
    try:
        ask(server.base, ["a"])
        yield server.base, time.perf_counter() - begin
    finally:
        engines.stop(server.process)


def run_server(name: str, texts: dict[str, list[str]], log: Path) -> Run:
    """One run of a server that is started for it."""
    with served(name, free_port(), log) as (base, start):
        ask(base, texts["short"][:BATCH])
        run = measure(base, texts)
        vectors = [v.tolist() for v in ask(base, texts["short"][:20])]
    return {**run, "start": start, "vectors": vectors}


def run_library(name: str, texts: Path) -> Run:
    """One run of a library in a process of its own.

    Raises:
        RuntimeError: With the last line of its output, where the process fails.
    """
    command = [str(python_of(name)), "-c", _LIBRARY.format(make=LIBRARIES[name][1])]
    command += [str(texts), str(lab() / "weights/minilm")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("".join(done.stderr.strip().splitlines()[-1:]))
    run: Run = json.loads(done.stdout.strip().splitlines()[-1])
    return run


def table(found: dict[str, list[Run]]) -> str:
    """Medians of the runs, ratios in each round, and cosines with the reference's vectors."""
    reference = found.get(REFERENCE) or next(iter(found.values()))
    want = np.array(reference[0]["vectors"])
    rows = [
        "| | short texts/s | long texts/s | times the reference in each round, short; long "
        "| p50 of one, ms | start, s | least cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        short, long, p50, start = (
            statistics.median(run[key] for run in runs) for key in ("short", "long", "p50", "start")
        )
        ratios = "; ".join(
            ", ".join(
                f"{mine[key] / its[key]:.2f}" for mine, its in zip(runs, reference, strict=False)
            )
            for key in ("short", "long")
        )
        got = np.array(runs[0]["vectors"])
        got = got / np.linalg.norm(got, axis=1, keepdims=True)
        rows.append(
            f"| {name} | {short:.0f} | {long:.1f} | {ratios} | {p50 * 1e3:.1f} | {start:.1f} | "
            f"{(got * want).sum(axis=1).min():.5f} |"
        )
    return "\n".join(rows)


def python_of(name: str) -> Path:
    """The interpreter of a library's environment."""
    place = LIBRARIES[name][0]
    return lab() / place / "bin/python" if place else Path(sys.executable)


def installed(name: str) -> bool:
    """Whether LAB has a server or a library."""
    path = python_of(name) if name in LIBRARIES else lab() / SERVERS[name][1]
    return path.exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", type=int, default=10_000)
    parser.add_argument("--long", type=int, default=2_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="names, with commas")
    args = parser.parse_args()
    texts = make_texts(args.short, args.long)
    known = [*SERVERS, *LIBRARIES]
    wanted = args.only.split(",") if args.only else known
    if unknown := set(wanted) - set(known):
        parser.error(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    found: dict[str, list[Run]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "texts.json"
        file.write_text(json.dumps(texts))
        for _ in range(args.runs):
            for name in filter(installed, wanted):
                try:
                    if name in LIBRARIES:
                        run = run_library(name, file)
                    else:
                        run = run_server(name, texts, Path(folder) / f"{name}.log")
                except RuntimeError as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
                found.setdefault(name, []).append(run)
                print(
                    f"{name:24}{run['short']:8.0f} short texts/s{run['long']:8.1f} long texts/s"
                    f"{run['p50'] * 1e3:8.1f} ms",
                    file=sys.stderr,
                    flush=True,
                )
    print(table(found))


if __name__ == "__main__":
    main()
