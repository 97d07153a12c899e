"""`galley bench serve`: online load on any server with OpenAI's API."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from galley.cli.bench.acceptance import acceptance
from galley.cli.bench.arrivals import Arrivals
from galley.cli.bench.backends import BACKENDS, Options
from galley.cli.bench.client import Target
from galley.cli.bench.compare import comparison, ratios
from galley.cli.bench.cost import CostFlags, cost_lines, cost_of
from galley.cli.bench.datasets import DataFlags, Sample, load_samples, with_clients
from galley.cli.bench.endpoint import Endpoint, find_tokenizer, metadata, read_headers
from galley.cli.bench.flags import BenchParser, TokenizerFlags
from galley.cli.bench.metrics import (
    details,
    parse_goodput,
    parse_metrics,
    parse_percentiles,
    summarize,
)
from galley.cli.bench.report import report
from galley.cli.bench.traffic import ALL_AT_ONCE, Run, Traffic, run_load
from galley.cli.parser import make
from galley.errors import ConfigError, ServerError

#: Seed offsets between rounds and of the warm-up, so that no prompt repeats.
_ROUND, _WARM_UP = 7919, 999983


@dataclass(frozen=True)
class TargetFlags:
    """Server"""

    backend: Literal["openai", "vllm", "openai-chat"] = "openai"
    """openai, vllm: the completions API. openai-chat: the chat API."""
    base_url: str | None = None
    """Server, e.g. http://gpu-box:8000; overrides --host and --port."""
    host: str = "127.0.0.1"
    """Host of the server."""
    port: int = 8000
    """Port of the server."""
    endpoint: str | None = None
    """Path of the API; default: the backend's."""
    model: str | None = None
    """Model to request; default: the first that the server lists."""
    served_model_name: str | None = None
    """Model name in requests, if different from --model."""
    header: tuple[str, ...] = ()
    """KEY=VALUE headers of every request; OPENAI_API_KEY is sent as a bearer token."""
    insecure: bool = False
    """Accept any TLS certificate."""
    ready_check_timeout_sec: int = 0
    """Wait up to this many seconds for the server."""
    compare: str | None = None
    """Base URL of a second server: runs both alternately and prints ratios."""
    compare_runs: int = 3
    """Number of rounds with --compare."""
    profile: bool = False
    """Profile the server during the run (/start_profile, /stop_profile)."""


@dataclass(frozen=True)
class TrafficFlags:
    """Arrivals"""

    request_rate: float = math.inf
    """Requests per second; inf sends all at once."""
    burstiness: float = 1.0
    """1: Poisson arrivals; below 1: bursts; above 1: steadier (shape of a gamma distribution)."""
    max_concurrency: int | None = None
    """Maximum number of concurrent requests; the others wait in the client."""
    ramp_up_strategy: Literal["linear", "exponential"] | None = None
    """Increase the rate over the run instead of using --request-rate."""
    ramp_up_start_rps: float | None = None
    """Requests per second at the start of the ramp."""
    ramp_up_end_rps: float | None = None
    """Requests per second at the end of the ramp."""
    num_warmups: int = 0
    """Warm-up requests with other prompts, not measured."""
    num_clients: int | None = None
    """Number of clients for fairness; requests are assigned to them round-robin; default:
    --max-concurrency, at most 64."""
    request_id_prefix: str = ""
    """Send X-Request-Id headers: this prefix and a number."""
    no_stream: bool = False
    """Do not stream answers (time to first token then equals the latency)."""


@dataclass(frozen=True)
class SamplingFlags:
    """Sampling"""

    ignore_eos: bool = False
    """Generate the full length (always on with the random and text datasets)."""
    temperature: float | None = None
    """Sampling temperature; default: the server's."""
    top_p: float | None = None
    """Nucleus sampling."""
    top_k: int | None = None
    """Sample from this many most likely tokens."""
    min_p: float | None = None
    """Minimum probability, relative to the most likely token's."""
    frequency_penalty: float | None = None
    """Penalty per occurrence of a token in the answer."""
    presence_penalty: float | None = None
    """Penalty for tokens that occur in the answer."""
    repetition_penalty: float | None = None
    """Penalty factor for tokens in the prompt and the answer."""
    logprobs: int | None = None
    """Request this many alternatives per token."""
    extra_body: dict[str, Any] | None = None
    """JSON object merged into every request body."""
    chat_template_kwargs: dict[str, Any] | None = None
    """JSON object for the chat template."""


@dataclass(frozen=True)
class ResultFlags:
    """Results"""

    percentile_metrics: str = "ttft,tpot,itl,e2el"
    """Latencies to report: ttft, tpot, itl, e2el."""
    metric_percentiles: str = "99"
    """Percentiles of these latencies, comma-separated."""
    goodput: tuple[str, ...] = ()
    """Limits METRIC:MS (ttft, tpot, e2el): counts the requests within all limits."""
    save_result: bool = False
    """Write a JSON file in vLLM's format."""
    save_detailed: bool = False
    """Include per-request columns in the file."""
    append_result: bool = False
    """Append a line to the file instead of replacing it."""
    result_dir: str | None = None
    """Folder of the result file."""
    result_filename: str | None = None
    """Name of the result file; default: label, rate, concurrency, model and date."""
    label: str | None = None
    """Name of this run in the result; default: the backend."""
    metadata: tuple[str, ...] = ()
    """KEY=VALUE fields to add to the result."""
    plot: str | None = None
    """Plot latency over time and the ITL timeline to this PNG file (needs matplotlib)."""
    disable_tqdm: bool = False
    """Hide the progress display."""


def parser() -> BenchParser:
    return BenchParser(
        "bench serve",
        "Measure a server under load: latency, throughput, goodput, cache reuse, fairness, cost. "
        "Without options, 1000 requests of 1024 random tokens are sent at once.",
        [
            TargetFlags,
            DataFlags,
            TokenizerFlags,
            TrafficFlags,
            SamplingFlags,
            ResultFlags,
            CostFlags,
        ],
        examples=(
            "galley bench serve --dataset-name text --num-prompts 64 --max-concurrency 16",
            "galley bench serve --request-rate 4 --burstiness 0.5 --goodput ttft:200 tpot:50",
            "galley bench serve --compare http://other:8000 --dataset-name text --num-prompts 32",
            "galley bench serve --save-result --plot load.png --cost-per-hour 0.9",
        ),
    )


@dataclass(frozen=True)
class Settings:
    """The parsed command line."""

    target: TargetFlags
    data: DataFlags
    tokenizer: TokenizerFlags
    traffic: TrafficFlags
    sampling: SamplingFlags
    result: ResultFlags
    cost: CostFlags

    @property
    def ignore_eos(self) -> bool:
        return self.sampling.ignore_eos or self.data.dataset_name in ("random", "text")

    @property
    def base_url(self) -> str:
        return self.target.base_url or f"http://{self.target.host}:{self.target.port}"

    @property
    def num_clients(self) -> int:
        return self.traffic.num_clients or min(self.traffic.max_concurrency or 1, 64)

    @property
    def arrivals(self) -> Arrivals:
        flags = self.traffic
        return Arrivals(
            flags.request_rate,
            flags.burstiness,
            flags.ramp_up_strategy,
            flags.ramp_up_start_rps or 0.0,
            flags.ramp_up_end_rps or 0.0,
        )


def read_settings(argv: list[str]) -> Settings:
    values = parser().read(argv)
    settings = Settings(
        make(TargetFlags, values),
        make(DataFlags, values),
        make(TokenizerFlags, values),
        make(TrafficFlags, values),
        make(SamplingFlags, values),
        make(ResultFlags, values),
        make(CostFlags, values),
    )
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Validate the flags before any load is sent. Raises ConfigError."""
    settings.arrivals.rates(1)
    parse_goodput(settings.result.goodput)
    parse_metrics(settings.result.percentile_metrics)
    parse_percentiles(settings.result.metric_percentiles)
    metadata(settings.result.metadata)
    if settings.num_clients < 1:
        raise ConfigError("--num-clients must be at least 1.", field="num_clients")
    if settings.result.plot:
        from galley.cli.bench.plots import require

        require()
        folder = Path(settings.result.plot).expanduser().absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(f"--plot {settings.result.plot}: no file can be written there.")


class Bench:
    """One server under the configured load."""

    def __init__(self, settings: Settings, base_url: str) -> None:
        self.settings = settings
        self.headers = read_headers(settings.target.header)
        self.endpoint = Endpoint(base_url, self.headers, settings.target.insecure)
        self.served = self.endpoint.served(settings.target.ready_check_timeout_sec)
        requested = settings.target.served_model_name or settings.target.model
        self.model = requested or self.served.name

    def traffic(self, seed: int) -> Traffic:
        settings = self.settings
        backend = BACKENDS[settings.target.backend]
        flags = asdict(settings.sampling)
        extra = flags.pop("extra_body") or {}
        flags.pop("ignore_eos")
        logprobs = flags.pop("logprobs")
        sampling = {name: value for name, value in flags.items() if value is not None}
        path = settings.target.endpoint or backend.path
        return Traffic(
            Target.of(self.endpoint.base + path, self.headers, settings.target.insecure),
            backend,
            Options(
                self.model,
                not settings.traffic.no_stream,
                settings.ignore_eos,
                logprobs,
                {**sampling, **extra},
            ),
            settings.arrivals,
            settings.traffic.max_concurrency,
            seed,
            settings.traffic.request_id_prefix,
        )

    def warm_up(self, samples: list[Sample]) -> None:
        """Send requests that are not measured. Raises ServerError if none succeeds."""
        if not samples:
            return
        traffic = replace(self.traffic(0), arrivals=ALL_AT_ONCE)
        run = run_load(traffic, samples)
        if not any(outcome.success for outcome in run.outcomes):
            raise ServerError(f"the warm-up failed: {run.outcomes[0].error}")

    def measure(self, samples: list[Sample], seed: int) -> tuple[dict[str, Any], Run]:
        """Measure one run. Returns vLLM's result fields, and the run itself."""
        settings = self.settings
        before, drafted = self.endpoint.prefix_cache(), self.endpoint.drafts()
        if settings.target.profile:
            self.endpoint.post("/start_profile")
        shown = not settings.result.disable_tqdm
        if shown:
            print(self.header(samples), file=sys.stderr)
        run = run_load(self.traffic(seed), samples, shown)
        if settings.target.profile:
            self.endpoint.post("/stop_profile")
        result = self.identity() | summarize(
            run.outcomes,
            run.duration,
            parse_goodput(settings.result.goodput),
            parse_metrics(settings.result.percentile_metrics),
            parse_percentiles(settings.result.metric_percentiles),
        )
        result["client_cpu"] = run.client_cpu
        if drafted is not None:
            result |= acceptance(drafted, self.endpoint.drafts())
        after = self.endpoint.prefix_cache() if before else None
        if result["cache_reuse"] is None and before and after and after[1] > before[1]:
            result["cached_prompt_tokens"] = int(after[0] - before[0])
            result["cache_reuse"] = (after[0] - before[0]) / (after[1] - before[1])
        return result, run

    def header(self, samples: list[Sample]) -> str:
        """The requests that will be sent, in one line."""
        flags = self.settings.traffic
        tokens = sum(sample.prompt_len for sample in samples) / max(len(samples), 1)
        output = sum(sample.output_len for sample in samples) / max(len(samples), 1)
        rate = "all at once"
        if not math.isinf(flags.request_rate):
            rate = f"{flags.request_rate:g} per second"
        if flags.max_concurrency:
            rate += f", at most {flags.max_concurrency} in flight"
        return (
            f"{len(samples)} requests → {self.endpoint.base} {self.model}: "
            f"{self.settings.data.dataset_name}, {tokens:,.0f} tokens in and up to {output:,.0f} "
            f"out each, {rate}"
        )

    def identity(self) -> dict[str, Any]:
        """First fields of a result, which identify the run."""
        settings = self.settings
        rate = settings.traffic.request_rate
        fields: dict[str, Any] = {
            "date": time.strftime("%Y%m%d-%H%M%S"),
            "endpoint_type": settings.target.backend,
            "backend": settings.target.backend,
            "label": settings.result.label,
            "model_id": self.model,
            "tokenizer_id": settings.tokenizer.tokenizer or self.served.root,
            "num_prompts": settings.data.num_prompts,
            **metadata(settings.result.metadata),
            "request_rate": "inf" if math.isinf(rate) else rate,
            "burstiness": settings.traffic.burstiness,
            "max_concurrency": settings.traffic.max_concurrency,
        }
        if settings.traffic.ramp_up_strategy:
            fields["ramp_up_strategy"] = settings.traffic.ramp_up_strategy
            fields["ramp_up_start_rps"] = settings.traffic.ramp_up_start_rps
            fields["ramp_up_end_rps"] = settings.traffic.ramp_up_end_rps
        return fields


class Prompts:
    """Samples for each round and for the warm-up."""

    def __init__(self, settings: Settings, bench: Bench) -> None:
        self.settings = settings
        self.tokenizer = None
        if not settings.tokenizer.skip_tokenizer_init:
            _, self.tokenizer = find_tokenizer(settings.tokenizer.tokenizer, bench.served)
        chat = settings.target.backend == "openai-chat"
        self.data = replace(
            settings.data, skip_chat_template=settings.data.skip_chat_template or chat
        )

    def round(self, number: int) -> list[Sample]:
        seed = self.data.seed + _ROUND * number
        samples = load_samples(replace(self.data, seed=seed), self.tokenizer)
        return with_clients(samples, self.settings.num_clients)

    def warm_up(self) -> list[Sample]:
        count = self.settings.traffic.num_warmups
        if not count:
            return []
        prefixes = min(self.data.prefix_repetition_num_prefixes, count)
        data = replace(
            self.data,
            num_prompts=count,
            seed=self.data.seed + _WARM_UP,
            prefix_repetition_num_prefixes=prefixes,
        )
        return load_samples(data, self.tokenizer)


def main(argv: list[str]) -> int:
    settings = read_settings(argv)
    bench = Bench(settings, settings.base_url)
    prompts = Prompts(settings, bench)
    if settings.target.compare:
        return compare(settings, bench, prompts)
    bench.warm_up(prompts.warm_up())
    result, run = bench.measure(prompts.round(0), settings.data.seed)
    if not result["completed"]:
        raise ServerError(f"all {result['failed']} requests failed: {run.outcomes[0].error}")
    lines = []
    if settings.cost.cost_per_hour is not None:
        cost = cost_of(result, settings.cost)
        lines = cost_lines(cost, settings.cost)
        result["cost"] = asdict(cost)
    if run.interrupted:
        print(
            f"\ngalley: interrupted: these are the {len(run.outcomes)} requests that had an answer",
            file=sys.stderr,
        )
    print(report(result, lines))
    for error in sorted({o.error for o in run.outcomes if o.error})[:3]:
        print(f"galley: a request failed: {error}", file=sys.stderr)
    if settings.result.plot:
        from galley.cli.bench.plots import plot_run

        plot_run(run, result, settings.result.plot)
        print(f"galley: plot in {settings.result.plot}", file=sys.stderr)
    if settings.result.save_detailed:
        result |= details(run.outcomes, run.began)
    if settings.result.save_result or settings.result.append_result:
        print(f"galley: result in {save(settings, result)}", file=sys.stderr)
    if run.interrupted:
        return 130
    return 0 if not result["failed"] else 1


def compare(settings: Settings, bench: Bench, prompts: Prompts) -> int:
    """Run both servers alternately for `compare_runs` rounds of the same prompts; print ratios."""
    assert settings.target.compare is not None
    other = Bench(settings, settings.target.compare)
    for server in (bench, other):
        server.warm_up(prompts.warm_up())
    rounds = []
    for number in range(settings.target.compare_runs):
        samples = prompts.round(number)
        pair = []
        for server in (bench, other):
            result, run = server.measure(samples, number)
            if run.interrupted:
                raise KeyboardInterrupt
            pair.append(result)
        rounds.append((pair[0], pair[1]))
    print(comparison(rounds, (bench.endpoint.base, other.endpoint.base)))
    if settings.result.save_result:
        result = bench.identity() | {"compare": ratios(rounds), "rounds": rounds}
        print(f"galley: result in {save(settings, result)}", file=sys.stderr)
    return 0 if all(r["completed"] and not r["failed"] for pair in rounds for r in pair) else 1


def save(settings: Settings, result: dict[str, Any]) -> Path:
    """Write the result file, named as vLLM does unless --result-filename is given."""
    flags = settings.result
    folder = Path(flags.result_dir or ".")
    folder.mkdir(parents=True, exist_ok=True)
    name = flags.result_filename
    if name is None:
        limit = settings.traffic.max_concurrency
        concurrency = f"-concurrency{limit}" if limit else ""
        model = str(result["model_id"]).rstrip("/").split("/")[-1]
        label = flags.label or settings.target.backend
        name = (
            f"{label}-{settings.traffic.request_rate}qps{concurrency}-{model}-{result['date']}.json"
        )
    path = folder / name
    with open(path, "a" if flags.append_result else "w", encoding="utf-8") as file:
        if flags.append_result and file.tell():
            file.write("\n")
        json.dump(result, file)
    return path
