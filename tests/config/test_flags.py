"""Flags come from dataclasses: kinds, readings, refusals."""

import dataclasses
import json
import pathlib

import pytest

from galley.config import EngineConfig, ModelInfo
from galley.config.flags import flags_of, human_int
from galley.config.resolve import SECTIONS, Machine, environment, from_kwargs, resolve
from galley.config.server import ServerConfig
from galley.config.vllm_flags import disposition, dispositions
from galley.errors import ConfigError

MACHINE = Machine(num_cores=2, available_memory=8 << 30)
FACTS = ModelInfo(
    architecture="LlamaForCausalLM",
    hf_config={},
    vocab_size=100,
    max_position=2048,
    dtype="bfloat16",
)
QUANTIZED = dataclasses.replace(FACTS, dtype="Q4_1", quantization="gguf")
VLLM_SERVE_FLAGS = json.loads((pathlib.Path(__file__).parent / "vllm_serve_flags.json").read_text())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1k", 1000),
        ("1K", 1024),
        ("25.6k", 25600),
        ("2m", 2_000_000),
        ("2M", 2 << 20),
        ("4G", 4 << 30),
        ("4GiB", 4 << 30),
        ("auto", -1),
        ("-1", -1),
        ("17", 17),
    ],
)
def test_human_readable_integers(text, value):
    assert human_int(text) == value


@pytest.mark.parametrize("text", ["", "k", "1.5", "1kk", "four", "1e3"])
def test_unreadable_integers(text):
    with pytest.raises(ValueError):
        human_int(text)


def test_flags_of_llm_are_typed():
    """The module that `make docs` makes has all flags, and no others."""
    from galley.config.engine_flags import EngineFlags

    flags = {flag.name for section in SECTIONS.values() for flag in flags_of(section)}
    assert set(EngineFlags.__annotations__) == flags - {"model"}


def test_every_field_has_help():
    for section in [*SECTIONS.values(), ServerConfig]:
        for flag in flags_of(section):
            assert flag.help, f"{flag.option} has no help"


def test_every_serve_flag_of_vllm_is_known():
    have = {f.name for c in [*SECTIONS.values(), ServerConfig] for f in flags_of(c)}
    have.add("config")
    unknown = [
        name for name in VLLM_SERVE_FLAGS if name not in have and disposition(name)[0] == "unknown"
    ]
    assert unknown == []


#: Keyword arguments of vLLM 0.32's `LLM` that Galley has no field for, with their defaults.
LLM_KEYWORDS = {
    "runner": "auto", "convert": "auto", "trust_remote_code": False,
    "allowed_local_media_path": "", "allowed_media_domains": None, "quantization": None,
    "cpu_offload_gb": 0, "offload_group_size": 0, "offload_num_in_group": 1,
    "offload_prefetch_step": 1, "offload_params": None, "enable_return_routed_experts": False,
    "return_sampling_mask": False, "disable_custom_all_reduce": False, "hf_token": None,
    "hf_overrides": None, "mm_processor_kwargs": None, "pooler_config": None,
    "structured_outputs_config": None, "profiler_config": None, "attention_config": None,
    "compilation_config": None, "quantization_config": None, "logits_processors": None,
    "spec_method": None, "spec_model": None, "spec_tokens": None,
}  # fmt: skip


def test_keywords_that_ask_for_nothing_are_accepted():
    assert from_kwargs(LLM_KEYWORDS, "offline", {}) == from_kwargs({}, "offline", {})


@pytest.mark.parametrize("name", [n for n in LLM_KEYWORDS if disposition(n)[0] == "refused"])
def test_keywords_that_ask_for_something_else_are_refused_by_name(name):
    with pytest.raises(ConfigError, match="is not supported: ") as caught:
        from_kwargs({name: "something"}, "offline", {})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"latency": [1]}, "no family 'latency'"),
        ({"request_latency": []}, "a list of numbers"),
        ({"request_latency": 3}, "a list of numbers"),
        ({"request_latency": [True]}, "not a number"),
        ({"request_latency": ["1"]}, "not a number"),
        ({"request_latency": [0.0]}, "not positive"),
        ({"request_latency": [1, float("inf")]}, "finite"),
        ({"request_latency": [1, 2, 2]}, "do not increase"),
    ],
)
def test_buckets_that_are_none_are_refused(given, wanted):
    with pytest.raises(ConfigError, match=wanted) as caught:
        from_kwargs({"custom_histogram_buckets": given}, "server", {})
    assert caught.value.field == "custom_histogram_buckets"


def test_quantization_must_be_the_checkpoint_s():
    def given(name):
        return resolve(from_kwargs({"quantization": name}, "server", {}), MACHINE, QUANTIZED)

    assert given("gguf").model.quantization == "gguf"
    assert given(None).model.quantization is None
    with pytest.raises(ConfigError, match="the checkpoint's is gguf") as caught:
        given("awq")
    assert caught.value.field == "quantization"


def test_no_flag_is_both_supported_and_refused():
    have = {f.name for c in [*SECTIONS.values(), ServerConfig] for f in flags_of(c)}
    assert have & set(dispositions()) == set()


def test_defaults_follow_the_use():
    server, offline = from_kwargs({}, "server", {}), from_kwargs({}, "offline", {})
    assert (server.scheduler.max_num_batched_tokens, server.scheduler.max_num_seqs) == (2048, 128)
    assert (offline.scheduler.max_num_batched_tokens, offline.scheduler.max_num_seqs) == (4096, 256)
    assert (server.scheduler.target_itl, offline.scheduler.target_itl) == (60, 0)


@pytest.mark.parametrize(
    ("given", "cap", "target"),
    [
        ({"max_num_batched_tokens": 4096}, 0, 0),
        ({"enable_chunked_prefill": False}, 0, 0),
        ({"max_num_seqs": 16}, 0, 60),
        ({"mixed_prefill_tokens": 256}, 256, 0),
        ({"max_num_batched_tokens": 4096, "mixed_prefill_tokens": 256}, 256, 0),
        ({"max_num_batched_tokens": 4096, "target_itl": 25}, 0, 25),
        ({"target_itl": 0}, 0, 0),
    ],
)
def test_a_budget_that_is_given_is_all_for_prompts_unless_a_limit_is_given_too(given, cap, target):
    scheduler = from_kwargs(given, "server", {}).scheduler
    assert (scheduler.mixed_prefill_tokens, scheduler.target_itl) == (cap, target)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gpu_memory_utilization": 0}, r"--gpu-memory-utilization must be in \(0, 1\], got 0"),
        ({"gpu_memory_utilization": 1.1}, r"--gpu-memory-utilization must be in"),
        ({"max_num_seqs": 0}, "--max-num-seqs must be in 1"),
        (
            {"mixed_prefill_tokens": 9, "enable_chunked_prefill": False},
            "--mixed-prefill-tokens 9 needs chunked prefill",
        ),
        (
            {"target_itl": 9, "enable_chunked_prefill": False},
            "--target-itl 9 needs chunked prefill",
        ),
        ({"target_itl": -1}, "--target-itl must be milliseconds"),
        ({"target_itl": float("nan")}, "--target-itl must be milliseconds"),
        ({"max_num_batched_tokens": "many"}, "--max-num-batched-tokens expects a whole number"),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 16}, "must be at least --max-num-seqs"),
        ({"block_size": 17}, "--block-size must be one of 16, 32, 64, 128; got 17"),
        ({"dtype": "int3"}, "--dtype must be one of"),
        ({"max_model_len": 0}, "--max-model-len must be at least 1"),
        ({"scheduling_policy": "lifo"}, "--scheduling-policy must be one of fcfs, priority"),
        ({"enable_prefix_caching": "maybe"}, "--enable-prefix-caching expects true or false"),
        ({"tensor_parallel_size": 4}, "--tensor-parallel-size must be 1"),
        ({"max_modle_len": 5}, "unknown option --max-modle-len. Did you mean --max-model-len?"),
        ({"default_mm_loras": {"x": "y"}}, "--default-mm-loras is not supported: adapters add"),
        ({"seed": None}, "--seed must not be empty"),
        ({"override_generation_config": "[1]"}, "expects a JSON object"),
    ],
)
def test_bad_values_name_the_flag(given, message):
    with pytest.raises(ConfigError, match=message):
        from_kwargs(given, "server", {})


def test_hints_of_vllm_are_accepted():
    assert from_kwargs({"async_scheduling": True}, "server", {}) == from_kwargs({}, "server", {})


def test_environment_gives_way_to_flags():
    env = {"VLLM_CPU_KVCACHE_SPACE": "2", "GALLEY_NUM_THREADS": "3", "VLLM_BATCH_INVARIANT": "1"}
    config = from_kwargs({}, "server", env)
    assert config.device.batch_invariant
    assert not from_kwargs({}, "server", {"VLLM_BATCH_INVARIANT": "0"}).device.batch_invariant
    assert config.cache.kv_cache_memory_bytes == 2 << 30
    assert config.device.num_threads == 3
    assert from_kwargs({"num_threads": 1}, "server", env).device.num_threads == 1
    with pytest.raises(ConfigError, match="GALLEY_NUM_THREADS"):
        environment({"GALLEY_NUM_THREADS": "two"})


def resolved(**given: object) -> EngineConfig:
    return resolve(from_kwargs(given, "server", {}), MACHINE, FACTS)


def test_resolve_takes_the_models_length():
    assert resolved().model.max_model_len == 2048
    assert resolved(max_model_len=100).model.max_model_len == 100
    assert resolved().device.num_threads == 2
    with pytest.raises(ConfigError, match="longer than the 2048 tokens"):
        resolved(max_model_len=4096)


def test_without_chunked_prefill_a_prompt_must_fit():
    assert resolved(enable_chunked_prefill=False).scheduler.max_num_batched_tokens == 2048
    with pytest.raises(ConfigError, match="needs --max-num-batched-tokens of at least"):
        resolved(enable_chunked_prefill=False, max_num_batched_tokens=512)


def test_configuration_survives_the_process_border():
    import msgspec

    config = resolved(served_model_name=["a", "b"], override_generation_config={"top_k": 3})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=EngineConfig) == config


def test_flags_of_the_server_are_none_of_the_engine():
    assert from_kwargs({"middleware": None}, "offline", {}) == from_kwargs({}, "offline", {})
    with pytest.raises(ConfigError, match="flag of `galley serve`"):
        from_kwargs({"max_num_queued_reqs": 4}, "offline", {})


def test_limits_that_lower_others():
    given = {"max_num_active_seqs": 4, "max_num_scheduled_tokens": 64, "max_num_seqs": 8}
    scheduler = from_kwargs(given, "server", {}).scheduler
    assert (scheduler.max_num_seqs, scheduler.max_num_batched_tokens) == (4, 64)
    for name, value in (("max_num_active_seqs", 129), ("max_num_scheduled_tokens", 0)):
        with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be in 1"):
            from_kwargs({name: value}, "server", {})
