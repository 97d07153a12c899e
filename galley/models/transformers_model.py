"""Any model of the transformers library, on Galley's paged KV cache.

    tokens of all rows as one sequence [1, T], each with its position
        └ transformers' layers, with the attention function `galley`:
              write_kv, attention over the pages      (per layer, the ops of the reference backend)

So batches, chunks, prefix caching, preemption and replay are those of native models. A model whose
layers keep anything else from token to token (recurrent states, caches of their own) is refused.
When a model is loaded, its results are compared with those of transformers' own attention once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from galley.config import ModelInfo
from galley.errors import ModelError
from galley.kernels.backend import Dense, kv_layout
from galley.kernels.ops import ForwardContext, KVLayer, Ops, Value
from galley.kv.format import KVFormat
from galley.layers.weights import WeightSource
from galley.loader.tensor import RawTensor
from galley.models.decoder import Stage
from galley.models.footprint import Footprint
from galley.models.registry import similar

#: As which the attention over the pages is registered.
ATTENTION = "galley"
DTYPES: dict[Dense, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16}
#: Tokens that a loaded model is tried with, and where they are cut in two.
TRIAL_TOKENS, TRIAL_CUT = 12, 7
#: Tokens of the block that holds them.
TRIAL_BLOCK = 16
#: Most by which half of the tokens may differ in the trial, of a token's largest hidden value.
TRIAL_TOLERANCE: dict[Dense, float] = {"f32": 1e-3, "bf16": 0.1}


def transformers_model(model_info: ModelInfo) -> TransformersSpec:
    """Raises ModelError if transformers has no such model, or if it cannot run on paged
    attention."""
    return TransformersSpec(model_info)


class TransformersSpec:
    """A model of transformers before its weights are read."""

    def __init__(self, model_info: ModelInfo) -> None:
        self._name = model_info.architecture
        if model_info.quantization is not None:
            raise ModelError(
                f"{self._name}: --model-impl transformers runs checkpoints that are not quantized, "
                f"not {model_info.quantization}"
            )
        if model_info.online is not None:
            raise ModelError(
                f"{self._name}: --quantization {model_info.online} needs a model of Galley's own, "
                "not --model-impl transformers"
            )
        self.config = _read_config(model_info)
        with torch.device("meta"):
            self._shapes = _from_config(self.config, model_info)
        made = type(self._shapes).__name__
        if made != self._name:
            kind = self.config.model_type
            raise ModelError(
                f"{self._name}: what transformers makes of model_type {kind!r} is a {made}"
                f"{similar(self._name)}"
            )
        _check_supported(self._shapes)
        self.kv_layers = _kv_layers(self.config)

    def build(self, source: WeightSource, stage: Stage) -> TransformersModel:
        if source.group.size > 1 or stage.start or stage.end not in (None, len(self.kv_layers)):
            raise ModelError(f"{self._name}: --model-impl transformers runs in one process")
        _check_rotary(self.config, stage.max_positions)
        loaded = source.load(self._load)
        return loaded or TransformersModel(self._shapes, self.kv_layers)

    def _load(self, dense: Dense, tensors: Mapping[str, RawTensor]) -> TransformersModel:
        state = {name: _to_torch(raw) for name, raw in tensors.items()}
        load: Any = type(self._shapes).from_pretrained
        module, report = load(
            None,
            config=self.config,
            state_dict=state,
            dtype=DTYPES[dense],
            attn_implementation="eager",
            output_loading_info=True,
        )
        missing = sorted(report["missing_keys"])
        if missing:
            raise ModelError(f"{self._name}: the checkpoint has no tensor {', '.join(missing[:8])}")
        model = TransformersModel(module.eval(), self.kv_layers)
        model.attach(TRIAL_TOLERANCE[dense])
        return model


class TransformersModel:
    """A model of transformers as `backend.Model`.

    Attributes:
        num_bytes: memory of its weights.
    """

    def __init__(self, module: PreTrainedModel, kv_layers: list[KVLayer]) -> None:
        self._module = module
        self.kv_layers = kv_layers
        self.vocab_size = int(module.config.get_text_config().vocab_size)
        self.num_bytes = sum(p.nbytes for p in module.parameters())
        self._body: torch.nn.Module = getattr(module, module.base_model_prefix)
        self._attention = _Attention(kv_layers)
        self._finish = _Finished()

    def embed(self, ops: Ops, ctx: ForwardContext) -> Value:
        """[T]: the token ids; the model embeds them itself."""
        return ctx.token_ids

    def forward(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        """[T, H], normalised as for the head."""
        self._attention.begin(ops, ctx)
        ids, positions = cast(Tensor, hidden), cast(Tensor, ctx.positions)
        result = self._body(input_ids=ids[None], position_ids=positions, use_cache=False)
        self._attention.end()
        return cast(Value, result[0][0])

    def final_norm(self, ops: Ops, hidden: Value) -> Value:
        return hidden

    def logits(self, ops: Ops, hidden: Value, ctx: ForwardContext) -> Value:
        """[L, vocab], by what the model does after its layers."""
        selected = cast(Tensor, hidden)[cast(Tensor, ctx.logit_index)]
        if not len(selected):
            return cast(Value, selected.new_empty((0, self.vocab_size)))
        self._finish.hidden = selected[None]
        with _replaced(self._module, self._module.base_model_prefix, self._finish):
            ids = torch.zeros((1, len(selected)), dtype=torch.long)
            result = self._module(input_ids=ids, use_cache=False)
        return cast(Value, result.logits[0])

    def footprint(self) -> Footprint:
        head = self._module.get_output_embeddings()
        tables = {
            id(m.weight) for m in (head, self._module.get_input_embeddings()) if m is not None
        }
        matrices = {id(p): p for p in self._module.parameters() if p.ndim > 1}
        config = self._module.config.get_text_config()
        return Footprint(
            tensors={name: tuple(t.shape) for name, t in self._module.state_dict().items()},
            kv_layers=self.kv_layers,
            idle_weights=0,
            token_weights=sum(p.numel() for i, p in matrices.items() if i not in tables),
            logit_weights=0 if head is None else head.weight.numel(),
            attention_width=config.num_attention_heads
            * sum(layer.head_dim for layer in self.kv_layers),
        )

    def attach(self, tolerance: float) -> None:
        """Put the attention over the pages into the loaded model, and try it.

        Raises ModelError if the model does not compute the same with it as with transformers' own.
        """
        name = type(self._module).__name__
        # Over the whole vocabulary: the first are often special tokens that no text has trained.
        ids = torch.arange(1, TRIAL_TOKENS + 1)[None] * self.vocab_size // (TRIAL_TOKENS + 1)
        try:
            with torch.inference_mode():
                want = self._body(input_ids=ids, use_cache=False)[0][0].float()
                self._attention.attach(self._module)
                got = torch.cat(
                    [
                        self._attention.try_on(self._body, ids[0, start:stop], start)
                        for start, stop in ((0, TRIAL_CUT), (TRIAL_CUT, TRIAL_TOKENS))
                    ]
                ).float()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"{name}: cannot run with --model-impl transformers: {error}"
            ) from error
        config = self._module.config.get_text_config()
        window, kinds = (getattr(config, key, None) for key in ("sliding_window", "layer_types"))
        if window and not self._attention.has_windows and not kinds:
            raise ModelError(f"{name}: its layers do not ask for the window of {window} tokens")
        # The median: in bfloat16 a real model doubles the rounding of single tokens many times.
        difference = float(((got - want).abs().amax(-1) / want.abs().amax(-1)).median())
        if not difference <= tolerance:
            raise ModelError(
                f"{name}: gives other results with Galley's attention than with its own (by "
                f"{difference:.2g} of the largest value); it cannot run with --model-impl "
                "transformers"
            )


class _LastHiddenState(BaseModelOutputWithPast):
    """The result of a model's layers; None for all else that a head may look for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Finished(torch.nn.Module):
    """Stands for a model's layers once they are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.empty(0)

    def forward(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast:
        return _LastHiddenState(last_hidden_state=cast(Any, self.hidden))


class _replaced:
    """Within it, the submodule `name` is another one."""

    def __init__(self, module: torch.nn.Module, name: str, other: torch.nn.Module) -> None:
        self._module, self._name, self._other = module, name, other

    def __enter__(self) -> None:
        self._before = getattr(self._module, self._name)
        setattr(self._module, self._name, self._other)

    def __exit__(self, *error: object) -> None:
        setattr(self._module, self._name, self._before)


class _Attention:
    """The attention of one model: writes each layer's K and V to its pages, attends over them.

    Attributes:
        has_windows: a layer has asked for a window.
    """

    def __init__(self, layers: list[KVLayer]) -> None:
        self.has_windows = False
        self._layers = layers
        self._ops: Ops | None = None
        self._ctx: ForwardContext | None = None
        self._seen: set[int] = set()

    def attach(self, module: PreTrainedModel) -> None:
        """Have the model call it."""
        ALL_ATTENTION_FUNCTIONS[ATTENTION] = _attention_function
        module.set_attn_implementation(ATTENTION)
        for part in module.modules():
            part.galley_attention = self  # type: ignore[assignment]

    def begin(self, ops: Ops, ctx: ForwardContext) -> None:
        self._ops, self._ctx = ops, ctx
        self._seen.clear()

    def end(self) -> None:
        """Raises ModelError if a layer has not called it."""
        if len(self._seen) != len(self._layers):
            missing = sorted(set(range(len(self._layers))) - self._seen)
            raise ModelError(
                f"layer {missing[0]} of the model does not use transformers' attention interface; "
                "it cannot run with --model-impl transformers"
            )

    def try_on(self, body: torch.nn.Module, ids: Tensor, start: int) -> Tensor:
        """[n, H] of tokens from position `start` on, over a cache of its own."""
        from galley.kernels.reference import KVCache, ReferenceContext, ReferenceOps

        if start == 0:
            numbers = KVFormat("float32")
            layout = kv_layout(self._layers, numbers, TRIAL_BLOCK)
            self._cache = KVCache.zeros(self._layers, 2, layout, torch.float32, numbers)
        n = len(ids)
        positions = torch.arange(start, start + n)[None]
        blocks = torch.ones((len(self._cache.groups), 1, 1), dtype=torch.long)
        index = torch.zeros(0, dtype=torch.long)
        ctx = ReferenceContext(ids, positions, index, [0, n], [start], [0, 0], blocks, self._cache)
        self.begin(Ops(ReferenceOps()), ctx)
        hidden: Tensor = body(input_ids=ids[None], position_ids=positions, use_cache=False)[0][0]
        self.end()
        return hidden

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None,
        soft_cap: float | None,
        sinks: Tensor | None,
    ) -> Tensor:
        assert self._ops is not None
        assert self._ctx is not None
        layer = self._layer_of(module, key, window)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        width = value.shape[-1]
        if width < layer.head_dim:  # heads of V may be smaller
            value = torch.nn.functional.pad(value, (0, layer.head_dim - width))
        # The cache and the ops are float32, whatever the model computes in.
        q, k, v = (x[0].transpose(0, 1).flatten(1).float() for x in (query, key, value))
        self._ops.write_kv(k, v, layer, self._ctx)
        out = self._ops.attention(q, layer, scale, self._ctx, None, soft_cap or 0.0, sinks)
        heads = cast(Tensor, out).unflatten(-1, (-1, layer.head_dim))
        return heads[None, ..., :width].to(query.dtype)

    def _layer_of(self, module: torch.nn.Module, key: Tensor, window: int | None) -> KVLayer:
        """The cache of the layer that calls. ModelError if it is not what the config says."""
        index = getattr(module, "layer_idx", None)
        name = type(module).__name__
        if not isinstance(index, int) or not 0 <= index < len(self._layers):
            raise ModelError(f"{name}: layer_idx is {index}, of {len(self._layers)} layers")
        if index in self._seen:
            raise ModelError(f"{name}: layer {index} attends more than once")
        layer = self._layers[index]
        if window and not layer.window:
            layer = replace(layer, window=window)
        self.has_windows |= bool(window)
        _, heads, _, head_dim = key.shape
        found = heads, head_dim, window or 0
        if found != (layer.kv_heads, layer.head_dim, layer.window):
            raise ModelError(
                f"{name}: layer {index} has {heads} KV heads of {head_dim} and a "
                f"window of {window or 0}, its config says {layer}"
            )
        self._seen.add(index)
        return layer


def _attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """For transformers' attention interface: query [1, Hq, T, D], key and value [1, Hkv, T, D] →
    [1, T, Hq, D]. Which keys a query sees follows from its position, not from a mask."""
    if not kwargs.get("is_causal", getattr(module, "is_causal", True)):
        raise ModelError(f"{type(module).__name__}: a token looks at those after it")
    attention = cast(_Attention, module.galley_attention)
    out = attention(module, query, key, value, scaling, sliding_window, softcap, s_aux)
    return out, None


def _read_config(model_info: ModelInfo) -> PreTrainedConfig:
    """The config as transformers reads it, --hf-overrides included."""
    # As the library's own reader has it: numbers that JSON lacks are objects.
    values = json.loads(
        json.dumps(model_info.hf_config),
        object_hook=lambda o: float(o["__float__"]) if set(o) == {"__float__"} else o,
    )
    name, kind = model_info.architecture, str(values.get("model_type"))
    if values.get("rope_parameters"):
        values.pop("rope_theta", None)
    if values.get("rope_parameters") or values.get("rope_scaling") is None:
        values.pop("rope_scaling", None)
    if "auto_map" in values and kind not in CONFIG_MAPPING:
        if not model_info.trust_remote_code:
            raise ModelError(
                f"{name}: its code is in the checkpoint and would be run; allow that with "
                "--trust-remote-code if you trust it"
            )
        config = AutoConfig.from_pretrained(model_info.source, trust_remote_code=True)
        config.update(values)
        return config
    if kind not in CONFIG_MAPPING:
        raise ModelError(
            f"{name}: neither Galley has it nor this release of transformers a model_type {kind!r}"
            f"{similar(name)}"
        )
    with _refusals(f"{name}: transformers refuses its config"):
        return CONFIG_MAPPING[kind].from_dict(values)


def _from_config(config: PreTrainedConfig, model_info: ModelInfo) -> PreTrainedModel:
    with _refusals(f"{model_info.architecture}: transformers cannot make the model"):
        return cast(
            PreTrainedModel,
            AutoModelForCausalLM.from_config(
                config,
                trust_remote_code=model_info.trust_remote_code,
                attn_implementation="eager",
            ),
        )


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Raise ModelError for whatever the library raises for a config."""
    try:
        yield
    except Exception as error:
        raise ModelError(f"{what}: {error}") from error


def _check_supported(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if model._is_stateful:
        raise ModelError(
            f"{name}: its layers keep states of their own; it cannot run with --model-impl "
            "transformers"
        )
    if not model._supports_attention_backend:
        raise ModelError(
            f"{name}: does not use transformers' attention interface; it cannot run with "
            "--model-impl transformers"
        )
    if not model.base_model_prefix or getattr(model, model.base_model_prefix, None) in (
        None,
        model,
    ):
        raise ModelError(f"{name}: its head is not apart from its layers")


def _check_rotary(config: PreTrainedConfig, longest: int) -> None:
    """ModelError if angles could depend on the length of other sequences of a step."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    for settings in (rope, *(v for v in rope.values() if isinstance(v, dict))):
        kind = settings.get("rope_type")
        known = settings.get("original_max_position_embeddings") or text.max_position_embeddings
        if kind in ("dynamic", "longrope") and longest > known:
            raise ModelError(
                f"transformers' rotary embedding of type {kind} follows the longest sequence of a "
                f"step beyond {known} tokens; give a --max-model-len of up to {known}"
            )


def _kv_layers(config: PreTrainedConfig) -> list[KVLayer]:
    """The caches that the config's sizes mean; checked when the model is tried."""
    text = config.get_text_config()
    heads = int(text.num_attention_heads)
    if getattr(text, "multi_query", False):
        kv_heads = 1
    else:
        kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
    head_dim = getattr(text, "head_dim", None) or int(text.hidden_size) // heads
    if getattr(text, "qk_nope_head_dim", None):
        head_dim = int(text.qk_nope_head_dim) + int(text.qk_rope_head_dim)
    count = int(text.num_hidden_layers)
    window = int(getattr(text, "sliding_window", None) or 0)
    # A window that is not named by layer is not sure to be used: those caches keep everything.
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * count
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(f"layers of {kind} cannot run with --model-impl transformers")
    windows = [window if kind == "sliding_attention" else 0 for kind in kinds]
    return [KVLayer(i, kv_heads, int(head_dim), w, number=i) for i, w in enumerate(windows)]


def _to_torch(raw: RawTensor) -> Tensor:
    """A copy: some models write to weights that they have loaded (a padding token's row), and a
    write to the mapped file would end the process."""
    data = np.array(raw.data)
    is_bf16 = raw.dtype == "bfloat16"
    tensor = torch.from_numpy(data.view(np.int16) if is_bf16 else data)
    return (tensor.view(torch.bfloat16) if is_bf16 else tensor).view(raw.shape)
