"""Heads that pool: numbers equal to transformers', with the same bits in any company."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from galley.config.architectures import split_architecture
from galley.errors import InvalidRequest
from galley.request import PoolingParams
from tests.models.checkpoints import SIZES as CHECKPOINT_SIZES
from tests.models.checkpoints import Case, make
from tests.models.encoders import (
    ALBERT,
    DEBERTA,
    DISTILBERT,
    EUROBERT,
    GATED_T5,
    GTE,
    MODERNBERT,
    MPNET,
    NOMIC,
    ROBERTA,
    SIZES,
    T5,
)
from tests.models.remote import JINA_BERT
from tests.models.test_encoders import PROMPTS, TOLERANCE, open_client

LABELS = {"num_labels": 3}
SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
PAD = {"pad_token_id": 0}
JINA_CLASSIFIER = dataclasses.replace(JINA_BERT, architecture="JinaBertForSequenceClassification")
CASES = {
    "albert": Case("Albert", {**ALBERT, **LABELS}, SEQUENCE),
    "bert": Case("Bert", {**SIZES, **LABELS}, SEQUENCE),
    "bert-token": Case("Bert", {**SIZES, **LABELS}, TOKEN),
    "deberta": Case("DebertaV2", {**DEBERTA, **LABELS}, SEQUENCE),
    "deberta-token": Case("DebertaV2", {**DEBERTA, **LABELS}, TOKEN),
    "distilbert": Case("DistilBert", {**DISTILBERT, **LABELS}, SEQUENCE),
    "distilbert-token": Case("DistilBert", {**DISTILBERT, **LABELS}, TOKEN),
    "electra": Case("Electra", {**SIZES, **LABELS, "embedding_size": 24}, SEQUENCE),
    "electra-token": Case("Electra", {**SIZES, **LABELS}, TOKEN),
    "eurobert": Case("EuroBert", {**EUROBERT, **LABELS, "classifier_pooling": "mean"}, SEQUENCE),
    "gte": Case("Gte", {**GTE, **LABELS}, SEQUENCE),
    "gte-token": Case("Gte", {**GTE, **LABELS}, TOKEN),
    "modernbert": Case("ModernBert", {**MODERNBERT, **LABELS}, SEQUENCE),
    "modernbert-mean": Case(
        "ModernBert", {**MODERNBERT, **LABELS, "classifier_pooling": "mean"}, SEQUENCE
    ),
    "modernbert-token": Case("ModernBert", {**MODERNBERT, **LABELS}, TOKEN),
    "mpnet": Case("MPNet", {**MPNET, **LABELS}, SEQUENCE),
    "mpnet-token": Case("MPNet", {**MPNET, **LABELS}, TOKEN),
    "nomic": Case("NomicBert", {**NOMIC, **LABELS}, SEQUENCE),
    "roberta": Case("Roberta", {**ROBERTA, **LABELS}, SEQUENCE),
    "t5-token": Case("T5", {**T5, **LABELS}, TOKEN),
    "umt5-token": Case("UMT5", {**GATED_T5, **LABELS}, TOKEN),
    "xlm-roberta-token": Case("XLMRoberta", {**ROBERTA, **LABELS}, TOKEN),
    "xlm-roberta": Case("XLMRoberta", {**ROBERTA, "num_labels": 1}, SEQUENCE),
    "jina-bert": Case("Bert", {**SIZES, **LABELS}, SEQUENCE, remote=JINA_CLASSIFIER),
    "llama": Case("Llama", {**LABELS, **PAD}, SEQUENCE),
    "llama-token": Case("Llama", {**LABELS, **PAD}, TOKEN),
    "qwen2": Case("Qwen2", {**LABELS, **PAD}, SEQUENCE),
    "gpt2": Case("GPT2", {"n_inner": 96, **LABELS, **PAD}, SEQUENCE),
}
RAW = {"use_activation": False}


@pytest.fixture(scope="module", params=list(CASES))
def model(request, tmp_path_factory):
    model = make(CASES[request.param])
    model.folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(model.folder)
    model.of_tokens = CASES[request.param].head == TOKEN
    return model


def test_labels_equal_transformers_in_any_company(model) -> None:
    task = "token_classify" if model.of_tokens else "classify"
    client = open_client(model.folder, max_num_batched_tokens=160, max_num_seqs=4)
    got = client.pool(PROMPTS, PoolingParams(**RAW))
    for prompt, output in zip(PROMPTS, got, strict=True):
        with torch.inference_mode():
            want = model(torch.tensor([prompt])).logits[0].numpy()
        data = output.outputs.data
        assert data.shape == want.shape
        assert np.abs(data - want).max() <= TOLERANCE * max(np.abs(want).max(), 0.1)
        (alone,) = client.pool([prompt], PoolingParams(task=task, **RAW))
        assert alone.outputs.data.tobytes() == data.tobytes()
    (active,) = client.pool(PROMPTS[:1], PoolingParams())
    raw = torch.tensor(got[0].outputs.data)
    want = raw.sigmoid() if raw.shape[-1] == 1 else raw.softmax(-1)
    np.testing.assert_allclose(active.outputs.data, want, atol=1e-6)
    with pytest.raises(InvalidRequest, match="Unsupported task: 'embed'"):
        client.pool(PROMPTS[:1], PoolingParams(task="embed"))


def test_a_classifier_of_tokens_of_the_head(tmp_path) -> None:
    model = make(Case("Qwen3", {"head_dim": 16}))
    model.save_pretrained(tmp_path)
    vocabulary = {"no": 17, "yes": 29}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    overrides = {"classifier_from_token": ["no", "yes"]}
    client = open_client(tmp_path, convert="classify", hf_overrides=overrides)
    (output,) = client.pool([PROMPTS[5]], PoolingParams())
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPTS[5]])).logits[0, -1]
    want = torch.softmax(logits[[17, 29]], 0)[1]
    np.testing.assert_allclose(output.outputs.data, [want], atol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "DistilBert", "MPNet", "Roberta"])
def test_weights_of_words(tmp_path, family) -> None:
    sizes = {"Bert": SIZES, "DistilBert": DISTILBERT, "MPNet": MPNET, "Roberta": ROBERTA}[family]
    model = make(Case(family, sizes, "ForMaskedLM"))
    model.save_pretrained(tmp_path)
    overrides = {}
    if family == "Bert":
        overrides = {"architectures": ["BertSpladeSparseEmbeddingModel"]}
    else:
        kinds = [("Transformer", ""), ("SpladePooling", "1_SpladePooling")]
        modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "1_SpladePooling").mkdir()
        (tmp_path / "1_SpladePooling" / "config.json").write_text('{"pooling_strategy": "max"}')
    client = open_client(tmp_path, hf_overrides=overrides)
    got = client.pool(PROMPTS, PoolingParams())
    for prompt, output in zip(PROMPTS, got, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt])).logits[0]
        want = logits.relu().log1p().max(0).values
        np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)


def test_vectors_of_tokens(tmp_path) -> None:
    model = make(Case("Bert", SIZES, "Model"))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    linear = torch.randn(24, model.config.hidden_size)
    weights = {f"bert.{k}": v for k, v in weights.items()} | {"linear.weight": linear}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    client = open_client(tmp_path, hf_overrides={"architectures": ["HF_ColBERT"], "dim": 24})
    (output,) = client.pool([PROMPTS[4]], PoolingParams())
    with torch.inference_mode():
        hidden = model(torch.tensor([PROMPTS[4]])).last_hidden_state[0]
    want = torch.nn.functional.normalize(hidden @ linear.T)
    np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)


def test_rewards_of_steps(tmp_path) -> None:
    model = make(Case("Qwen2", {}, "Model"))
    model.save_pretrained(tmp_path)
    size = model.config.hidden_size
    score = torch.nn.Sequential(
        torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 2)
    )
    weights = load_file(tmp_path / "model.safetensors")
    weights = {f"model.{k}": v for k, v in weights.items()}
    weights |= {f"score.{k}": v.detach().clone() for k, v in score.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    prompt = [*PROMPTS[4], 7, *PROMPTS[3], 7]
    client = open_client(
        tmp_path,
        hf_overrides={"architectures": ["Qwen2ForProcessRewardModel"], "num_labels": 2},
        pooler_config={"pooling_type": "STEP", "step_tag_id": 7},
        max_num_batched_tokens=16,
    )
    (output,) = client.pool([prompt], PoolingParams(**RAW))
    with torch.inference_mode():
        hidden = model(torch.tensor([prompt])).last_hidden_state[0]
        want = score(hidden)[torch.tensor(prompt) == 7]
    np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)


CLIP = {"num_hidden_layers": 2, "projection_dim": 24, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("kind", ["model", "projection", "both parts"])
def test_text_of_clip(tmp_path, kind) -> None:
    if kind == "both parts":
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
        text = {**CHECKPOINT_SIZES, **CLIP}
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        torch.manual_seed(0)
        model = transformers.CLIPModel(config).eval()
    else:
        model = make(Case("CLIPText", CLIP, {"model": "Model"}.get(kind, "ModelWithProjection")))
    model.save_pretrained(tmp_path)
    client = open_client(tmp_path, max_num_batched_tokens=160, max_num_seqs=4)
    got = client.pool(PROMPTS, PoolingParams(**RAW))
    for prompt, output in zip(PROMPTS, got, strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            if kind == "model":
                want = model(ids).last_hidden_state[0, -1]
            else:
                hidden = model.text_model(ids).last_hidden_state[0, -1]
                want = model.text_projection(hidden)
        np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)
        (alone,) = client.pool([prompt], PoolingParams(**RAW))
        assert alone.outputs.data.tobytes() == output.outputs.data.tobytes()


def test_text_of_colpali(tmp_path) -> None:
    """Vectors of tokens; the images' part of the checkpoint is left out."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    text = {**CHECKPOINT_SIZES, "model_type": "gemma", "head_dim": 16, "num_hidden_layers": 2}
    vlm = transformers.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=64)
    torch.manual_seed(0)
    config = transformers.ColPaliConfig(vlm_config=vlm, embedding_dim=24)
    model = transformers.ColPaliForRetrieval(config).eval()
    model.save_pretrained(tmp_path)
    client = open_client(tmp_path, max_num_batched_tokens=160, max_num_seqs=4)
    for prompt, output in zip(PROMPTS, client.pool(PROMPTS, PoolingParams()), strict=True):
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            # As its processor makes inputs of texts.
            types, mask = torch.zeros_like(ids), torch.ones_like(ids)
            want = model(ids, attention_mask=mask, token_type_ids=types).embeddings[0]
        np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)


def test_parts_of_names() -> None:
    assert split_architecture("LlamaForCausalLM") == ("LlamaForCausalLM", None)
    assert split_architecture("GPT2LMHeadModel") == ("GPT2LMHeadModel", None)
    assert split_architecture("MistralModel") == ("MistralForCausalLM", "body")
    assert split_architecture("BertForMaskedLM") == ("BertModel", "body")
    assert split_architecture("Qwen2ForRewardModel") == ("Qwen2ForCausalLM", "reward")


@pytest.mark.parametrize("family", ["gemma", "qwen2"])
def test_decoders_whose_tokens_see_all(tmp_path, family) -> None:
    if family == "gemma":
        config = {"sliding_window": 22, "head_dim": 16, "use_bidirectional_attention": True}
        config |= {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}
        model = make(Case("Gemma3Text", config, "Model"))
    else:
        model = make(Case("Qwen2", {"is_causal": False}, "Model"))
    model.save_pretrained(tmp_path)
    model = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager")
    client = open_client(tmp_path, max_num_batched_tokens=160, max_num_seqs=4)
    params = PoolingParams(pooling="MEAN", **RAW)
    for prompt, output in zip(PROMPTS, client.pool(PROMPTS, params), strict=True):
        with torch.inference_mode():
            ids = torch.tensor([prompt])
            hidden = model(ids).last_hidden_state[0] if family == "gemma" else both_ways(model, ids)
        want = hidden.mean(0).numpy()
        assert np.abs(output.outputs.data - want).max() <= TOLERANCE * np.abs(want).max()


def both_ways(model, ids) -> torch.Tensor:
    """Hidden states of a decoder whose mask leaves nothing out."""
    mask = torch.zeros(1, 1, ids.shape[1], ids.shape[1])
    return model(ids, attention_mask={"full_attention": mask}).last_hidden_state[0]


def test_a_dense_module_after_the_pooling(tmp_path) -> None:
    model = make(Case("Bert", SIZES, "Model"))
    model.save_pretrained(tmp_path)
    size = model.config.hidden_size
    kinds = [
        ("Transformer", ""),
        ("Pooling", "1_Pooling"),
        ("Dense", "2_Dense"),
        ("Normalize", "3"),
    ]
    modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    dense = torch.nn.Linear(size, 24)
    for folder, config in (
        ("1_Pooling", {"pooling_mode_mean_tokens": True}),
        ("2_Dense", {"in_features": size, "out_features": 24, "bias": True}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    weights = {f"linear.{k}": v.detach().clone() for k, v in dense.state_dict().items()}
    save_file(weights, tmp_path / "2_Dense" / "model.safetensors", {"format": "pt"})
    (output,) = open_client(tmp_path).pool([PROMPTS[4]], PoolingParams())
    with torch.inference_mode():
        mean = model(torch.tensor([PROMPTS[4]])).last_hidden_state[0].mean(0)
        want = torch.nn.functional.normalize(dense(mean).tanh(), dim=0)
    np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)
