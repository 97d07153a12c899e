"""Pooling tasks that need their own kind of checkpoint: prompts, long texts, late interaction,
templates of pairs, rewards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from galley import PoolingParams
from tests.models.checkpoints import Case, make
from tests.models.encoders import SIZES
from tests.server.test_cross_encoder import WORDS, write_tokenizer
from tests.server.test_embeddings import Embedder, open_llm

FLAGS = "--dtype float32 --kv-cache-memory-bytes 16m"
QUERY = "what does the fox do"
DOCUMENTS = ["the quick fox runs", "the lazy dog sleeps far under a fox", "who is"]


@contextmanager
def serve(folder: Path, *flags: str) -> Iterator[Embedder]:
    server = Embedder(folder, FLAGS, *flags)
    try:
        yield server
    finally:
        server.stop()


def post(server: Embedder, path: str, **body: Any) -> dict[str, Any]:
    reply = httpx.post(server.url + path, json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def token_ids(folder: Path, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    return ids


def states(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """[tokens, hidden]: final hidden states."""
    with torch.inference_mode():
        hidden: torch.Tensor = model.base_model(torch.tensor([ids])).last_hidden_state[0]
    return hidden


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x, dim=-1).numpy()


# ------------------------------------------------- sentence-transformers' prompts, and long texts

LENGTH = 24


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """A BERT with the files of sentence-transformers: MEAN, and two prompts."""
    folder = tmp_path_factory.mktemp("sentences")
    model = make(Case("Bert", {**SIZES, "max_position_embeddings": LENGTH}, "Model"))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds]
    prompts = {"prompts": {"query": "what is ", "document": "the "}, "default_prompt_name": None}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder, model


@pytest.fixture(scope="module")
def sentences(sentence_model: tuple[Path, torch.nn.Module]) -> Iterator[Embedder]:
    config = json.dumps({"enable_chunked_processing": True, "max_embed_len": 60})
    with serve(sentence_model[0], "--pooler-config", config) as server:
        yield server


def test_prompts_stand_before_texts(
    sentences: Embedder, sentence_model: tuple[Path, torch.nn.Module]
) -> None:
    folder, model = sentence_model
    for name, before in (("query", "what is "), ("document", "the "), (None, "")):
        want = unit(states(model, token_ids(folder, before + DOCUMENTS[0])).mean(0))
        (got,) = sentences.vectors(DOCUMENTS[0], **({"prompt_name": name} if name else {}))
        np.testing.assert_allclose(got, want, atol=1e-4)
        if name is None:
            continue
        body = {"texts": DOCUMENTS[:1], "input_type": f"search_{name}"}
        answer = post(sentences, "/v2/embed", **body)
        assert answer["embeddings"]["float"] == [got]
    reply = sentences.ask(input="a", prompt_name="passage")
    assert reply.status_code == 400
    assert "query, document" in reply.json()["error"]["message"]


def test_the_default_prompt(sentence_model: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder, model = sentence_model
    for file in folder.rglob("*"):
        if file.is_file():
            copy = tmp_path / file.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(file.read_bytes())
    settings = {"prompts": {"query": "what is "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    want = unit(states(model, token_ids(folder, "what is " + DOCUMENTS[0])).mean(0))
    with open_llm(tmp_path) as llm:
        (output,) = llm.embed(DOCUMENTS[0], use_tqdm=False)
    np.testing.assert_allclose(output.outputs.embedding, want, atol=1e-4)


def test_long_texts_are_averaged_over_http(
    sentences: Embedder, sentence_model: tuple[Path, torch.nn.Module]
) -> None:
    folder, model = sentence_model
    long = " ".join(WORDS[i % len(WORDS)] for i in range(50))
    ids = token_ids(folder, long)
    parts = [ids[at : at + LENGTH] for at in range(0, len(ids), LENGTH)]
    assert len(parts) == 3
    means = torch.stack([states(model, part).mean(0) * len(part) for part in parts])
    got = sentences.vectors([DOCUMENTS[0], long, DOCUMENTS[1]])
    np.testing.assert_allclose(got[1], unit(means.sum(0)), atol=1e-4)
    assert [got[0], got[2]] == sentences.vectors([DOCUMENTS[0], DOCUMENTS[1]])
    (cut,) = sentences.vectors(long, truncate_prompt_tokens=LENGTH)
    (begin,) = sentences.vectors([[*ids[: LENGTH - 1], ids[-1]]])
    assert cut == begin
    reply = sentences.ask(input=long + long)
    assert reply.status_code == 400
    assert "60 tokens (max_embed_len)" in reply.json()["error"]["message"]


# ------------------------------------------------------------------------------- late interaction


def test_late_interaction(tmp_path: Path) -> None:
    """Scores are sums, over the query's tokens, of the largest products with the document's."""
    model = make(Case("Bert", SIZES, "Model"))
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    linear = torch.randn(24, model.config.hidden_size)
    weights = {f"bert.{k}": v for k, v in load_file(tmp_path / "model.safetensors").items()}
    weights["linear.weight"] = linear
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "architectures": ["HF_ColBERT"], "dim": 24})
    )

    def vectors(text: str) -> np.ndarray:
        return unit(states(model, token_ids(tmp_path, text)) @ linear.T)

    want = [(vectors(QUERY) @ vectors(text).T).max(1).sum() for text in DOCUMENTS]
    with serve(tmp_path) as server:
        data = post(server, "/score", text_1=QUERY, text_2=DOCUMENTS)["data"]
        np.testing.assert_allclose([entry["score"] for entry in data], want, rtol=1e-4)
        ranked = post(server, "/rerank", query=QUERY, documents=DOCUMENTS)["results"]
        assert [entry["index"] for entry in ranked] == np.argsort(want)[::-1].tolist()
        alone = post(server, "/score", text_1=QUERY, text_2=DOCUMENTS[1])["data"]
        assert alone[0]["score"] == data[1]["score"]
        (entry,) = post(server, "/pooling", input=DOCUMENTS[0], task="token_embed")["data"]
        np.testing.assert_allclose(entry["data"], vectors(DOCUMENTS[0]), atol=1e-4)
        reply = httpx.post(f"{server.url}/v1/embeddings", json={"input": "a"}, timeout=60)
        assert reply.status_code == 400


# ----------------------------------------------------------------------------- templates of pairs

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'query' %}{{ instruction | default('what is') }} "
    "{{ m.content }} {% else %}over {{ m.content }}{% endif %}{% endfor %} do"
)


def test_pairs_by_a_template(tmp_path: Path) -> None:
    """A decoder that classifies is given what the template makes of query and document."""
    model = make(Case("Qwen2", {"num_labels": 1, "pad_token_id": 0}, "ForSequenceClassification"))
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    template = tmp_path / "pairs.jinja"
    template.write_text(TEMPLATE)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

    def score(document: str, instruction: str = "what is") -> float:
        text = f"{instruction} {QUERY} over {document} do"
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        with torch.inference_mode():
            return float(model(torch.tensor([ids])).logits[0, 0].sigmoid())

    with serve(tmp_path, "--chat-template", str(template)) as server:
        data = post(server, "/score", text_1=QUERY, text_2=DOCUMENTS)["data"]
        got = [entry["score"] for entry in data]
        np.testing.assert_allclose(got, [score(text) for text in DOCUMENTS], atol=1e-5)
        body = {"query": QUERY, "documents": DOCUMENTS, "instruction": "who"}
        ranked = post(server, "/rerank", **body)["results"]
        want = [score(text, "who") for text in DOCUMENTS]
        got = [entry["relevance_score"] for entry in ranked]
        np.testing.assert_allclose(got, sorted(want, reverse=True), atol=1e-5)
    with open_llm(tmp_path) as llm:
        outputs = llm.score(QUERY, DOCUMENTS, chat_template=TEMPLATE, use_tqdm=False)
        np.testing.assert_allclose(
            [output.outputs.score for output in outputs],
            [score(text) for text in DOCUMENTS],
            atol=1e-5,
        )


# ---------------------------------------------------------------------------------------- rewards


@pytest.fixture(scope="module")
def reward_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, torch.nn.Module, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("rewards")
    model = make(Case("Qwen2", {}, "Model"))
    model.save_pretrained(folder)
    write_tokenizer(folder)
    size = model.config.hidden_size
    torch.manual_seed(2)
    head = torch.nn.Sequential(
        torch.nn.Linear(size, size), torch.nn.ReLU(), torch.nn.Linear(size, 2)
    )
    weights = {f"model.{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    weights |= {f"score.{k}": v.detach().clone() for k, v in head.state_dict().items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    architectures = ["Qwen2ForProcessRewardModel"]
    (folder / "config.json").write_text(
        json.dumps({**config, "architectures": architectures, "num_labels": 2})
    )
    return folder, model, head


def test_rewards_in_python(
    reward_model: tuple[Path, torch.nn.Module, torch.nn.Module],
) -> None:
    folder, model, head = reward_model
    ids = token_ids(folder, DOCUMENTS[1])
    with torch.inference_mode():
        want = head(states(model, ids)).numpy()
    with open_llm(folder) as llm:
        (output,) = llm.reward(DOCUMENTS[1], use_tqdm=False)
        np.testing.assert_allclose(output.outputs.data, want, atol=1e-4)
        one = PoolingParams(returned_token_ids=[1])
        (output,) = llm.reward(DOCUMENTS[1], pooling_params=one, use_tqdm=False)
        np.testing.assert_allclose(output.outputs.data, want[:, 1:], atol=1e-4)
        step = PoolingParams(pooling="STEP", step_tag_id=ids[2])
        (output,) = llm.reward(DOCUMENTS[1], pooling_params=step, use_tqdm=False)
        kept = [i for i, token in enumerate(ids) if token == ids[2]]
        np.testing.assert_allclose(output.outputs.data, want[kept], atol=1e-4)


def test_rewards_of_steps_over_http(
    reward_model: tuple[Path, torch.nn.Module, torch.nn.Module],
) -> None:
    folder, model, head = reward_model
    text = "what does the fox do over the fox runs over who sleeps over"
    ids = token_ids(folder, text)
    over = Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id("over")
    with torch.inference_mode():
        want = head(states(model, ids)).numpy()[[i for i, t in enumerate(ids) if t == over]]
    assert len(want) == 3
    config = {"pooling_type": "STEP", "step_tag_id": over, "returned_token_ids": [0]}
    with serve(folder, "--pooler-config", json.dumps(config)) as server:
        (entry,) = post(server, "/pooling", input=text)["data"]
        np.testing.assert_allclose(entry["data"], want[:, :1], atol=1e-4)
        reply = httpx.post(f"{server.url}/score", json={"text_1": "a", "text_2": "b"}, timeout=60)
        assert reply.status_code == 404
