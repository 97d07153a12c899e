"""Speculative decoding against none: pairs of runs in one process, and acceptance. Checklist 273.

    make bench-speculation
    python -m benchmarks.speculation [--model FILE] [--pairs 5] [--tokens 256] [--streams 1 4 16 64]
        [--drafter FOLDER] [--plot PNG] [--replay]

A model of `benchmarks.planning`, such as 1B, is its shape with random weights: what it says copies
nothing, but repeats itself. With --replay its drafts are as often right as those of the built-in
model for the same requests (`benchmarks.replayed_drafts`). With --plot the ratios are drawn over
the streams.

Kinds of work, on real text:

    copy     repeat a text, edit code by one name, extract sentences: greedy, from prompts that the
             answer copies; the answer is steered by its own beginning
    agent    the same tool-like requests again and again with other numbers, as an agent sends them
    chat     free text at temperature 1
    greedy   free text at temperature 0

Both sides answer the same requests and must give the same tokens. The order within a pair
alternates; a ratio is the median over the pairs of plain seconds by seconds with drafts. Before the
pairs each side has answered the same requests once, so that suffix has seen them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import replayed_drafts
from benchmarks.planning import SHAPES, engine_flags
from galley import LLM, SamplingParams
from galley.cli.bench import plots
from galley.frontend.metric_values import Counter
from galley.loader.source import default_model

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "tests" / "data" / "opticks.txt").read_text()
CODE = (ROOT / "galley" / "kv" / "pool.py").read_text()
FIXED = {"method": "ngram", "draft_length": "fixed"}
WAYS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},  # how far two sides without drafts differ
    "ngram": {"method": "ngram"},
    "suffix": {"method": "suffix"},
    **{
        f"ngram, {n} fixed": {**FIXED, "num_speculative_tokens": n}
        for n in (1, 2, 3, 4, 5, 7, 11, 15)
    },
}
USUAL_WAYS = ["ngram", "ngram, 5 fixed", "suffix"]
GREEDY = {"temperature": 0.0}
CHAT = (
    "Tell me a story about a lighthouse keeper.",
    "What should I know before I buy a used bicycle?",
    "Explain why the sky is blue to a child.",
    "Write a letter to my neighbour about his loud music.",
)


def copies() -> list[str]:
    """Prompts whose answers copy from them."""
    paragraphs = [p for p in TEXT.split("\n\n") if 500 < len(p) < 1500]
    code = "\n".join(CODE.splitlines()[40:110])
    renamed = code.replace("block", "page")
    return [
        f"Text:\n{paragraphs[3]}\n\nThe same text again:\n{paragraphs[3][:150]}",
        f"```python\n{code}\n```\nThe same code with `block` renamed to `page`:\n```python\n"
        f"{renamed[:200]}",
        f"Text:\n{paragraphs[7]}\n\nSentences of the text, word for word:\n"
        f'1. "{paragraphs[7][:60]}',
        f'Summarise with quotes.\n\n{paragraphs[11]}\n\nThe author writes: "{paragraphs[11][:80]}',
    ]


def agents() -> list[str]:
    """Requests that differ in a number, as those of a loop over files or tickets."""
    task = (
        "You are a tool. Answer with a JSON object with the fields id, status, summary and steps. "
        "The ticket says: the printer on floor {} does not print and its light blinks.\n"
        '{{"id": {}, "status": "'
    )
    return [task.format(n, n) for n in range(11, 15)]


WORK: dict[str, tuple[list[str], dict[str, Any]]] = {
    "copy": (copies(), GREEDY),
    "agent": (agents(), GREEDY),
    "chat": (list(CHAT), {"temperature": 1.0}),
    "greedy": (list(CHAT), GREEDY),
}


class Side:
    """An engine, with or without drafts."""

    def __init__(self, engine: dict[str, Any], way: dict[str, Any] | None) -> None:
        speculative = {"spec_method": "none"} if way is None else {"speculative_config": way}
        self.llm = LLM(**engine, **speculative, enable_prefix_caching=True)

    def run(self, prompts: list[str], params: SamplingParams, streams: int) -> tuple[float, Any]:
        """Seconds, and the tokens; `streams` requests at a time."""
        asked = [prompts[i % len(prompts)] for i in range(max(streams, len(prompts)))]
        answers, begin = [], time.perf_counter()
        for first in range(0, len(asked), streams):
            part = asked[first : first + streams]
            each = [
                SamplingParams(max_tokens=params.max_tokens, ignore_eos=True, seed=first + i,
                               temperature=params.temperature)
                for i in range(len(part))
            ]  # fmt: skip
            answers += [
                o.outputs[0].token_ids for o in self.llm.generate(part, each, use_tqdm=False)
            ]
        return time.perf_counter() - begin, answers

    def drafts(self) -> tuple[int, int, int]:
        """Drafts, draft tokens and accepted tokens so far."""
        counters = (m for m in self.llm.get_metrics() if isinstance(m, Counter))
        found = {m.name: m.value for m in counters if "position" not in m.labels}

        def value(name: str) -> int:
            return found.get(f"vllm:spec_decode_num_{name}", 0)

        return value("drafts"), value("draft_tokens"), value("accepted_tokens")


def compare(
    plain: Side, other: Side, work: str, args: argparse.Namespace, streams: int
) -> dict[str, Any]:
    """A row of the table, printed."""
    prompts, sampling = WORK[work]
    params = SamplingParams(max_tokens=args.tokens, **sampling)
    wanted = plain.run(prompts, params, streams)[1]
    for _ in range(2 if args.replay else 1):  # the first time there is nothing to replay
        assert other.run(prompts, params, streams)[1] == wanted, "drafts changed an answer"
    before, ratios, seconds = other.drafts(), [], []
    steps = other.llm._core.counters.num_steps
    for pair in range(args.pairs):
        times = {}
        for side in (plain, other) if pair % 2 else (other, plain):
            times[side], answers = side.run(prompts, params, streams)
            assert answers == wanted, "drafts changed an answer"
        ratios.append(times[plain] / times[other])
        seconds.append(times[other])
    steps = other.llm._core.counters.num_steps - steps
    total = sum(map(len, wanted))
    drafted, accepted = (b - a for a, b in zip(before[1:], other.drafts()[1:], strict=True))
    rate = f"{accepted / drafted:.0%}" if drafted else "–"
    tokens = args.pairs * total / steps / streams
    ratio = statistics.median(ratios)
    print(
        f"| {work} | {streams} | {ratio:.2f} | {total / statistics.median(seconds):.0f} | {rate} "
        f"| {tokens:.2f} |",
        flush=True,
    )
    return {"streams": streams, "speed_relative_to_no_drafts": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="built in")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--streams", type=int, nargs="+", default=[1])
    parser.add_argument("--ways", nargs="*", default=USUAL_WAYS, choices=WAYS)
    parser.add_argument("--drafter", help="a draft model, measured as well")
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=WORK)
    parser.add_argument(
        "--replay", action="store_true", help="drafts of the built-in model's answers"
    )
    parser.add_argument("--plot", metavar="PNG", help="of the ratios over --streams")
    args = parser.parse_args()
    if args.plot:
        plots.require()
    ways = {name: WAYS[name] for name in args.ways}
    if args.drafter is not None:
        ways |= {"draft model": {"model": args.drafter}}
        ways |= {"draft model, 4 fixed": {"model": args.drafter, "draft_length": "fixed"}}
    curves: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="galley-speculation-") as folder:
        engine = {"max_model_len": 2048, "max_num_seqs": 64, **model_flags(args.model, folder)}
        if args.replay:  # the same tokens of a prompt
            engine["tokenizer"] = str(default_model())
        plain = Side(engine, None)
        for way, settings in ways.items():
            if args.replay and way != "none":
                record(settings["method"], args.work, args.tokens)
                settings = settings | custom("Replay")
            other = Side(engine, settings)
            print(f"\n{way}\n\n| work | streams | ratio | tokens/s | accepted | tokens a step |")
            print("|---|---|---|---|---|---|", flush=True)
            for work in args.work:
                rows = [compare(plain, other, work, args, n) for n in args.streams]
                curves[f"{way}, {work}"] = rows
    if args.plot:
        plots.plot_curves(curves, "streams", ["speed_relative_to_no_drafts"], args.plot)


def custom(name: str) -> dict[str, Any]:
    """Drafts of a class of `benchmarks.replayed_drafts`."""
    return {"method": "custom_class", "model": f"{replayed_drafts.__name__}.{name}"}


def record(method: str, works: list[str], tokens: int) -> None:
    """Drafts for the built-in model's answers, when it has given each once before."""
    replayed_drafts.Recorder.method = method
    side = Side({"max_model_len": 2048}, {**custom("Recorder"), "draft_length": "fixed"})
    for work in works:
        prompts, sampling = WORK[work]
        for _ in range(2):
            side.run(prompts, SamplingParams(max_tokens=tokens, **sampling), 1)


def model_flags(name: str, folder: str) -> dict[str, Any]:
    """The flags of a model of `benchmarks.planning`, or of a file."""
    is_shape = name.partition(" ")[0] in SHAPES or name == "built in"
    return engine_flags(name, Path(folder)) if is_shape else {"model": name}


if __name__ == "__main__":
    main()
