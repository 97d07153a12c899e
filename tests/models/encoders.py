"""One tiny checkpoint of every family of encoders."""

from __future__ import annotations

from tests.models.checkpoints import Case
from tests.models.remote import JINA_BERT

SIZES = {"num_hidden_layers": 2, "type_vocab_size": 2}
#: Layers 0 and 1 are of the first group.
ALBERT = {
    **SIZES,
    "embedding_size": 24,
    "num_hidden_layers": 3,
    "num_hidden_groups": 2,
    "inner_group_num": 2,
}
DISTILBERT = {"dim": 64, "n_heads": 4, "n_layers": 2, "hidden_dim": 96}
EUROBERT = {"num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
#: Buckets of several distances, which prompts reach the end of.
DEBERTA = {
    "num_hidden_layers": 2,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_position_embeddings": 128,
}
#: A vector for each distance, projections of their own, and positions besides.
PLAIN_DEBERTA = {
    **DEBERTA,
    "position_buckets": -1,
    "norm_rel_ebd": "none",
    "share_att_key": False,
    "pos_att_type": "c2p",
    "position_biased_input": True,
}
#: A convolution beside the first layer, as in DeBERTa v2 of the sizes xlarge.
CONVOLVED_DEBERTA = {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"}
#: Layers see all, or eight tokens on each side.
MODERNBERT = {**EUROBERT, "num_hidden_layers": 3, "local_attention": 16}
NOMIC = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
GTE = {**SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
#: Its positions begin at row 4.
ROBERTA = {**SIZES, "pad_token_id": 3, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
MPNET = {"num_hidden_layers": 2, "pad_token_id": 1, "relative_attention_num_buckets": 32}
#: Buckets of distances that prompts reach the end of.
T5 = {
    "num_layers": 2,
    "d_ff": 96,
    "d_kv": 24,
    "relative_attention_num_buckets": 12,
    "relative_attention_max_distance": 50,
    "n_positions": 256,
}
GATED_T5 = {**T5, "feed_forward_proj": "gated-gelu"}

ENCODERS: dict[str, Case] = {
    "albert": Case("Albert", ALBERT, "Model"),
    "bert": Case("Bert", SIZES, "Model"),
    "camembert": Case("Camembert", ROBERTA, "Model"),
    "deberta": Case("DebertaV2", DEBERTA, "Model"),
    "deberta-with-convolution": Case("DebertaV2", CONVOLVED_DEBERTA, "Model"),
    "deberta-without-buckets": Case("DebertaV2", PLAIN_DEBERTA, "ForMaskedLM"),
    "distilbert": Case("DistilBert", DISTILBERT, "Model"),
    "electra": Case("Electra", {**SIZES, "embedding_size": 24}, "Model"),
    "electra-of-one-size": Case("Electra", {**SIZES, "embedding_size": 64}, "ForPreTraining"),
    "eurobert": Case("EuroBert", {**EUROBERT, "attention_bias": True}, "Model"),
    "gte": Case("Gte", GTE, "Model"),
    "gte-without-types": Case("Gte", {**GTE, "type_vocab_size": 0}, "Model"),
    "jina-bert": Case("Bert", SIZES, "Model", remote=JINA_BERT),
    "modernbert": Case("ModernBert", MODERNBERT, "Model"),
    "mpnet": Case("MPNet", MPNET, "Model"),
    "mt5": Case("MT5", GATED_T5, "EncoderModel"),
    "nomic-bert": Case("NomicBert", NOMIC, "Model"),
    "roberta": Case("Roberta", ROBERTA, "Model"),
    "roberta-masked": Case("Roberta", ROBERTA, "ForMaskedLM"),
    "t5": Case("T5", T5, "EncoderModel"),
    "umt5": Case("UMT5", GATED_T5, "EncoderModel"),
    "xlm-roberta": Case("XLMRoberta", {**ROBERTA, "layer_norm_eps": 1e-5}, "Model"),
}
