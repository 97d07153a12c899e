"""The parts of a checkpoint's architecture: a model, and a head that pools.

`LlamaForSequenceClassification` is the model of `LlamaForCausalLM` with the head "sequence".
"""

from __future__ import annotations

from typing import Literal

from galley.config.registries import ENCODERS

#: body: none; sequence: labels of a text; token: labels of each token; splade: weights of the
#: vocabulary; reward: numbers of each token by a small network; colbert: a vector of each token;
#: projection: a matrix after the pooling.
Head = Literal["body", "sequence", "token", "splade", "reward", "colbert", "projection"]

#: Ends of names.
_ENDS: tuple[tuple[str, Head], ...] = (
    ("ForSequenceClassification", "sequence"),
    ("ForTokenClassification", "token"),
    ("ForProcessRewardModel", "reward"),
    ("ForRewardModel", "reward"),
    ("ForMaskedLM", "body"),
    ("ForPreTraining", "body"),
)
#: Whole names that follow no rule.
_NAMES: dict[str, tuple[str, Head | None]] = {
    "BertSpladeSparseEmbeddingModel": ("BertModel", "splade"),
    "CLIPTextModel": ("CLIPTextModel", "body"),
    "CLIPTextModelWithProjection": ("CLIPTextModel", "projection"),
    "ColBERTModernBertModel": ("ModernBertModel", "colbert"),
    "ColPaliTextModel": ("GemmaForCausalLM", "colbert"),
    "GPT2ForSequenceClassification": ("GPT2LMHeadModel", "sequence"),
    "GPT2Model": ("GPT2LMHeadModel", "body"),
    "Gemma3TextModel": ("Gemma3ForCausalLM", "body"),
    "GteNewModel": ("GteModel", None),
    "HF_ColBERT": ("BertModel", "colbert"),
    "NewForMaskedLM": ("GteModel", "body"),
    "NewForSequenceClassification": ("GteModel", "sequence"),
    "NewForTokenClassification": ("GteModel", "token"),
    "MT5ForTokenClassification": ("MT5EncoderModel", "token"),
    "NewModel": ("GteModel", None),
    "T5ForTokenClassification": ("T5EncoderModel", "token"),
    "UMT5ForTokenClassification": ("UMT5EncoderModel", "token"),
}


def split_architecture(name: str) -> tuple[str, Head | None]:
    """The architecture of the model under a head, and the head; None: it generates text, or is an
    encoder by itself.
    """
    if name in _NAMES:
        return _NAMES[name]
    if name in ENCODERS or name.endswith("LMHeadModel"):
        return name, None
    for end, head in _ENDS:
        family = name.removesuffix(end)
        if family != name:
            encoder = f"{family}Model"
            if encoder in ENCODERS:
                return encoder, head
            return (name, None) if head == "body" else (f"{family}ForCausalLM", head)
    family = name.removesuffix("Model")
    if family and family != name:
        return f"{family}ForCausalLM", "body"
    return name, None
