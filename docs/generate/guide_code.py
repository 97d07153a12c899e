"""Lines of the engine's source that the guide shows: docs/guide/data/code.json."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Parts of the engine, and the class or function of each that the guide shows.
SOURCES = (
    ("step", "galley/engine/core.py", "EngineCore.step", "One step, from the plan to the outputs"),
    ("input", "galley/frontend/input_processor.py", "InputProcessor.process", "Input processor"),
    (
        "output",
        "galley/frontend/output_processor.py",
        "OutputProcessor.process",
        "Output processor",
    ),
    ("scheduler", "galley/scheduler/scheduler.py", "Scheduler.schedule", "Scheduler"),
    ("kv", "galley/kv/manager.py", "KVCacheManager.find_hit", "KV cache manager"),
    ("runner", "galley/runner/runner.py", "Runner.execute", "Model runner"),
    ("executor", "galley/executor/local.py", "LocalExecutor.submit", "Executor"),
)
#: Parts of a step, in order, and how its line in the source is found.
CALLS = (
    ("schedule", "scheduler.schedule()"),
    ("execute", "executor.submit("),
    ("process arrivals and aborts", "while_waiting()"),
    ("make the masks of constrained answers", "constrained.masks("),
    ("wait, and sample", "handle.sample("),
    ("commit", "scheduler.commit("),
    ("make the outputs", "build_outputs(done"),
)


def text() -> str:
    """Each part's title, file, name, first line and lines, as JSON; of the step, its calls too."""
    found: dict[str, dict[str, Any]] = {}
    for key, file, name, title in SOURCES:
        source = (ROOT / file).read_text()
        node: Any = ast.parse(source)
        for part in name.split("."):
            node = next(n for n in node.body if getattr(n, "name", "") == part)
        lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
        found[key] = {
            "title": title,
            "file": file,
            "name": name,
            "first": node.lineno,
            "lines": [line[4:] if line.startswith("    ") else line for line in lines],
        }
    step = found["step"]
    step["calls"] = [
        [what, step["first"] + next(i for i, line in enumerate(step["lines"]) if call in line)]
        for what, call in CALLS
    ]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"
