"""S4b: 64 concurrent sequences without HTTP, alternating Galley's `LLM` and OpenVINO GenAI."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.engines import lab
from benchmarks.peers.workloads import WORKLOADS
from galley.cli.bench.datasets import Sample
from galley.cli.bench.datasets.text import Corpus

Record = dict[str, float]
_HERE = Path(__file__).parent


class OfflineWorker:
    """A process that generates for one set of prompts after another."""

    def __init__(
        self, command: list[str], log: Path, environment: dict[str, str] | None = None
    ) -> None:
        self._log = log
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self._read()

    def _read(self) -> dict[str, Any]:
        """Read the next JSON line, ignoring other output. Raises RuntimeError at end of file."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError(f"a worker ended; see {self._log}")

    def run(self, prompts: list[list[int]], output: int, concurrency: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        task = {"prompts": prompts, "output": output, "concurrency": concurrency}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def commands() -> dict[str, list[str]]:
    """Name in the table → command of the worker."""
    weights = str(lab() / "weights" / "smollm2-q4_0.gguf")
    openvino = [str(lab() / "ov/bin/python"), str(_HERE / "offline_openvino.py"), weights]
    galley = [sys.executable, "-m", "benchmarks.peers.offline_galley", weights]
    return {"galley-q4_0 (LLM)": galley, "openvino-q4_0": openvino}


def run_offline(corpus: Corpus, runs: int, workload: str = "W4") -> dict[str, list[Record]]:
    """Records per engine; engines alternate on the same prompts."""
    load = WORKLOADS[workload]

    def ids(samples: list[Sample]) -> list[list[int]]:
        return [corpus.tokenizer.encode(s.prompt, add_special_tokens=False) for s in samples]

    workers: dict[str, OfflineWorker] = {}
    records: dict[str, list[Record]] = {name: [] for name in commands()}
    try:
        for name, command in commands().items():
            log = lab() / "out" / f"{name.split()[0]}-offline.log"
            workers[name] = OfflineWorker(command, log)
            workers[name].run(ids(load.warm_up(corpus)), 16, load.concurrency)
        for run in range(runs):
            prompts = ids(load.samples(corpus, run))
            for name, worker in workers.items():
                answer = worker.run(prompts, load.output, load.concurrency)
                expected = load.requests * load.output
                records[name].append(
                    {
                        "wall_s": answer["seconds"],
                        "out_tok_s": answer["tokens"] / answer["seconds"],
                        "failures": float(answer["tokens"] != expected),
                    }
                )
    finally:
        for worker in workers.values():
            worker.close()
    return records
