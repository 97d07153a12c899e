"""`galley quantize --to` a type of GGUF: the file is the model of the checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from galley.cli.main import main
from galley.config.engine import LoadConfig, ModelConfig
from galley.loader import open_checkpoint, resolve_source
from galley.loader.gguf import GGUFFile
from galley.quant import to_float32
from galley.text import load_tokenizer
from tests.models.checkpoints import CASES, Case, make
from tests.models.families import FAMILIES
from tests.models.mixtures import FAMILIES as MIXTURES
from tests.runner.models import open_runner
from tests.runner.test_quality import teacher_forced

VOCAB = 320
TEXT = "It's 2026: naïve 世界  of 12 words.\n"


def checkpoint(path: Path):
    return open_checkpoint(resolve_source(ModelConfig(model=str(path)), LoadConfig()))


def logits(path: Path) -> np.ndarray:
    ids = np.random.default_rng(0).integers(3, 131, (1, 40))
    return teacher_forced(open_runner(checkpoint(path), max_model_len=64, dtype="float32"), ids)


def byte_level() -> tokenizers.Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *letters, "Ġo", "Ġof"]
    merges = [("Ġ", "o"), ("Ġo", "f")]
    made = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return made


def pieces() -> tokenizers.Tokenizer:
    """As Llama 2 has them, without a tokenizer.model."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += ["▁", "o", "f", "w", "r", "d", "s", "▁o", "▁of", "or", "wor", "ds"]
    merges = [("▁", "o"), ("▁o", "f"), ("o", "r"), ("w", "or"), ("d", "s")]
    made = tokenizers.Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(tokens)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.add_special_tokens([AddedToken(t, special=True) for t in tokens[:3]])
    return made


def save(
    case: Case, path: Path, tokenizer: Callable[[], tokenizers.Tokenizer] = byte_level
) -> Path:
    make(replace(case, config={**case.config, "vocab_size": VOCAB})).save_pretrained(path)
    tokenizer().save(str(path / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"}
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    return path


@pytest.mark.parametrize(
    "case",
    [
        CASES["llama-rope-llama3"],
        CASES["qwen3"],
        MIXTURES["qwen3-moe"],
        MIXTURES["mixtral"],
        FAMILIES["gemma"],
    ],
    ids=lambda case: case.family,
)
def test_the_file_is_the_same_model(case: Case, tmp_path: Path) -> None:
    folder, out = save(case, tmp_path / "model"), tmp_path / "out.gguf"
    assert main(["quantize", str(folder), "--to", "F32", str(out)]) == 0
    assert np.array_equal(logits(out), logits(folder))
    assert {p.name for p in tmp_path.iterdir()} == {"model", "out.gguf"}


@pytest.mark.parametrize("tokenizer", [byte_level, pieces])
def test_types_and_tokens(tokenizer: Callable[..., Any], tmp_path: Path) -> None:
    folder = save(CASES["llama-rope-default"], tmp_path / "model", tokenizer)
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(folder), "--to", "Q4_0", str(out)]) == 0
    opened, plain = checkpoint(out), checkpoint(folder)
    for name, kind in (
        ("model.layers.0.mlp.down_proj", "Q4_0"),
        ("model.embed_tokens", "Q8_0"),
        ("lm_head", "Q8_0"),
    ):
        values = to_float32(plain.tensor(f"{name}.weight"))
        blocks = gguf.quantize(values, gguf.GGMLQuantizationType[kind])
        assert np.array_equal(opened.tensor(f"{name}.weight").data, blocks)
    assert opened.header("model.norm.weight").dtype == "float32"
    one, other = load_tokenizer(folder), load_tokenizer(out)
    assert one.encode(TEXT) == other.encode(TEXT)
    assert other.decode(other.encode(TEXT)) == TEXT
    assert GGUFFile(out).get("tokenizer.chat_template") == "{{ messages }}"
    assert opened.model_info.eos_token_ids == plain.model_info.eos_token_ids


def test_k_types_and_rows_that_are_not_whole_blocks(tmp_path: Path) -> None:
    case = CASES["llama-rope-default"]
    wide = replace(case, config={**case.config, "hidden_size": 256})
    folder, out = save(wide, tmp_path / "model"), tmp_path / "out.gguf"
    assert main(["quantize", str(folder), "--to", "Q4_K", str(out)]) == 0
    opened = checkpoint(out)
    for name, kind in (
        ("model.layers.0.mlp.gate_proj", "Q4_K"),
        ("model.layers.0.mlp.down_proj", "Q5_0"),
        ("model.embed_tokens", "Q6_K"),
        ("lm_head", "Q6_K"),
    ):
        assert opened.header(f"{name}.weight").dtype == kind
    assert np.isfinite(logits(out)).all()


def spaced() -> tokenizers.Tokenizer:
    made = byte_level()
    cut = pre_tokenizers.Split(tokenizers.Regex("[a-m]+"), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False)])
    return made


@pytest.mark.parametrize(
    ("case", "tokenizer", "message"),
    [
        (CASES["mistral-window"], byte_level, "no keys for as llama: layers.*window: 7 is"),
        (FAMILIES["gpt-neox"], byte_level, "GPTNeoXForCausalLM cannot be written as GGUF"),
        (CASES["qwen3"], spaced, r"no name for its way to split words: \['\[a-m\]\+'"),
    ],
    ids=["window", "architecture", "tokenizer"],
)
def test_what_gguf_cannot_hold_is_one_line(
    case: Case, tokenizer: Any, message: str, tmp_path: Path, capsys: Any
) -> None:
    folder, out = save(case, tmp_path / "model", tokenizer), tmp_path / "out.gguf"
    capsys.readouterr()
    assert main(["quantize", str(folder), "--to", "Q8_0", str(out)]) != 0
    [line] = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_perplexity_before_and_after(tmp_path: Path, capsys: Any) -> None:
    folder, out = save(CASES["llama-rope-default"], tmp_path / "model"), tmp_path / "out.gguf"
    text = tmp_path / "text"
    text.write_text(TEXT * 100)
    flags = ["--to", "Q8_0", "--perplexity", str(text)]
    assert main(["quantize", str(folder), str(out), *flags]) == 0
    before, after = (
        float(line.split()[-1])
        for line in capsys.readouterr().out.splitlines()
        if ": perplexity " in line
    )
    assert before != after
    assert abs(before - after) < 0.02 * before
    for wrong in (["--perplexity", str(tmp_path)], ["--perplexity", str(text), "--to", "int8"]):
        assert main(["quantize", str(folder), str(tmp_path / "2.gguf"), *flags, *wrong]) == 2
