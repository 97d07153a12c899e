"""Reads many hostile inputs, each within limits of time and memory.

python -m tests.fuzz.readers.run --inputs 1000000 [--first 0] [--log FILE]
python -m tests.fuzz.readers.run --only 123            one input again, with its traceback

Input number n follows from n alone. A child process reads; the parent starts another where one was
killed (a crash, or the signal that ends an input after SECONDS of CPU time) and goes on behind that
input. What is not a galley error and not a valid load is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from galley.errors import GalleyError
from tests.fuzz.readers.mutate import mutate
from tests.fuzz.readers.seeds import Seed, all_seeds
from tests.fuzz.readers.targets import TARGETS, Refused

#: CPU time of one input: a thousand times what a valid one takes.
SECONDS = 10.0
#: Memory that reading may add to the process; no seed is larger than 1 MiB.
MEMORY = 1 << 30
#: How often inputs of a kind are drawn: the cheap ones more often.
WEIGHTS = {
    "gguf": 4,
    "directory": 3,
    "tokenizer": 3,
    "template": 1,
    "adapter": 1,
    "heads": 1,
    "packed": 1,
}


class Bench:
    """Folders of seeds in memory, of which one file at a time is replaced."""

    def __init__(self, seeds: list[Seed], folder: Path) -> None:
        self.seeds = seeds
        self.by_kind = {kind: [s for s in seeds if s.kind == kind] for kind in TARGETS}
        self.folders: dict[int, Path] = {}
        for i, seed in enumerate(seeds):
            place = folder / str(i)
            place.mkdir()
            for name, data in seed.files.items():
                (place / name).write_bytes(data)
            self.folders[id(seed)] = place

    def draw(self, number: int) -> tuple[Seed, str, bytes]:
        rng = random.Random(number)
        kind = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        seed = rng.choice(self.by_kind[kind])
        name, data = mutate(seed, rng)
        return seed, name, data

    @contextlib.contextmanager
    def laid_out(self, seed: Seed, name: str, data: bytes) -> Iterator[Path]:
        """The seed's folder with that file in it. The file is replaced, because
        writing to a mapped one kills the process that maps it."""
        path = self.folders[id(seed)] / name
        path.unlink()
        path.write_bytes(data)
        try:
            yield path.parent
        finally:
            path.unlink()
            path.write_bytes(seed.files[name])

    def read(self, number: int) -> tuple[str, str]:
        """(kind, "loaded" or "refused"); raises what no reader may raise."""
        seed, name, data = self.draw(number)
        with self.laid_out(seed, name, data) as folder:
            try:
                TARGETS[seed.kind](folder)
            except (GalleyError, Refused):
                return seed.kind, "refused"
        return seed.kind, "loaded"


class Shared:
    """The input that a child is at, for its parent."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 4096)

    @property
    def at(self) -> int:
        return int(struct.unpack_from("<q", self._map)[0])

    @at.setter
    def at(self, number: int) -> None:
        struct.pack_into("<q", self._map, 0, number)


def read_all(bench: Bench, first: int, last: int, log: Path) -> None:
    """Read inputs first … last - 1; one line of JSON in `log` for each failure, and one of counts
    for each child."""
    shared = Shared()
    while first < last:
        pid = os.fork()
        if pid == 0:
            _child(bench, first, last, shared, log)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            return
        why = (
            f"signal {signal.Signals(os.WTERMSIG(status)).name}"
            if os.WIFSIGNALED(status)
            else (f"exit status {os.WEXITSTATUS(status)}")
        )
        _write(log, {"input": shared.at, "error": why, "trace": ""})
        first = shared.at + 1


def _child(bench: Bench, first: int, last: int, shared: Shared, log: Path) -> None:
    """Never returns. Panics of the tokenizers library are errors that are caught, but it prints
    each of them: its standard error goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    counts: Counter[str] = Counter()
    for number in range(first, last):
        shared.at = number
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            counts[" ".join(bench.read(number))] += 1
        except BaseException as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            counts["failed"] += 1
            trace = traceback.format_exception(error)
            _write(log, {"input": number, "error": repr(error)[:300], "trace": "".join(trace[-3:])})
        if (number + 1) % 1000 == 0 or number + 1 == last:
            _write(log, {"counts": counts})
            counts.clear()
    os._exit(0)


def _write(log: Path, entry: dict[str, object]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def summary(log: Path) -> tuple[Counter[str], list[dict[str, str]]]:
    """(inputs by outcome, failures)."""
    counts: Counter[str] = Counter()
    failures = []
    for line in log.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "counts" in entry:
            counts.update(entry["counts"])
        else:
            failures.append(entry)
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None, prefix="readers-"))
    try:
        bench = Bench(all_seeds(), folder)
        if args.only is not None:
            seed, name, data = bench.draw(args.only)
            print(seed.kind, seed.name, name, len(data), data[:300])
            print(bench.read(args.only))
            return 0
        log = args.log or folder / "log"
        start = time.monotonic()
        read_all(bench, args.first, args.first + args.inputs, log)
        seconds = time.monotonic() - start
        counts, failures = summary(log)
    finally:
        shutil.rmtree(folder)
    for outcome, count in sorted(counts.items()):
        print(f"{count:9}  {outcome}")
    print(f"{args.inputs} inputs in {seconds:.0f} s, {args.inputs / seconds:.0f} inputs/s")
    for failure in failures[:50]:
        print(f"\ninput {failure['input']}: {failure['error']}\n{failure['trace']}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
