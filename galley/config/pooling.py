"""How prompts become vectors: what a checkpoint declares, and what --pooler-config changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from galley.errors import ConfigError, InvalidRequest
from galley.request import Pooling, PoolingParams, PoolingTask

if TYPE_CHECKING:
    from galley.config.engine import ModelConfig
    from galley.config.model_info import ModelInfo

#: Key of --pooler-config → field of `PoolingSettings`.
_KEYS = {
    "task": "task",
    "pooling_type": "pooling",
    "seq_pooling_type": "pooling",
    "tok_pooling_type": "token_pooling",
    "use_activation": "activate",
    "normalize": "activate",
    "dimensions": "dimensions",
    "step_tag_id": "step_tag_id",
    "returned_token_ids": "returned_token_ids",
    "enable_chunked_processing": "chunks",
    "max_embed_len": "longest",
}
#: Kind of head → tasks, that which is meant where none is named first.
_TASKS: dict[str | None, tuple[PoolingTask, ...]] = {
    None: ("embed", "token_embed"),
    "body": ("embed", "token_embed"),
    "sequence": ("classify", "token_classify"),
    "token": ("token_classify",),
    "splade": ("embed",),
    "reward": ("token_classify",),
    "colbert": ("token_embed",),
    "projection": ("embed", "token_embed"),
}


@dataclass(frozen=True)
class DenseModule:
    """A module Dense of sentence-transformers.

    Attributes:
        folder: of the checkpoint, with its weights.
        activation: the function on its result, as `layers.elementwise` calls it; None = none.
    """

    folder: str
    inputs: int
    outputs: int
    bias: bool
    activation: str | None


@dataclass(frozen=True)
class PoolingSettings:
    """Defaults of the requests that pool.

    Attributes:
        pooling: of a text: final hidden state of the first token (CLS), of the LAST, or the MEAN
            of all. A checkpoint's own is of its texts' vectors; None: it declares none.
        activate: scale vectors to length 1, or make probabilities; None = what is usual.
        matryoshka: whether the first components of a vector are a vector themselves.
        matryoshka_dimensions: numbers of components that are meant to be used; () = any.
        width: components of a whole vector; None = unknown.
        tasks: that the model is for.
        task: of requests that name none.
        token_pooling: of tasks with a vector of each token: ALL or STEP.
        labels: names of the labels; () = it has none.
        dense: modules of sentence-transformers after the pooling.
        splade: the head of the vocabulary makes the vector, as its modules say.
        prompts: name → text that stands before a text.
        prompt: name of the one that is used where none is asked for; None = none.
        chunks: longer texts are embedded in parts, and the vectors averaged.
        segment: added to the ids of the second text of a pair; 0 = nothing.
        longest: tokens of the longest text with `chunks`; None = no limit.
        sequence_pooling: CLS or MEAN, where the head of sequences has its own.
    """

    pooling: Pooling | None = None
    activate: bool | None = None
    matryoshka: bool = False
    matryoshka_dimensions: tuple[int, ...] = ()
    width: int | None = None
    dimensions: int | None = None
    tasks: tuple[PoolingTask, ...] = ("embed", "token_embed")
    task: PoolingTask | None = None
    token_pooling: Pooling = "ALL"
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None
    labels: tuple[str, ...] = ()
    dense: tuple[DenseModule, ...] = ()
    splade: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    prompt: str | None = None
    chunks: bool = False
    longest: int | None = None
    is_encoder: bool = False
    segment: int = 0

    @property
    def score_kind(self) -> Literal["cross-encoder", "bi-encoder", "late-interaction"] | None:
        """How two texts are compared; None: they cannot be."""
        if "classify" in self.tasks:
            return "cross-encoder" if len(self.labels) == 1 else None
        if "embed" in self.tasks:
            return "bi-encoder"
        return "late-interaction" if "token_embed" in self.tasks else None

    def filled(self, params: PoolingParams) -> PoolingParams:
        """`params` with these settings where they name none. Raises InvalidRequest."""
        task = params.task or self.task or self.tasks[0]
        if task not in self.tasks:
            raise InvalidRequest(
                f"Unsupported task: {task!r}. Supported tasks: {', '.join(self.tasks)}.",
                field="task",
            )
        if params.dimensions is not None:
            if task not in ("embed", "token_embed"):
                raise InvalidRequest(f"{task} has no dimensions.", field="dimensions")
            if fault := self.fault_in(params.dimensions):
                raise InvalidRequest(fault, field="dimensions")
        own = self.token_pooling if task.startswith("token") else self.pooling or "LAST"
        pooling = "ALL" if self.splade else params.pooling or own
        if (pooling in ("ALL", "STEP")) != (task.startswith("token") or self.splade):
            raise InvalidRequest(f"pooling {pooling} does not fit task {task}.", field="pooling")
        step = self.step_tag_id if params.step_tag_id is None else params.step_tag_id
        if pooling == "STEP" and step is None:
            raise InvalidRequest("pooling STEP needs step_tag_id.", field="step_tag_id")
        kept = params.returned_token_ids or self.returned_token_ids
        if kept is not None:
            kept = list(kept)
            if task != "token_classify" or not all(0 <= i < len(self.labels) for i in kept):
                raise InvalidRequest(
                    f"returned_token_ids are numbers of labels, 0 … {len(self.labels) - 1}, with "
                    "the task token_classify.",
                    field="returned_token_ids",
                )
        active = self.activate if params.use_activation is None else params.use_activation
        return msgspec.structs.replace(
            params,
            task=task,
            pooling=pooling,
            use_activation=True if active is None else active,
            dimensions=params.dimensions or (self.dimensions if "embed" in task else None),
            step_tag_id=step,
            returned_token_ids=kept,
        )

    def text_before(self, name: str | None) -> str:
        """The text of the checkpoint that stands before each input: that of `name`, or the default
        one. Raises InvalidRequest for a name that it does not have.
        """
        if name is None:
            return self.prompts.get(self.prompt, "") if self.prompt is not None else ""
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise InvalidRequest(
                f"prompt_name {name!r} is not one of the model's: {known}.", field="prompt_name"
            )
        return self.prompts[name]

    def fault_in(self, dimensions: int) -> str | None:
        """Why vectors cannot have so many components, as a sentence; None: they can."""
        if not self.matryoshka:
            return (
                "this model does not support matryoshka representation: changing the output "
                "dimensions leads to poor results."
            )
        if self.matryoshka_dimensions:
            if dimensions in self.matryoshka_dimensions:
                return None
            listed = ", ".join(map(str, self.matryoshka_dimensions))
            return f"this model's vectors can have {listed} dimensions, got {dimensions}."
        if self.width is None or not 1 <= dimensions <= self.width:
            return f"dimensions must be in 1 … {self.width}, got {dimensions}."
        return None


def runner_of(model: ModelConfig, model_info: ModelInfo) -> Literal["generate", "pooling"]:
    """The engine's task: --runner, or the one that --convert and the checkpoint ask for.

    Raises ConfigError for flags that contradict each other.
    """
    runner = model.runner
    if model_info.is_encoder or model_info.head is not None:
        if runner == "generate":
            kind = "is an encoder" if model_info.is_encoder else "has no head that generates"
            raise ConfigError(
                f"--runner generate: {model_info.architecture} {kind}; it gives vectors.",
                field="runner",
            )
        return "pooling"
    if runner == "auto":
        pools = model.convert == "embed" or model_info.pooling is not None
        runner = "pooling" if pools and model.convert != "none" else "generate"
    if runner == "generate" and model.convert == "embed":
        raise ConfigError(
            "--convert embed needs --runner pooling: a generating model is used as it is.",
            field="convert",
        )
    if runner == "pooling" and model.convert == "none" and model_info.pooling is None:
        raise ConfigError(
            f"--runner pooling needs --convert embed: {model_info.architecture} generates text.",
            field="convert",
        )
    if runner == "generate" and model.pooler_config:
        raise ConfigError("--pooler-config needs --runner pooling.", field="pooler_config")
    return runner


def pooling_settings(model: ModelConfig, model_info: ModelInfo) -> PoolingSettings:
    """The checkpoint's settings, changed by --pooler-config. Raises ConfigError naming the key."""
    config = model_info.hf_config
    own = model_info.pooling or PoolingSettings()
    listed = config.get("matryoshka_dimensions")
    width = own.dense[-1].outputs if own.dense else hidden_size(config)
    if model_info.head == "projection":
        width = config.get("projection_dim", width)
    head = "splade" if own.splade else model_info.head
    pooling = own.pooling
    if head == "sequence" or pooling is None:
        pooling = "CLS" if model_info.is_encoder else "LAST"
    if head == "sequence" and config.get("classifier_pooling") == "mean":
        pooling = "MEAN"
    labels = label_names(config) if _TASKS[head][0] in ("classify", "token_classify") else ()
    settings = dataclasses.replace(
        own,
        pooling=pooling,
        matryoshka=bool(config.get("is_matryoshka") or listed),
        matryoshka_dimensions=tuple(listed) if isinstance(listed, list) else (),
        width=width if isinstance(width, int) else None,
        tasks=_TASKS[head],
        labels=labels,
        splade=head == "splade",
        activate=False if head == "splade" and own.activate is None else own.activate,
        is_encoder=model_info.is_encoder,
        segment=model_info.vocab_size if model_info.has_segments else 0,
    )
    settings = dataclasses.replace(settings, **_changes(model.pooler_config))
    if settings.task is not None and settings.task not in settings.tasks:
        raise ConfigError(
            f"--pooler-config: task {settings.task} is not one of the model's: "
            f"{', '.join(settings.tasks)}.",
            field="pooler_config",
        )
    return settings


def hidden_size(config: Mapping[str, Any]) -> int | None:
    """Components of a hidden state, of config.json; None = it does not say."""
    values = (config.get(key) for key in ("hidden_size", "n_embd", "d_model", "dim"))
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def label_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's labels, of config.json."""
    names = config.get("id2label")
    if isinstance(names, Mapping) and "num_labels" not in config:
        return tuple(str(names.get(str(i), names.get(i, f"LABEL_{i}"))) for i in range(len(names)))
    count = config.get("num_labels", 2)
    count = count if isinstance(count, int) else 2
    known = names if isinstance(names, Mapping) else {}
    return tuple(str(known.get(str(i), f"LABEL_{i}")) for i in range(count))


_TYPES: dict[str, tuple[Any, str]] = {
    "task": (PoolingTask, f"one of {', '.join(get_args(PoolingTask))}"),
    "pooling": (Literal["CLS", "LAST", "MEAN"], "one of CLS, LAST, MEAN"),
    "token_pooling": (Literal["ALL", "STEP"], "one of ALL, STEP"),
    "activate": (bool, "true or false"),
    "chunks": (bool, "true or false"),
    "dimensions": (int, "a whole number"),
    "step_tag_id": (int, "a whole number"),
    "longest": (int, "a whole number"),
    "returned_token_ids": (tuple[int, ...], "a list of whole numbers"),
}


def _changes(given: Mapping[str, object]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:
            continue
        field = _KEYS.get(key)
        if field is None:
            raise ConfigError(
                f"--pooler-config: {key} is not supported (supported: {', '.join(_KEYS)}).",
                field="pooler_config",
            )
        if key == "pooling_type" and value in ("ALL", "STEP"):
            field = "token_pooling"
        type, words = _TYPES[field]
        try:
            changes[field] = msgspec.convert(value, type)
        except msgspec.ValidationError:
            raise ConfigError(
                f"--pooler-config: {key} must be {words}; got {value!r}.", field="pooler_config"
            ) from None
    return changes
