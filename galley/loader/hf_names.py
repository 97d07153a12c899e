"""Names of tensors that checkpoints of one architecture spell in several ways."""

from __future__ import annotations

#: Architecture → pairs of a prefix that some checkpoints have and the one that models ask for:
#: those saved from the model without its head, and those of older releases of transformers.
PREFIXES: dict[str, tuple[tuple[str, str], ...]] = {
    "AlbertModel": (("albert.", ""),),
    "BertModel": (("bert.", ""),),
    "BloomForCausalLM": (
        ("h.", "transformer.h."),
        ("ln_f.", "transformer.ln_f."),
        ("word_embeddings.", "transformer.word_embeddings."),
        ("word_embeddings_layernorm.", "transformer.word_embeddings_layernorm."),
    ),
    "CLIPTextModel": (("text_model.", ""),),
    "CamembertModel": (("roberta.", ""),),
    "DebertaV2Model": (("deberta.", ""),),
    "DistilBertModel": (("distilbert.", ""),),
    "ElectraModel": (("electra.", ""),),
    "EuroBertModel": (
        ("embed_tokens.", "model.embed_tokens."),
        ("layers.", "model.layers."),
        ("norm.", "model.norm."),
    ),
    "GPT2LMHeadModel": (
        ("h.", "transformer.h."),
        ("ln_f.", "transformer.ln_f."),
        ("wpe.", "transformer.wpe."),
        ("wte.", "transformer.wte."),
    ),
    "GPTNeoXForCausalLM": (("embed_out.", "lm_head."),),
    "GteModel": (("gte.", ""), ("new.", "")),
    "JinaBertModel": (("bert.", ""),),
    "MPNetModel": (("mpnet.", ""),),
    "MT5EncoderModel": (("transformer.", ""),),
    "ModernBertModel": (("model.", ""),),
    "NomicBertModel": (("nomic_bert.", ""),),
    "OPTForCausalLM": (("decoder.", "model.decoder."),),
    "RobertaModel": (("roberta.", ""),),
    "T5EncoderModel": (("transformer.", ""),),
    "UMT5EncoderModel": (("transformer.", ""),),
    "XLMRobertaModel": (("roberta.", ""),),
}

#: Of other decoders: the names of a model that was saved without its head.
_BODY = tuple((stored, f"model.{stored}") for stored in ("embed_tokens.", "layers.", "norm."))


def model_name(architecture: str, name: str) -> str:
    """The name by which a model asks for the tensor that a checkpoint calls `name`."""
    prefixes = PREFIXES.get(architecture, _BODY if architecture.endswith("ForCausalLM") else ())
    for stored, wanted in prefixes:
        if name.startswith(stored):
            return wanted + name.removeprefix(stored)
    return name
