"""`galley doctor`: checks the machine and the installation, and says what to do.

`galley collect-env` prints facts; this judges them.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from galley.cli.parser import CommandParser, engine_flags, make
from galley.config.resolve import SECTIONS, Machine, from_kwargs
from galley.errors import GalleyError

if TYPE_CHECKING:
    from galley.config import EngineConfig

State = Literal["ok", "note", "bad"]
#: Open files that a server with many clients may need: two per connection, and its own.
OPEN_FILES = 4096
#: Memory below which not even a small model has room for its KV cache.
LEAST_MEMORY = 2**30
#: Disk space for packed weights of small models.
LEAST_DISK = 5 * 2**30


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        state: ok; note (it works, but slowly or with limits); bad (it does not work).
        advice: what to do; empty where there is nothing to do.
    """

    name: str
    state: State
    text: str
    advice: str = ""


@dataclass(frozen=True)
class DoctorFlags:
    """Options"""

    json: bool = False
    """Print JSON."""


def parser() -> CommandParser:
    return CommandParser(
        "doctor",
        "Check this machine and installation: kernels, cores, memory, disk, limits; with MODEL, "
        "whether it fits. Exits with 1 if something does not work.",
        [DoctorFlags, *SECTIONS.values()],
        positionals=(("MODEL", "directory, FILE.gguf or hub name; default: the built-in model"),),
        examples=("galley doctor", "galley doctor model.gguf --max-model-len 32k"),
    )


def main(argv: list[str]) -> int:
    given = parser().read(argv)
    flags = make(DoctorFlags, given)
    found = list(findings(from_kwargs(engine_flags(given), "server")))
    if flags.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    else:
        print(report(found))
    return 1 if any(each.state == "bad" for each in found) else 0


def report(found: list[Finding]) -> str:
    marks = {"ok": "ok  ", "note": "note", "bad": "BAD "}
    lines = []
    for each in found:
        lines.append(f"{marks[each.state]}  {each.name:<15}{each.text}")
        if each.advice:
            lines.append(f"{'':<21}→ {each.advice}")
    if any(each.state == "bad" for each in found):
        lines += ["", "What is marked BAD has to be changed before a model can run."]
    else:
        lines += ["", "Next: `galley chat` to talk to a model, `galley serve` to serve one."]
    return "\n".join(lines)


def findings(config: EngineConfig) -> Iterator[Finding]:
    """Run the checks in order."""
    machine = Machine.detect()
    yield python_version(sys.version_info[:2])
    yield kernels(os.environ)
    yield cores(machine.num_cores, os.cpu_count() or 1, os.environ)
    yield load(os.getloadavg()[0], machine.num_cores)
    yield memory(machine.available_memory)
    yield huge_pages(_read("/sys/kernel/mm/transparent_hugepage/enabled"))
    yield disk()
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE))
    yield address_space(resource.getrlimit(resource.RLIMIT_AS)[0])
    yield variables(os.environ)
    yield model(config, machine)


def python_version(version: tuple[int, ...]) -> Finding:
    shown = ".".join(map(str, version))
    if version < (3, 11):
        return Finding("python", "bad", shown, "Galley needs Python 3.11 or later.")
    return Finding("python", "ok", f"{shown} ({sys.executable})")


def kernels(env: Mapping[str, str]) -> Finding:
    """The instruction set of the kernels, and whether the processor has a better one."""
    try:
        from galley.kernels import _native

        isa = _native.isa()
    except (ImportError, ValueError) as e:
        return Finding(
            *("kernels", "bad", str(e)),
            "Build them with `make`, or unset GALLEY_CPU_ISA if the message names it.",
        )
    if "GALLEY_CPU_ISA" in env:
        return Finding("kernels", "note", f"{isa}, as GALLEY_CPU_ISA asks", "Unset it for speed.")
    if isa == "generic":
        return Finding(
            *("kernels", "note", "portable: this processor has no AVX2"),
            "Expect a fraction of the speed; a processor with AVX2 or AVX-512 helps most.",
        )
    if isa == "avx2":
        return Finding("kernels", "ok", "avx2 (AVX-512 with BF16 and VNNI is faster in prefill)")
    if isa == "avx512":
        return Finding("kernels", "ok", "avx512 (AMX is faster in prefill)")
    return Finding("kernels", "ok", isa)


def cores(usable: int, present: int, env: Mapping[str, str]) -> Finding:
    text = f"{usable} usable of {present}"
    for name in ("GALLEY_NUM_THREADS", "OMP_NUM_THREADS"):
        if env.get(name, "").isdigit() and int(env[name]) < usable:
            return Finding(
                *("cores", "note", f"{text}, but {name}={env[name]}"),
                f"Unset {name}, or give --num-threads {usable}.",
            )
    if usable < present:
        return Finding("cores", "note", text, "An affinity or a CPU quota keeps the others away.")
    if usable == 1:
        return Finding("cores", "note", text, "One core runs the engine and the API in turn.")
    return Finding("cores", "ok", text)


def load(average: float, usable: int) -> Finding:
    text = f"{average:.1f} runnable processes on average, {usable} cores"
    if average > usable:
        return Finding("load", "note", text, "Other processes use the cores: timings will vary.")
    return Finding("load", "ok", text)


def memory(available: int) -> Finding:
    text = f"{_gib(available)} available"
    if available < LEAST_MEMORY:
        return Finding("memory", "bad", text, "Free some, or raise the limit of the container.")
    return Finding("memory", "ok", text)


def huge_pages(setting: str) -> Finding:
    if "[never]" in setting:
        return Finding(
            *("huge pages", "note", "never"),
            "As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (faster weights).",
        )
    return Finding("huge pages", "ok", setting or "unknown")


def disk() -> Finding:
    """Room and permission for packed weights."""
    from galley.runner.cache_files import list_files, weights_folder

    folder = weights_folder()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    used = sum(file.num_bytes for file in list_files(folder))
    text = f"{_gib(free)} free for packed weights in {folder} ({_gib(used)} used)"
    if not os.access(there, os.W_OK):
        return Finding(
            *("disk", "note", f"{there} is not writable"),
            "Set GALLEY_CACHE_DIR to a folder that is, or every start packs the weights again.",
        )
    if free < LEAST_DISK:
        return Finding("disk", "note", text, "`galley cache prune --max-size 1G` frees some.")
    return Finding("disk", "ok", text)


def open_files(limits: tuple[int, int]) -> Finding:
    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in limits)
    if hard < OPEN_FILES:
        return Finding(
            *("open files", "note", f"at most {hard:,}"),
            f"Many connections need more: raise the hard limit (`ulimit -Hn {OPEN_FILES}`).",
        )
    return Finding("open files", "ok", f"{soft:,} now, up to {hard:,}")


def address_space(limit: int) -> Finding:
    if limit != resource.RLIM_INFINITY:
        return Finding(
            *("address space", "note", f"limited to {_gib(limit)}"),
            "Weights and KV cache are mapped: `ulimit -v unlimited`.",
        )
    return Finding("address space", "ok", "unlimited")


def variables(env: Mapping[str, str]) -> Finding:
    from galley.config.variables import unknown_variables

    sentences = unknown_variables(env)
    if sentences:
        return Finding("variables", "note", " ".join(sentences))
    given = sorted(n for n in env if n.startswith(("VLLM_", "GALLEY_")))
    return Finding("variables", "ok", ", ".join(given) or "none of VLLM_ and GALLEY_ is set")


def model(config: EngineConfig, machine: Machine) -> Finding:
    """Whether weights and one sequence of the longest length fit into the memory."""
    from galley.cli.inspect import sizes_of
    from galley.loader import open_checkpoint, resolve_source

    try:
        checkpoint = open_checkpoint(resolve_source(config.model, config.load))
        weights, token, sequence = sizes_of(checkpoint, config)
    except GalleyError as e:
        return Finding("model", "bad", e.message)
    name = config.model.model or "the built-in model"
    text = f"{name}: {_gib(weights)} of weights, {token / 1024:,.1f} KiB of KV cache per token"
    spare = machine.available_memory - weights
    if spare <= 0:
        return Finding(
            *("model", "bad", f"{text}; {_gib(machine.available_memory)} are available"),
            "Take a smaller model or a quantised checkpoint of it.",
        )
    if sequence > spare:
        fits = max(int(spare // max(token, 1)), 1)
        return Finding(
            *("model", "note", f"{text}; one sequence of its full length does not fit"),
            f"Give --max-model-len {fits} or less.",
        )
    return Finding("model", "ok", text)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
