"""The load of the engines in an answer's header, for proxies that balance by it (ORCA)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from starlette.requests import Request

#: The request header, which names the format.
REQUEST_HEADER = "endpoint-load-metrics-format"
_SAMPLES = re.compile(
    rb"^vllm:(num_requests_waiting|kv_cache_usage_perc)(?:\{[^}\n]*\})? (\S+)$", re.MULTILINE
)


def load_report(raw: Request, metrics: Callable[[], tuple[bytes, str]]) -> dict[str, str] | None:
    """The header with the number of waiting requests and the highest KV cache usage; None if the
    request does not ask for it or names an unknown format.

    Args:
        metrics: the text of /metrics, and its type.
    """
    form = raw.headers.get(REQUEST_HEADER, "").strip().upper()
    if form not in ("TEXT", "JSON"):
        return None
    waiting, usage = 0.0, 0.0
    for name, value in _SAMPLES.findall(metrics()[0]):
        if name == b"num_requests_waiting":
            waiting += float(value)
        else:
            usage = max(usage, float(value))
    named = {"num_requests_waiting": waiting, "kv_cache_usage_perc": usage}
    if form == "JSON":
        report = json.dumps({"named_metrics": named})
    else:
        report = ", ".join(f"named_metrics.{name}={value}" for name, value in named.items())
    return {"endpoint-load-metrics": f"{form} {report}"}
