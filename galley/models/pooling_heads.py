"""Heads that turn hidden states into labels and vectors: layers of a few matrices, by family.

They are small, and are computed on the rows that the pooling leaves (`runner.pooling_head`).
"""

from __future__ import annotations

import msgspec

from galley.config import ModelInfo
from galley.config.pooling import PoolingSettings, hidden_size, label_names
from galley.errors import ModelError
from galley.kernels.adapters import AdapterSite
from galley.layers.sites import Sites
from galley.layers.weight_specs import Part
from galley.models.config import model_fields

FUNCTIONS = ("gelu", "gelu_tanh", "relu", "silu", "sigmoid", "tanh")
_SPELLINGS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}


class DenseSpec(msgspec.Struct, frozen=True):
    """x → function(weight x + bias).

    Attributes:
        name: of the tensors, without `.weight` and `.bias`.
        folder: of the checkpoint, where they are in a file of their own; "" = with the others.
        function: None = none.
        weight_name: of the weight, where it is another's; None = `name`.weight.
        token_ids: rows of that weight: one is a label; of two the label is the second less the
            first. () = all.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool = True
    function: str | None = None
    folder: str = ""
    weight_name: str | None = None
    token_ids: tuple[int, ...] = ()
    difference: bool = False


class NormSpec(msgspec.Struct, frozen=True):
    """A layer norm."""

    name: str
    size: int
    eps: float
    bias: bool = True


class HeadSpec(msgspec.Struct, frozen=True):
    """A head.

    Attributes:
        modules: one after the other, on rows of hidden states.
        activation: makes probabilities of labels' numbers; None = the head makes vectors.
        is_vocabulary: the result is the largest of log(1 + max(x, 0)) over all tokens.
    """

    modules: tuple[DenseSpec | NormSpec, ...] = ()
    activation: str | None = None
    is_vocabulary: bool = False


def head_spec(model_info: ModelInfo, settings: PoolingSettings) -> HeadSpec:
    """The head of a checkpoint. Raises ModelError for a config value that is not supported."""
    head, config = model_info.head, model_fields(model_info)
    hidden = hidden_size(model_info.hf_config) or 768
    if settings.splade:
        return HeadSpec(_vocabulary(model_info, hidden), is_vocabulary=True)
    if head in (None, "body"):
        dense = (
            DenseSpec("linear", d.inputs, d.outputs, d.bias, d.activation, d.folder)
            for d in settings.dense
        )
        return HeadSpec(tuple(dense))
    if head == "colbert":
        dimension = config.integer("dim", config.integer("embedding_dim", 128, least=1), least=1)
        bias = config.flag("linear_bias", False)
        return HeadSpec((DenseSpec("linear", hidden, dimension, bias),))
    if head == "projection":
        size = config.integer("projection_dim", 512, least=1)
        return HeadSpec((DenseSpec("text_projection", hidden, size, bias=False),))
    labels, activation = len(settings.labels), label_activation(model_info)
    if head == "reward":
        return HeadSpec(_reward(model_info, hidden), "identity")
    if not model_info.is_encoder:
        return HeadSpec((_score(model_info, hidden, labels),), activation)
    name = "classifier"
    before: tuple[DenseSpec | NormSpec, ...] = ()
    if head == "sequence" or model_info.architecture == "ModernBertModel":
        before = _before_classifier(model_info, hidden)
    if before and before[0].name == "classifier.dense":
        name = "classifier.out_proj"
    return HeadSpec((*before, DenseSpec(name, hidden, labels)), activation)


def add_sites(spec: HeadSpec, sites: Sites) -> dict[str, AdapterSite]:
    """Number the layers of a head that adapters may add to, or have their own of. Returns their
    sites by name."""
    return {
        module.name: sites.add_head(Part(module.name, (module.outputs, module.inputs)), pooled=True)
        for module in spec.modules
        if isinstance(module, DenseSpec) and not (module.folder or module.weight_name)
    }


def label_activation(model_info: ModelInfo) -> str:
    """softmax, sigmoid or identity, as config.json says of its labels. Raises ModelError."""
    config = model_info.hf_config
    problem = config.get("problem_type")
    known = {"regression": "identity", "multi_label_classification": "sigmoid"}
    if problem in known:
        return known[problem]
    own = config.get("sentence_transformers")
    name = own.get("activation_fn") if isinstance(own, dict) else None
    name = name or config.get("sbert_ce_default_activation_function")
    if problem is None and name:
        function = str(name).rpartition(".")[2].lower()
        if function not in ("identity", "sigmoid", "softmax"):
            raise ModelError(f"the activation {name} of scores is not supported")
        return function
    return "softmax" if len(label_names(config)) > 1 else "sigmoid"


def _before_classifier(model_info: ModelInfo, hidden: int) -> tuple[DenseSpec | NormSpec, ...]:
    config = model_fields(model_info)

    def dense(name: str, function: str, bias: bool = True) -> DenseSpec:
        return DenseSpec(name, hidden, hidden, bias, _function(function))

    match model_info.architecture:
        case "BertModel" | "GteModel" | "JinaBertModel" | "NomicBertModel":
            # Files of llama.cpp may have none.
            if not config.flag("classifier_pooler", True):
                return ()
            return (dense("pooler.dense", "tanh"),)
        case "DebertaV2Model":
            return (dense("pooler.dense", config.text("pooler_hidden_act", "gelu")),)
        case "AlbertModel":
            return (dense("pooler", "tanh"),)
        case "ElectraModel":
            return (dense("classifier.dense", "gelu"),)
        case "RobertaModel" | "XLMRobertaModel" | "CamembertModel" | "MPNetModel":
            return (dense("classifier.dense", "tanh"),)
        case "DistilBertModel":
            return (dense("pre_classifier", "relu"),)
        case "EuroBertModel":
            config.require("classifier_pooling", "mean", default="mean")
            return (dense("dense", "gelu"),)
        case "ModernBertModel":
            act = config.text("classifier_activation", "gelu")
            bias = config.flag("classifier_bias", False)
            eps, norm_bias = config.number("norm_eps", 1e-5), config.flag("norm_bias", False)
            return (
                dense("head.dense", act, bias),
                NormSpec("head.norm", hidden, eps, norm_bias),
            )
        case other:
            raise ModelError(f"{other} with a classifier is not supported")


def _score(model_info: ModelInfo, hidden: int, labels: int) -> DenseSpec:
    """The classifier of a decoder: the matrix `score` or some of its rows, or rows of its head."""
    rows = model_info.hf_config.get("classifier_rows")
    if isinstance(rows, list):
        return DenseSpec(
            *("score", hidden, labels, False, None, "", "score.weight", tuple(rows)),
            difference=True,
        )
    ids = model_info.hf_config.get("classifier_token_ids")
    if isinstance(ids, list):
        tied = model_info.hf_config.get("tie_word_embeddings", False)
        weight = "model.embed_tokens.weight" if tied else "lm_head.weight"
        difference = len(ids) == 2 and labels == 1
        return DenseSpec("score", hidden, labels, False, None, "", weight, tuple(ids), difference)
    return DenseSpec("score", hidden, labels, bias=model_info.head == "token")


def _reward(model_info: ModelInfo, hidden: int) -> tuple[DenseSpec, ...]:
    labels = len(label_names(model_info.hf_config))
    if model_info.architecture == "InternLM2ForCausalLM":
        return (DenseSpec("v_head", hidden, 1, bias=False),)
    return (
        DenseSpec("score.0", hidden, hidden, function="relu"),
        DenseSpec("score.2", hidden, labels),
    )


def _vocabulary(model_info: ModelInfo, hidden: int) -> tuple[DenseSpec | NormSpec, ...]:
    """The head of masked words, whose last matrix is the embedding."""
    config, vocab = model_fields(model_info), model_info.vocab_size
    eps = config.number("layer_norm_eps", 1e-12)
    names = {
        "BertModel": (
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions",
            "embeddings.word_embeddings.weight",
            "hidden_act",
        ),
        "DistilBertModel": (
            "vocab_transform",
            "vocab_layer_norm",
            "vocab_projector",
            "embeddings.word_embeddings.weight",
            "activation",
        ),
    }
    for architecture in ("RobertaModel", "XLMRobertaModel", "CamembertModel", "MPNetModel"):
        names[architecture] = (
            "lm_head.dense",
            "lm_head.layer_norm",
            "lm_head",
            "embeddings.word_embeddings.weight",
            "hidden_act",
        )
    if model_info.architecture not in names:
        raise ModelError(f"{model_info.architecture} with a head of masked words is not supported")
    dense, norm, last, weight, key = names[model_info.architecture]
    act = (
        "gelu"
        if model_info.architecture.startswith(("Rob", "XLM", "Cam", "MPNet"))
        else config.text(key, "gelu")
    )
    return (
        DenseSpec(dense, hidden, hidden, function=_function(act)),
        NormSpec(norm, hidden, eps),
        DenseSpec(last, hidden, vocab, weight_name=weight),
    )


def _function(name: str) -> str:
    name = _SPELLINGS.get(name, name)
    if name not in FUNCTIONS:
        raise ModelError(f"the function {name!r} of a head is not supported")
    return name


#: Prefixes of tensors of all heads: the model itself does not use them.
HEAD_TENSORS = (
    "classifier.",
    "cls.",
    "dense.",
    "head.",
    "linear.",
    "lm_head.",
    "pooler.",
    "pre_classifier.",
    "score.",
    "text_projection.",
    "v_head.",
    "vocab_",
)
