"""Every family of encoders: vectors equal to transformers', with the same bits in any company."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from galley.config import LoadConfig, ModelConfig, registries
from galley.config.architectures import split_architecture
from galley.config.pooling import pooling_settings
from galley.config.resolve import from_kwargs, resolve
from galley.engine.build import build_core
from galley.errors import ModelError, Unsupported
from galley.executor.local import LocalExecutor
from galley.frontend.client import InprocClient
from galley.frontend.input_processor import InputProcessor, limits_of
from galley.frontend.output_processor import OutputProcessor
from galley.loader import open_checkpoint, read_model_info, resolve_source
from galley.models.footprint import kv_layers
from galley.models.registry import model_spec
from galley.request import PoolingParams, SamplingParams
from galley.runner.runner import Runner
from tests.models.checkpoints import make
from tests.models.encoders import ENCODERS
from tests.runner.models import MACHINE

#: Of the largest number of a vector.
TOLERANCE = 1e-4
RNG = np.random.default_rng(3)
PROMPTS = [RNG.integers(4, 131, n).tolist() for n in (1, 2, 15, 16, 17, 40, 75, 120)]
KINDS = [PoolingParams(pooling=kind, use_activation=False) for kind in ("CLS", "LAST", "MEAN")]


@pytest.fixture(scope="module", params=list(ENCODERS))
def model(request, tmp_path_factory):
    model = make(ENCODERS[request.param])
    model.folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(model.folder)
    return model


def open_client(folder, **flags) -> InprocClient:
    """A client of an engine that runs the checkpoint."""
    options = {"dtype": "float32", "num_threads": 1, "kv_cache_memory_bytes": 8 << 20}
    config = from_kwargs({"model": str(folder), **options, **flags}, "offline", {})
    checkpoint = open_checkpoint(resolve_source(config.model, config.load))
    info = checkpoint.model_info
    config = resolve(config, MACHINE, info)
    runner = Runner(config, info, checkpoint, MACHINE.available_memory)
    pooling = pooling_settings(config.model, info)
    inputs = InputProcessor(limits_of(config, info), None, pooling=pooling)
    return InprocClient(build_core(config, LocalExecutor(runner)), inputs, OutputProcessor(None))


def ask(client, prompts, params) -> list[bytes]:
    return [output.outputs.data.tobytes() for output in client.pool(prompts, params)]


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_vectors_equal_transformers(model, backend) -> None:
    client = open_client(model.folder, backend=backend)
    got = [client.pool(PROMPTS, params) for params in KINDS]
    for prompt, *outputs in zip(PROMPTS, *got, strict=True):
        with torch.inference_mode():
            hidden = model.base_model(torch.tensor([prompt])).last_hidden_state[0].numpy()
        for output, want in zip(outputs, (hidden[0], hidden[-1], hidden.mean(0)), strict=True):
            assert np.abs(output.outputs.data - want).max() <= TOLERANCE * np.abs(want).max()


def test_the_same_bits_in_any_company_and_nothing_left_behind(model) -> None:
    client = open_client(model.folder, max_num_batched_tokens=160, max_num_seqs=4)
    alone = [[ask(client, [prompt], params)[0] for prompt in PROMPTS] for params in KINDS]
    for params, want in zip(KINDS, alone, strict=True):
        for _ in range(2):
            assert ask(client, PROMPTS * 2, params) == want * 2
    kv = client.core.scheduler.kv
    assert kv.pool.num_used == 0
    assert kv.counters.prefix_hits == 0


def test_fused_operations_give_the_same_bits(model) -> None:
    fused, apart = (
        ask(open_client(model.folder, dtype="bfloat16", enforce_eager=eager), PROMPTS, KINDS[2])
        for eager in (False, True)
    )
    assert fused == apart


def test_generating_is_refused(model) -> None:
    client = open_client(model.folder)
    with pytest.raises(Unsupported, match="encoder: it gives vectors"):
        client.add([5, 6, 7], SamplingParams(max_tokens=1), "g")
    assert not client.core.has_work


def test_architectures_of_encoders_are_those_whose_rows_see_all(model) -> None:
    info = read_model_info(resolve_source(ModelConfig(model=str(model.folder)), LoadConfig()))
    assert info.is_encoder
    caches = kv_layers(info)
    assert all(not layer.causal for layer in caches)
    # Layers of one shape share one.
    assert len(caches) == len({layer.window for layer in caches})
    known = {split_architecture(case.architecture)[0] for case in ENCODERS.values()}
    assert known == registries.ENCODERS


def test_the_first_deberta_is_refused_by_name(tmp_path) -> None:
    config = {"architectures": ["DebertaModel"], "vocab_size": 100, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "deberta"}))
    info = read_model_info(resolve_source(ModelConfig(model=str(tmp_path)), LoadConfig()))
    with pytest.raises(ModelError, match=r"Deberta.* is not supported: only its later versions"):
        model_spec(info)


def test_norms_of_queries_in_jina_bert_are_refused(tmp_path) -> None:
    make(ENCODERS["jina-bert"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {
        "AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    info = read_model_info(resolve_source(ModelConfig(model=str(tmp_path)), LoadConfig()))
    with pytest.raises(ModelError, match="qk-post-norm"):
        model_spec(info)


def test_published_rotation_of_gte(tmp_path) -> None:
    model = make(ENCODERS["gte"])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    scaling = {"type": "ntk", "factor": 8.0}
    published = {"architectures": ["NewModel"], "rope_theta": 20.0, "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps({**config, **published}))
    base, dim = 20.0 * 8, model.config.hidden_size // model.config.num_attention_heads
    model.rotary_emb.inv_freq = base ** -(torch.arange(0, dim, 2) / dim) / 8 ** (2 / dim)
    (output,) = open_client(tmp_path).pool([PROMPTS[6]], KINDS[2])
    with torch.inference_mode():
        want = model(torch.tensor([PROMPTS[6]])).last_hidden_state[0].mean(0).numpy()
    assert np.abs(output.outputs.data - want).max() <= TOLERANCE * np.abs(want).max()


def test_keys_of_published_nomic_configs(tmp_path) -> None:
    make(ENCODERS["nomic-bert"]).save_pretrained(tmp_path)
    source = resolve_source(ModelConfig(model=str(tmp_path)), LoadConfig())
    spec = model_spec(read_model_info(source))
    config = json.loads((tmp_path / "config.json").read_text())
    published = {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "activation_function": "swiglu",
        "layer_norm_epsilon": config["layer_norm_eps"],
        "max_trained_positions": 100,
        "n_embd": 64,
        "n_head": 4,
        "n_inner": 96,
        "n_layer": 2,
        "n_positions": 256,
        "qkv_proj_bias": False,
        "rotary_emb_base": 700,
        "type_vocab_size": 2,
        "vocab_size": 131,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    info = read_model_info(source)
    assert info.max_position == 100
    assert model_spec(info) == spec
    (tmp_path / "config.json").write_text(json.dumps({**published, "moe_every_n_layers": 2}))
    with pytest.raises(ModelError, match="moe_every_n_layers = 2 is not supported"):
        model_spec(read_model_info(source))
