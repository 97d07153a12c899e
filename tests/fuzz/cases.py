"""Random cases: a small model, an engine configuration, a workload, and what happens meanwhile.

Everything follows from one seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import ml_dtypes
import numpy as np

from galley.config import EngineConfig, ModelInfo
from galley.config.engine import QuantizedActivations
from galley.config.resolve import Machine, from_kwargs, resolve
from galley.kernels._native import isa
from galley.kernels.backend import kv_layout
from galley.kv.format import KVFormat
from galley.loader.tensor import RawTensor, TensorHeader
from galley.models.footprint import kv_layers, tensor_shapes
from galley.quant.registry import FORMATS
from galley.request import RepetitionDetectionParams, SamplingParams
from tests.fuzz.drafters import drafter
from tests.quant.blocks import HALVES, random_blocks

VOCAB = 300
LENGTH = 256
HIDDEN = 256
#: Families that differ in what an engine sees: biases, norms, windows, fused tensors. What makes
#: them special. (Every family is compared alone and in company by tests/models/test_families.py.)
FAMILIES: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"sliding_window": 21},
    "Phi3ForCausalLM": {},
    "Qwen2ForCausalLM": {"use_sliding_window": True, "sliding_window": 37, "max_window_layers": 1},
    "Qwen3ForCausalLM": {},
    "MiMoForCausalLM": {},
    "FalconH1ForCausalLM": {
        "mamba_d_ssm": 256,
        "mamba_n_heads": 4,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_d_conv": 4,
        "mamba_rms_norm": True,
    },
}
MTP_FAMILY = "MiMoForCausalLM"
#: Methods with a checkpoint, and those that give no more drafts than it has heads.
DRAFTERS = ("draft_model", "medusa", "mlp_speculator", "eagle", "eagle3", "mtp")
HEADS = {"medusa": 2, "mlp_speculator": 2}
MACHINE = Machine(num_cores=2, available_memory=2 * 2**30)


class TinyCheckpoint:
    """Two layers of random weights, the matrices in one format of the registry."""

    def __init__(self, family: str, dtype: str, seed: int) -> None:
        config = {
            "architectures": [family],
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "intermediate_size": HIDDEN,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "max_position_embeddings": LENGTH,
            "tie_word_embeddings": bool(seed % 2),
            "rms_norm_eps": 1e-6,
            **FAMILIES[family],
        }
        self.model_info = ModelInfo(
            architecture=family,
            hf_config=config,
            vocab_size=VOCAB,
            max_position=LENGTH,
            dtype=dtype,
            eos_token_ids=(7,),
        )
        self._dtype = dtype
        self._seed = seed
        self._shapes = tensor_shapes(self.model_info)
        self._tensors: dict[str, RawTensor] = {}

    def names(self) -> list[str]:
        return list(self._shapes)

    def header(self, name: str) -> TensorHeader:
        return TensorHeader(self._shapes[name], "float32")

    def tensor(self, name: str) -> RawTensor:
        if name not in self._tensors:
            self._tensors[name] = self._random(name)
        return self._tensors[name]

    def _random(self, name: str) -> RawTensor:
        shape = self._shapes[name]
        rng = np.random.default_rng([self._seed, len(name), *name.encode()])
        if len(shape) == 1 or "conv1d" in name:
            mean = 1.0 if "norm" in name else 0.0
            return RawTensor(name, shape, "float32", rng.normal(mean, 0.2, shape).astype("f4"))
        if self._dtype in HALVES:
            data = random_blocks(self._dtype, rng, *shape, scale=0.004)
            return RawTensor(name, shape, self._dtype, data)
        values = rng.normal(0, 0.12, shape)
        kinds = {"F32": "f4", "float32": "f4", "F16": "f2", "float16": "f2"}
        return RawTensor(
            name, shape, self._dtype, values.astype(kinds.get(self._dtype, ml_dtypes.bfloat16))
        )


@dataclass
class Ask:
    """One request: it arrives before step `at`; a decoy is aborted after `leave` steps."""

    prompt: list[int]
    params: SamplingParams
    at: int
    leave: int | None = None
    priority: int = 0
    salt: str | None = None


@dataclass
class Case:
    """All of it. Steps before which something happens: deaths (with the step's plan, before or
    after it was computed), resets of the prefix cache, and the share of the KV cache for which
    there is no memory from then on.
    """

    seed: int
    family: str
    dtype: str
    flags: dict[str, Any]
    asks: list[Ask]
    deaths: dict[int, str] = field(default_factory=dict)
    resets: set[int] = field(default_factory=set)
    squeezes: dict[int, float] = field(default_factory=dict)

    @cached_property
    def checkpoint(self) -> TinyCheckpoint:
        return TinyCheckpoint(self.family, self.dtype, self.seed % 3)

    def config(self, **flags: Any) -> EngineConfig:
        """`num_gpu_blocks_override` is of one KV group, and the pool has as many for each; a draft
        head's layer may be one more, beside which each layer with a window is a group.
        """
        given = {"max_model_len": LENGTH, "skip_tokenizer_init": True, **flags}
        model_info = self.checkpoint.model_info
        numbers, block_size = KVFormat("bfloat16"), given.get("block_size", 16)
        layout = kv_layout(kv_layers(model_info), numbers, block_size)
        if blocks := given.get("num_gpu_blocks_override"):
            groups = len(layout.groups)
            if "speculative_config" in given:
                groups = 1 + sum(g.num_layers if g.kind == "window" else 1 for g in layout.groups)
            given["num_gpu_blocks_override"] = 1 + (blocks - 1) * groups
        return resolve(from_kwargs(given, "server", {}), MACHINE, model_info)


def draw(seed: int) -> Case:
    rng = random.Random(seed)
    flags = draw_flags(rng)
    formats = sorted(name for name in FORMATS if not name.startswith("int"))
    family = rng.choice(list(FAMILIES))
    if flags.get("speculative_config", {}).get("method") == "mtp":
        family = MTP_FAMILY
    return Case(
        seed,
        family,
        rng.choice(formats),
        flags,
        draw_asks(rng, flags["scheduling_policy"]),
        {rng.randrange(1, 60): rng.choice(("before", "after")) for _ in range(rng.randint(0, 3))},
        {rng.randrange(1, 60) for _ in range(rng.choice((0, 0, 1, 3)))},
        draw_squeezes(random.Random(f"memory {seed}")),
    )


def draw_flags(rng: random.Random, family: str | None = None) -> dict[str, Any]:
    """An engine configuration, small enough that all that can happen does happen.

    Args:
        family: of the model, if that is given; MTP layers belong to one of them.
    """
    drafters = [m for m in DRAFTERS if m != "mtp" or family in (None, MTP_FAMILY)]
    budget = rng.choice((1, 2, 7, 16, 33, 64, 100, 256, 1000))
    block_size = rng.choice((16, 16, 32, 64, 128))
    one = -(-LENGTH // block_size)
    flags: dict[str, Any] = {
        "max_num_batched_tokens": budget,
        "max_num_seqs": rng.randint(1, min(budget, 32)),
        "block_size": block_size,
        "num_gpu_blocks_override": 1 + rng.choice((one, one + 2, 3 * one, 40 * one)),
        "enable_prefix_caching": rng.random() < 0.8,
        "num_threads": rng.choice((1, 2)),
        "distributed_executor_backend": rng.choice(("uni", "loopback")),
        "enforce_eager": rng.random() < 0.15,
        "scheduling_policy": rng.choice(("fcfs", "priority")),
        "prefix_caching_hash_algo": rng.choice(("sha256", "sha256_cbor")),
        "dtype": rng.choice(("auto", "float32")),
        "quantized_activations": rng.choice(
            [name for name in get_args(QuantizedActivations) if name != "bf16" or isa() == "amx"]
        ),
    }
    if rng.random() < 0.8:
        flags["speculative_config"] = {
            "method": (method := rng.choice(("ngram", "suffix", *drafters))),
            "draft_length": rng.choice(("fixed", "fixed", "adaptive")),
            "num_speculative_tokens": rng.choice(
                (1, HEADS[method]) if method in HEADS else (1, 3, 15)
            ),
        }
        if method in DRAFTERS:
            path = drafter(method, HIDDEN, VOCAB, LENGTH)
            flags["speculative_config"]["model"] = str(path)
    if rng.random() < 0.3:
        flags["long_prefill_token_threshold"] = rng.randint(1, 40)
        flags["long_prefill_token_threshold_adaptive"] = rng.random() < 0.5
    if budget >= LENGTH and rng.random() < 0.3:
        flags["enable_chunked_prefill"] = False
    elif rng.random() < 0.3:
        flags["mixed_prefill_tokens"] = rng.randint(1, 40)
    return flags


def draw_squeezes(rng: random.Random) -> dict[int, float]:
    """Memory runs short now and then, and is back or gets shorter."""
    steps = rng.sample(range(1, 40), rng.choice((0, 4, 6)))
    return {step: rng.choice((0.0, 0.5, 0.9, 1.0)) for step in steps}


def draw_asks(rng: random.Random, policy: str, count: int | None = None) -> list[Ask]:
    """Prompts that partly begin alike, arriving alone or in crowds; `count` of them, or a few."""
    priorities = 3 if policy == "priority" else 1
    stems = [[rng.randrange(VOCAB) for _ in range(rng.choice((5, 16, 48, 130)))] for _ in range(3)]
    asks = []
    at = 0
    for _ in range(count or rng.choice((1, 3, 8, 20, 40))):
        prompt = list(rng.choice(stems)) if rng.random() < 0.6 else []
        prompt += [rng.randrange(VOCAB) for _ in range(rng.choice((0, 1, 3, 15, 16, 17, 60)))]
        prompt = prompt or [1]
        at += rng.choice((0, 0, 0, 1, 4))
        asks.append(
            Ask(
                prompt,
                _params(rng, LENGTH - len(prompt)),
                at,
                rng.randrange(1, 15) if rng.random() < 0.15 else None,
                rng.randrange(priorities),
                rng.choice((None, None, None, "salt")),
            )
        )
    return asks


def _params(rng: random.Random, room: int) -> SamplingParams:
    params: dict[str, Any] = {"max_tokens": min(rng.choice((1, 5, 20, 40)), room)}
    params["temperature"] = rng.choice((0.0, 0.0, 0.5, 1.0, 2.0))
    if params["temperature"]:
        params["seed"] = rng.randrange(-(2**63), 2**63)
    extras: list[dict[str, Any]] = [
        {"top_p": rng.uniform(0.1, 1.0)},
        {"top_k": rng.choice((1, 2, 40, 1000))},
        {"min_p": rng.uniform(0.0, 0.5)},
        {"presence_penalty": rng.uniform(-2, 2)},
        {"frequency_penalty": rng.uniform(-2, 2)},
        {"repetition_penalty": rng.uniform(0.5, 2.0)},
        {"logit_bias": {rng.randrange(VOCAB): rng.uniform(-9, 9) for _ in range(3)}},
        {"allowed_token_ids": sorted(rng.sample(range(VOCAB), 30))},
        {"stop_token_ids": rng.sample(range(VOCAB), 40)},
        {"ignore_eos": True},
        {"speculative": False},
        {"min_tokens": rng.randint(0, params["max_tokens"])},
        {"logprobs": rng.choice((0, 1, 5, 20))},
        {"prompt_logprobs": rng.choice((0, 3))},
        {"n": rng.randint(2, 4)},
        {"repetition_detection": RepetitionDetectionParams(rng.randint(1, 4), 0, 2)},
    ]
    for extra in rng.sample(extras, rng.choice((0, 1, 2, 5))):
        params |= extra
    if params.get("n", 1) > 1:
        params.pop("prompt_logprobs", None)
    return SamplingParams(**params)
