"""Go or no-go for a server that takes traffic: exit code 0 or 1, from its histograms.

    python3 deploy/prometheus/go_no_go.py http://localhost:8000 --seconds 60

Looks at the requests that end within --seconds: p99 of the time to first token and between tokens,
read from the buckets as Prometheus' histogram_quantile does, the share of errors, and whether
/health answered 200 all the time. Put your service level in place of the defaults. Needs only
Python; /metrics needs no API key.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable

SAMPLE = re.compile(r"^([\w:]+)(?:\{(.*)\})? (\S+)$", re.M)
TTFT = "vllm:time_to_first_token_seconds"
ITL = "vllm:inter_token_latency_seconds"
ENDED = "vllm:request_success_total"


class Scrape:
    """The samples of /metrics: (name, text of its labels) → value."""

    def __init__(self, text: str) -> None:
        self.samples = {
            (name, labels): float(value) for name, labels, value in SAMPLE.findall(text)
        }

    def buckets(self, name: str) -> Counter[float]:
        """Upper bound → observations up to it, of all series."""
        found: Counter[float] = Counter()
        for (sample, labels), value in self.samples.items():
            bound = re.search(r'le="([^"]+)"', labels)
            if sample == f"{name}_bucket" and bound:
                found[float(bound[1])] += value
        return found

    def total(self, name: str, labels: str = "") -> float:
        return sum(v for (n, text), v in self.samples.items() if n == name and labels in text)


def quantile(q: float, buckets: Counter[float]) -> float | None:
    """Interpolated within the bucket; None without observations."""
    bounds = sorted(buckets)
    count = buckets[bounds[-1]] if bounds else 0
    if count <= 0:
        return None
    rank, low, below = q * count, 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                return low
            inside = buckets[bound] - below
            return low + (bound - low) * (rank - below) / inside if inside else bound
        low, below = bound, buckets[bound]
    return low


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return str(reply.read(), "utf-8")


def watch(url: str, seconds: float) -> tuple[Scrape, Scrape, int, int]:
    """Scrapes before and after, how often /health was asked, and how often it was not 200."""
    before = Scrape(fetch(f"{url}/metrics"))
    asked = failed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        asked += 1
        try:
            fetch(f"{url}/health")
        except OSError:
            failed += 1
        time.sleep(min(1.0, max(end - time.monotonic(), 0)))
    return before, Scrape(fetch(f"{url}/metrics")), asked, failed


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--ttft", type=float, default=2.0, help="seconds, p99 (2)")
    parser.add_argument("--itl", type=float, default=0.2, help="seconds, p99 (0.2)")
    parser.add_argument("--errors", type=float, default=0.001, help="share of requests (0.001)")
    parser.add_argument("--requests", type=int, default=20, help="least that must end (20)")
    args = parser.parse_args(argv)
    try:
        before, after, asked, failed = watch(args.url.rstrip("/"), args.seconds)
    except OSError as error:
        print(f"NO-GO  {args.url}: {error}")
        return 1

    def increase(read: Callable[[Scrape], float]) -> float:
        return read(after) - read(before)

    verdicts: list[bool] = []

    def say(ok: bool, what: str) -> None:
        verdicts.append(ok)
        print(f"{'ok   ' if ok else 'FAILS'}  {what}")

    ended = increase(lambda scrape: scrape.total(ENDED))
    errors = increase(lambda scrape: scrape.total(ENDED, 'finished_reason="error"'))
    say(ended >= args.requests, f"{ended:.0f} requests ended, at least {args.requests}")
    for name, title, limit in ((TTFT, "first token", args.ttft), (ITL, "between tokens", args.itl)):
        buckets = after.buckets(name)
        buckets.subtract(before.buckets(name))
        value = quantile(0.99, buckets)
        shown = "not observed" if value is None else f"{value:.3f} s"
        say(value is not None and value <= limit, f"p99 {title}: {shown}, at most {limit:g} s")
    share = errors / ended if ended else 0.0
    say(share <= args.errors, f"{share:.2%} of them failed, at most {args.errors:.2%}")
    say(not failed, f"/health was 200 {asked - failed} of {asked} times")
    print("GO" if all(verdicts) else "NO-GO")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
