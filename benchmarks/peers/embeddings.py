"""Embeddings beside peers: throughput of short and of long texts, latency of one, and the start.

    make bench-embeddings LAB=~/lab [EMBEDDINGS_ARGS="--short 2000 --long 200 --runs 3"]

The model is all-MiniLM-L6-v2 in `$LAB/weights/minilm` (`embeddings.sh` unpacks it, and makes the
files of fastembed and llama.cpp). Rows of int8 have their cosines beside them.
Servers are asked for base64 in batches of 64, eight at a time; libraries, and Galley once more, run
in a process of their own, without HTTP: latencies are compared with those of the same kind. A peer
that is not installed is left out. The engines take turns, run by run.
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

import numpy as np

from benchmarks.peers import engines
from benchmarks.peers.engines import Engine, lab

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
out = {{"start": time.perf_counter() - begin, "runs": []}}
for _ in range(int(sys.argv[3])):
    run = {{}}
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
    out["runs"].append(run)
out["vectors"] = [[float(x) for x in v] for v in embed(texts["short"][:20])]
print(json.dumps(out))
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


def run_servers(
    names: list[str], texts: dict[str, list[str]], runs: int, folder: Path
) -> dict[str, dict[str, object]]:
    """Each server's start and runs, one server at a time."""
    found: dict[str, dict[str, object]] = {}
    for _ in range(runs):
        for name in names:
            with served(name, free_port(), folder / f"{name}.log") as (base, start):
                ask(base, texts["short"][:BATCH])
                entry = found.setdefault(name, {"start": start, "runs": []})
                runs_of: list[dict[str, float]] = entry["runs"]  # type: ignore[assignment]
                runs_of.append(measure(base, texts))
                entry["vectors"] = [v.tolist() for v in ask(base, texts["short"][:20])]
    return found


def run_library(name: str, texts: dict[str, list[str]], runs: int) -> dict[str, object] | None:
    """A library's start and runs; None where it is not installed."""
    place, make = LIBRARIES[name]
    python = lab() / place / "bin/python" if place else Path(sys.executable)
    if not python.exists():
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        command = [str(python), "-c", _LIBRARY.format(make=make), file.name]
        command += [str(lab() / "weights/minilm"), str(runs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    result: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def table(found: dict[str, dict[str, object]]) -> str:
    """Medians, and cosines with the first reference that there is."""
    reference = found.get("sentence-transformers") or next(iter(found.values()))
    want = np.array(reference["vectors"])
    rows = ["| | short texts/s | long texts/s | p50 of one, ms | start, s | least cosine |"]
    rows.append("|---|---|---|---|---|---|")
    for name, entry in found.items():
        runs: list[dict[str, float]] = entry["runs"]  # type: ignore[assignment]

        def median(key: str, runs: list[dict[str, float]] = runs) -> float:
            return statistics.median(run[key] for run in runs)

        got = np.array(entry["vectors"])
        got = got / np.linalg.norm(got, axis=1, keepdims=True)
        rows.append(
            f"| {name} | {median('short'):.0f} | {median('long'):.1f} | "
            f"{median('p50') * 1e3:.1f} | {entry['start']:.1f} | "
            f"{(got * want).sum(axis=1).min():.5f} |"
        )
    return "\n".join(rows)


def installed(name: str) -> bool:
    """Whether LAB has a server."""
    return (lab() / SERVERS[name][1]).exists()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", type=int, default=10_000)
    parser.add_argument("--long", type=int, default=2_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", help="names, with commas")
    args = parser.parse_args()
    texts = make_texts(args.short, args.long)
    wanted = args.only.split(",") if args.only else [*LIBRARIES, *SERVERS]
    servers = [name for name in SERVERS if name in wanted and installed(name)]
    with tempfile.TemporaryDirectory() as folder:
        found = run_servers(servers, texts, args.runs, Path(folder))
    for name in LIBRARIES:
        if name in wanted and (result := run_library(name, texts, args.runs)) is not None:
            found[name] = result
    print(table(found))


if __name__ == "__main__":
    main()
