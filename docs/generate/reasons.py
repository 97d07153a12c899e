"""Reasons for missing features of vLLM that the program itself has no sentence for."""

from __future__ import annotations

import re
from typing import Any

from galley.request import STEERING_FIELDS

WORKS, NOTHING, REFUSED, NOT_YET = "works", "no effect", "refused", "not yet"
Verdict = tuple[str, str]

COMMANDS: dict[str, Verdict] = {
    "bench mm-processor": (NOT_YET, "only text models are supported yet"),
    "download-kernels": (REFUSED, "the kernels are a part of the package"),
    "preload": (NOT_YET, "packed weights are cached on disk and mapped by every start"),
    "snapshot": (NOT_YET, "a start takes about a second as it is"),
    "snapshot create": (NOT_YET, "a start takes about a second as it is"),
    "snapshot inspect": (NOT_YET, "a start takes about a second as it is"),
    "snapshot restore": (NOT_YET, "a start takes about a second as it is"),
}
#: Flags that the parser knows and whose other values do not act yet.
FLAGS: dict[str, Verdict] = {
    "--distributed-executor-backend": (
        NOT_YET,
        "every engine runs its model in its own process (`uni`). `mp` is accepted with one worker "
        "and changes nothing; `loopback` is for tests",
    ),
}
HINTS = {
    "--trust-remote-code": "no code of a checkpoint is ever run",
    "--enable-sleep-mode": "/sleep gives memory back with or without it",
    "--additional-config": "no plugin reads it",
    "--sleep-mode-offload-cudagraph": "there are no CUDA graphs",
    "--sleep-preserve-parameter-names": "waking up loads all weights again",
}

_POOLING = "plugins are not supported yet"
_MEDIA = "only text models are supported yet"
_LORA = "--enable-lora"
_WEIGHTS = "weight updates are not supported yet"
_PARALLEL = "this version runs one engine on one host"
_ROUTE_GROUPS = {
    "pooling": _POOLING,
    "audio": _MEDIA,
    "realtime": _MEDIA,
    "lora": _LORA,
    "cohere": "Cohere's API",
    "elastic-ep": _PARALLEL,
    "rl-dev": _WEIGHTS,
    "profile": "profiling over HTTP",
    "generate-extra": "scores of labels",
    "anthropic": "Anthropic's API",
}


def route(entry: dict[str, Any]) -> Verdict:
    if entry["group"] == "fault-tolerance":
        return REFUSED, "the engine restarts by itself; there is nothing to steer"
    if "adapters" in entry["path"]:
        return NOT_YET, _LORA
    if entry["path"] == "/kv_event_sources":
        return NOT_YET, "KV events"
    if entry["path"] in ("/docs/oauth2-redirect", "/static/*"):
        return NOT_YET, "scripts of other projects; /docs is a page without any"
    if entry["path"] in ("/reset_mm_cache", "/reset_encoder_cache"):
        return NOT_YET, _MEDIA
    return NOT_YET, _ROUTE_GROUPS.get(entry["group"], f"with {entry['condition']}")


_METRICS = (
    (r"kv_block_", "--kv-cache-metrics"),
    (r"lora", _LORA),
    (r"watermark", "watermarking"),
    (r"corrupted", "NaN checks of logits"),
    (r"hf3fs|hisparse|nixl|mooncake|offload|kv_|KVCR|lmcache|p2p|tier", "KV transfer and offload"),
    (r"^http", ""),
)


def metric(entry: dict[str, Any]) -> Verdict:
    for pattern, reason in _METRICS:
        if re.search(pattern, entry["name"]):
            return NOT_YET, reason
    return NOT_YET, entry["condition"]


def still(name: str) -> str:
    """Why a metric that is there stays 0."""
    for pattern, reason in (
        ("estimated_", "--enable-mfu-metrics"),
        ("external_prefix", "KV connectors"),
        ("mm_cache", _MEDIA),
        ("admission", "limits of the queue"),
    ):
        if pattern in name:
            return reason
    return "its feature is not there"


_NO_TOOLS = "the server runs no tools itself"
_VARIABLES: dict[str, Verdict] = {
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": (NOTHING, "the server always stays up: a new engine starts"),
    "VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT": (NOTHING, "templates have 2 seconds of CPU time"),
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": (NOTHING, "ids get no suffix"),
    "VLLM_V1_OUTPUT_PROC_CHUNK_SIZE": (NOTHING, "a step's outputs are one message of columns"),
    "VLLM_USE_RUST_FRONTEND": (REFUSED, "there is one front end"),
    "VLLM_USE_RUST_BENCH": (REFUSED, "there is one bench client"),
    "VLLM_RUST_FRONTEND_PATH": (REFUSED, "there is one front end"),
    "VLLM_ENABLE_COHERE_API": (NOT_YET, "Cohere's API"),
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": (REFUSED, "--enable-log-outputs logs the answers"),
    "VLLM_ALLOW_INSECURE_SERIALIZATION": (REFUSED, "nothing is ever unpickled from a socket"),
    "VLLM_ENABLE_V1_MULTIPROCESSING": (NOTHING, "LLM runs in one process, the server in three"),
    "VLLM_WORKER_MULTIPROC_METHOD": (NOTHING, "the launcher is small and forks"),
    "VLLM_ENGINE_READY_TIMEOUT_S": (
        NOTHING,
        "a start takes a second; a failed one is reported at once",
    ),
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": (NOTHING, "--engine-step-timeout"),
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": (NOTHING, "there are no workers yet"),
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": (REFUSED, "beyond the model's positions there are no answers"),
    "VLLM_PLUGINS": (NOT_YET, "plugins, except resolvers of adapters ([lora.md](lora.md))"),
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": (WORKS, ""),
    "VLLM_LORA_RESOLVER_CACHE_DIR": (WORKS, "with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"),
    "VLLM_LORA_RESOLVER_HF_REPO_LIST": (NOT_YET, "download the adapter and name its folder"),
    "VLLM_LORA_ENABLE_DUAL_STREAM": (NOTHING, "there are no streams of a GPU"),
    "VLLM_COMPUTE_NANS_IN_LOGITS": (NOT_YET, "NaN checks of logits"),
    "VLLM_RAISE_ON_LOGIT_NANS": (NOT_YET, "NaN checks of logits"),
    "VLLM_HOST_IP": (NOT_YET, "all sockets between the processes are Unix sockets"),
    "VLLM_PORT": (NOT_YET, "no port is used between the processes"),
    "VLLM_LOOPBACK_IP": (NOTHING, "no port is used between the processes"),
    "VLLM_USE_MODELSCOPE": (NOT_YET, "downloads come from Hugging Face"),
    "VLLM_MODEL_REDIRECT_PATH": (NOT_YET, "give the folder itself"),
    "VLLM_CONFIG_ROOT": (NOTHING, "there is no folder of settings"),
    "VLLM_ASSETS_CACHE": (NOT_YET, _MEDIA),
    "VLLM_ASSETS_CACHE_MODEL_CLEAN": (NOT_YET, _MEDIA),
    "VLLM_LOG_BATCHSIZE_INTERVAL": (NOTHING, "--enable-logging-iteration-details logs sizes"),
    "VLLM_LOG_MODEL_INSPECTION": (NOTHING, "`galley inspect` shows the model"),
    "VLLM_DISABLE_LOG_LOGO": (NOTHING, "there is no logo"),
    "VLLM_TRACE_FUNCTION": (REFUSED, "use a profiler"),
    "VLLM_REGEX_COMPILATION_TIMEOUT_S": (NOTHING, "a constraint has 0.8 seconds of CPU time"),
    "VLLM_XGRAMMAR_CACHE_MB": (NOTHING, "the engine keeps the grammars that were used last"),
    "VLLM_V1_USE_OUTLINES_CACHE": (NOTHING, "there is no backend of outlines"),
    "VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS": (NOTHING, "calls are parsed as they are written"),
    "VLLM_ENFORCE_STRICT_TOOL_CALLING": (NOT_YET, "`strict` is always kept"),
    "VLLM_TOOL_JSON_ERROR_AUTOMATIC_RETRY": (REFUSED, _NO_TOOLS),
    "VLLM_GPT_OSS_SYSTEM_TOOL_MCP_LABELS": (REFUSED, _NO_TOOLS),
    "VLLM_GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS": (NOT_YET, "a chat template decides"),
    "VLLM_SYSTEM_START_DATE": (NOT_YET, "a chat template is given today's date"),
    "VLLM_USE_EXPERIMENTAL_PARSER_CONTEXT": (NOTHING, "it tunes how vLLM's server works"),
    "NO_COLOR": (WORKS, "where the log is a terminal"),
    "HF_TOKEN": (WORKS, "by the hub's client, when a hub model is asked for"),
    "HF_HOME": (WORKS, "by the hub's client, when a hub model is asked for"),
    "HF_HUB_OFFLINE": (WORKS, "by the hub's client, when a hub model is asked for"),
    "CUDA_VISIBLE_DEVICES": (NOT_YET, "GPUs"),
    "MOONCAKE_CONFIG_PATH": (NOT_YET, "KV connectors"),
    "LMCACHE_CONFIG_FILE": (NOT_YET, "KV connectors"),
    "DO_NOT_TRACK": (NOTHING, "nothing is ever reported to anyone"),
    "TRANSFORMERS_OFFLINE": (NOTHING, "HF_HUB_OFFLINE; transformers is not used"),
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": (WORKS, "with --otlp-traces-endpoint"),
    "OTEL_EXPORTER_OTLP_TRACES_INSECURE": (WORKS, "by OpenTelemetry, with --otlp-traces-endpoint"),
    "OTEL_SERVICE_NAME": (WORKS, "by OpenTelemetry, with --otlp-traces-endpoint"),
}
_VARIABLE_GROUPS: dict[str, Verdict] = {
    "engine": (NOTHING, "it tunes how vLLM's engine works"),
    "network/distributed": (NOT_YET, _PARALLEL),
    "model/assets": (NOT_YET, "loaders for object stores and other formats"),
    "LoRA": (NOT_YET, _LORA),
    "multimodal": (NOT_YET, _MEDIA),
    "CPU platform": (NOTHING, "it tunes vLLM's CPU kernels; see --num-threads"),
    "compile": (NOTHING, "nothing is compiled at run time"),
    "logging/telemetry": (NOTHING, "it tunes vLLM's own diagnosis"),
}


def variable(entry: dict[str, Any]) -> Verdict:
    name = entry["name"]
    if "USAGE" in name or "DO_NOT_TRACK" in name:
        return NOTHING, "nothing is ever reported to anyone"
    return _VARIABLES.get(name) or _VARIABLE_GROUPS.get(entry["group"], (NOT_YET, ""))


def request(name: str) -> Verdict:
    if "LoRAAdapter" in name:
        return WORKS, "is_3d_lora_weight has no effect: the adapter's files tell"
    for pattern, reason in (
        ("Transcription|Translation", _MEDIA),
        ("Generative|Structured", "scores of labels"),
        ("Anthropic", "Anthropic's API"),
        ("Responses|Batch", "its route"),
    ):
        if re.search(pattern, name) and "Embedding" not in name:
            return NOT_YET, reason
    return NOT_YET, _POOLING


def python(name: str, works: bool) -> str:
    if works:
        return ""
    for pattern, reason in (
        ("[Pp]ool|[Ee]mbed|[Cc]lassif|[Ss]cor|encode", _POOLING),
        ("weight", _WEIGHTS),
        ("ray|world_size|collective|apply_model", _PARALLEL),
        ("profile", "profiling"),
        ("mm_cache", _MEDIA),
        ("ModelRegistry", "models are programs of native kernels, not torch modules"),
    ):
        if re.search(pattern, name):
            return reason
    return ""


def sampling(name: str) -> Verdict:
    if name in STEERING_FIELDS:
        return NOTHING, "it steers vLLM's own processes"
    for pattern, reason in (
        ("structured", "structured output"),
        ("watermark", "watermarking"),
        ("thinking", "a field of chat requests"),
        ("routed_experts", "routed experts are not returned"),
        ("trace_decode", "replay of recorded tokens"),
        ("prompt_logprob_", "refused by vLLM's runner for CPUs too; prompt_logprobs is there"),
        ("skip_reading_prefix_cache|extra_args", "reserved for plugins and poolers"),
    ):
        if re.search(pattern, name):
            return NOT_YET, reason
    return NOT_YET, ""


#: What an item lacks although tests show the rest of it.
CHECKLIST: dict[int, str] = {
    54: "a CPU has no graphs: steps replay a program, or with --enforce-eager call op by op",
    55: "one native kernel for each instruction set; `--backend reference` is the other backend",
    57: "on a CPU no core is free beside the forward pass: masks are made after it",
    60: "frames on Unix sockets in place of ZMQ; one worker, in the engine's process",
    63: "one rank",
    85: "by `make check-lm-eval`",
    77: "in small, with random weights",
    82: "one model a server",
    90: "by `make check-clients`, with small random models",
    137: "needs the router",
    148: "needs the router",
    150: "computed by the formula for more than one rank; one rank is counted",
    165: "one rank: always the engine's own process",
    201: "",
    204: "several engines need data parallelism",
    225: "one host: all sockets between processes are Unix sockets in a private folder",
    231: "no socket between processes has an address yet",
    245: "built with buildah on a base of Debian's Python",
    249: "several nodes need tensor or pipeline parallelism",
    251: "two servers behind nginx; Grafana itself is not run",
    252: "/dev/shm is used by tensor parallelism only",
    257: "of x86-64; other processors build the portable kernels from source",
    258: "entry points of `galley.backends`; there is no plugin for an accelerator yet",
    263: "entry points of `galley.backends`; there are no such kernels yet",
}
