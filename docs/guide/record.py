"""Records what the guide's interactive parts show: `python docs/guide/record.py [PART ...]`.

Runs of this engine with the built-in model (burst, batching, chunks, life), and predictions of
the planner (lab). Each part is a file of docs/guide/data/.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from galley.batch import RequestTable, StepPlan
from galley.config.resolve import from_kwargs
from galley.engine.assembly import assemble
from galley.engine.core import EngineCore
from galley.engine.observers import StepObserver
from galley.loader.source import default_model
from galley.planning.machine import device
from galley.planning.predict import predict
from galley.planning.program import PlannedModel, planned_model
from galley.planning.simulate import Workload
from galley.request import Request, SamplingParams
from galley.text.tokenizer import load_tokenizer

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
MODEL = "SmolLM2-135M-Instruct"
#: Arrivals of the burst: (step, prompt tokens, output tokens).
BURST = (
    *((0, 90, 40), (0, 200, 24), (0, 33, 64), (0, 120, 16)),
    *((6, 60, 48), (6, 150, 12), (12, 48, 72), (20, 96, 20), (20, 30, 30), (28, 180, 16)),
)
#: Tokens that a contiguous cache reserves for each request: the longest that is accepted.
RESERVED = 512
#: Output tokens of the requests of static and continuous batching.
ANSWERS = (8, 40, 12, 24, 64, 6, 16, 10, 32, 20, 48, 14)


class _Watch(StepObserver):
    """Rows of each step, as they are planned."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def planned(self, plan: StepPlan, table: RequestTable) -> None:
        computed = table.num_computed[plan.slots]
        columns = zip(plan.handles.tolist(), computed.tolist(), plan.num_new.tolist(), strict=True)
        self.rows = [list(row) for row in columns]


class Recording:
    """An engine core, stepped one by one.

    Attributes:
        steps: rows [request, tokens before, tokens of this step], blocks by request, free blocks,
            and how many wait.
        tokens: sampled, by request.
    """

    def __init__(self, **flags: Any) -> None:
        self.core: EngineCore = assemble(from_kwargs(flags, "offline")).core
        self._watch = _Watch()
        self.core.observers.append(self._watch)
        self.steps: list[dict[str, Any]] = []
        self.tokens: dict[int, list[int]] = {}

    def send(self, handle: int, prompt: Sequence[int], output: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=output, seed=0, ignore_eos=True)
        ids = np.asarray(prompt, np.int32)
        request = Request(
            handle=handle,
            request_id=str(handle),
            prompt_token_ids=ids.tobytes(),
            params=params,
            max_total_tokens=len(ids) + output,
        )
        self.core.add([request])

    def step(self) -> None:
        outputs = self.core.step()
        scheduler = self.core.scheduler
        for _, message in outputs:
            handles = np.frombuffer(message.handles, np.int64).tolist()
            ids = np.frombuffer(message.token_ids, np.int32).tolist()
            for handle, token in zip(handles, ids, strict=True):
                self.tokens.setdefault(handle, []).append(token)
        self.steps.append(
            {
                "rows": self._watch.rows,
                "blocks": self._blocks(),
                "free": scheduler.kv.pool.num_free,
                "waiting": scheduler.num_waiting,
            }
        )

    def _blocks(self) -> dict[str, list[int]]:
        """Ids of the blocks of each running request, in order of its tokens."""
        scheduler = self.core.scheduler
        table, held = scheduler.table, {}
        for slot in scheduler.running.order.tolist():
            ids = table.block_tables[0][slot]
            count = -(-int(table.num_computed[slot]) // table.groups[0].block_size)
            held[str(int(table.handles[slot]))] = ids[:count].tolist()
        return held

    def run(self, arrivals: Sequence[tuple[int, int, int]], prompts: Sequence[list[int]]) -> None:
        """Send requests (step, prompt tokens, output tokens) and step until all have ended."""
        left = list(enumerate(arrivals))
        while left or self.core.has_work:
            while left and left[0][1][0] <= len(self.steps):
                index, (_, _, output) = left.pop(0)
                self.send(index + 1, prompts[index], output)
            self.step()

    def close(self) -> None:
        self.core.shutdown()


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    """Prompts of real tokens, different from each other."""
    rng = np.random.default_rng(7)
    return [rng.integers(1000, 40000, length).tolist() for length in lengths]


def burst() -> dict[str, Any]:
    """A burst in a small pool of blocks of 16 tokens."""
    recording = Recording(
        max_model_len=RESERVED, max_num_seqs=8, num_gpu_blocks_override=97, block_size=16
    )
    recording.run(BURST, prompts_of([length for _, length, _ in BURST]))
    recording.close()
    requests = [{"step": s, "prompt": p, "output": o} for s, p, o in BURST]
    return {
        "block_size": 16,
        "blocks": 96,
        "reserved": RESERVED,
        "requests": requests,
        "steps": recording.steps,
    }


def batching() -> dict[str, Any]:
    """The same requests in batches of four that end with their longest answer, and continuously."""
    prompts = prompts_of([24] * len(ANSWERS))
    found: dict[str, Any] = {"answers": list(ANSWERS), "slots": 4}
    for kind in ("static", "continuous"):
        recording = Recording(max_model_len=256, max_num_seqs=4, enable_prefix_caching=False)
        for first in range(0, len(ANSWERS), 4 if kind == "static" else len(ANSWERS)):
            batch = range(first, min(first + 4, len(ANSWERS)) if kind == "static" else len(ANSWERS))
            for index in batch:
                recording.send(index + 1, prompts[index], ANSWERS[index])
            while recording.core.has_work:
                recording.step()
        recording.close()
        found[kind] = [{"rows": step["rows"]} for step in recording.steps]
    return found


def chunks() -> dict[str, Any]:
    """A budget of 128 tokens, chunks of 64 at most: A, of 256 tokens, comes as B and C decode."""
    recording = Recording(
        max_model_len=512,
        max_num_seqs=4,
        max_num_batched_tokens=128,
        long_prefill_token_threshold=64,
    )
    arrivals = ((0, 20, 16), (0, 30, 14), (4, 256, 6))
    recording.run(arrivals, prompts_of([length for _, length, _ in arrivals]))
    recording.close()
    steps = [{"rows": step["rows"]} for step in recording.steps]
    names = {"1": "B", "2": "C", "3": "A"}
    return {"budget": 128, "chunk": 64, "names": names, "steps": steps}


def life() -> dict[str, Any]:
    """A prompt of four words from text to text: tokens, cache, steps."""
    tokenizer = load_tokenizer(default_model())
    text, output = "The quick brown fox", 12
    ids = tokenizer.encode(text, add_special_tokens=False)
    recording = Recording(max_model_len=64, max_num_seqs=1, block_size=16)
    recording.run([(0, len(ids), output)], [ids])
    recording.close()
    made = recording.tokens[1]
    return {
        "text": text,
        "prompt": [{"id": i, "text": tokenizer.decode([i])} for i in ids],
        "output": [{"id": i, "text": tokenizer.decode([i])} for i in made],
        "answer": tokenizer.decode(made),
        "block_size": 16,
        "steps": [{"rows": s["rows"], "blocks": s["blocks"].get("1", [])} for s in recording.steps],
    }


#: Workloads of the tuning lab: what they are; prompt, output and shared tokens.
PROFILES: dict[str, tuple[str, tuple[int, int, int]]] = {
    "chat": ("Chats behind one system prompt, with short answers.", (768, 128, 512)),
    "documents": ("Questions about documents: long prompts, short answers.", (3072, 64, 0)),
    "writing": ("Long answers to short prompts: nearly all of it is decode.", (128, 512, 0)),
    "tools": ("Tool calls: long shared instructions, very short answers.", (1536, 32, 1280)),
}
CONCURRENCY = (1, 4, 16, 64, 128)
BUDGETS = (256, 1024, 4096)
#: Sizes of Llama 3.1 8B, from the config.json of its checkpoint.
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def llama_8b(folder: Path) -> PlannedModel:
    (folder / "config.json").write_text(json.dumps(LLAMA_8B))
    return planned_model({"model": str(folder)})


def prediction(
    model: PlannedModel, about: Mapping[str, Any], count: int, budget: int
) -> dict[str, float]:
    """A workload on one H100 with so many requests at once and tokens of a step."""
    load = Workload(
        about["prompt"], about["output"], count, shared=about["shared"], requests=max(2 * count, 4)
    )
    flags = {"max_num_batched_tokens": budget, "max_num_seqs": count}
    found = predict(model, device("h100"), load, flags)
    held = count * found.memory.kv_per_sequence / found.memory.kv_cache
    return {
        "concurrency": count,
        "budget": budget,
        "tokens": round(found.output_tokens, 1),
        "ttft": round(found.ttft["p50"] * 1e3, 1),
        "itl": round(found.itl["p50"] * 1e3, 2),
        "itl99": round(found.itl["p99"] * 1e3, 2),
        "kv": round(min(held, 1.0), 4),
    }


def lab() -> dict[str, Any]:
    """Predictions for Llama 3.1 8B in bf16 on one H100, by profile, requests at once and budget."""
    with tempfile.TemporaryDirectory() as folder:
        model = llama_8b(Path(folder))
    profiles = {}
    for name, (text, sizes) in PROFILES.items():
        about = {"text": text, **dict(zip(("prompt", "output", "shared"), sizes, strict=True))}
        rows = [prediction(model, about, count, b) for count in CONCURRENCY for b in BUDGETS]
        profiles[name] = {**about, "rows": rows}
    return {
        "model": "Llama 3.1 8B, bf16",
        "machine": device("h100").title,
        "concurrency": list(CONCURRENCY),
        "budgets": list(BUDGETS),
        "profiles": profiles,
    }


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "burst": burst,
    "batching": batching,
    "chunks": chunks,
    "life": life,
    "lab": lab,
}


def main(names: Sequence[str]) -> None:
    DATA.mkdir(exist_ok=True)
    for name in names or PARTS:
        made = PARTS[name]()
        if name in ("burst", "batching", "chunks", "life"):
            made = {"model": MODEL, "recorded_by": "docs/guide/record.py", **made}
        path = DATA / f"{name}.json"
        path.write_text(json.dumps(made, separators=(",", ":"), ensure_ascii=False) + "\n")
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(sys.argv[1:])
