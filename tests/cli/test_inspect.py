"""`galley inspect` on the built-in model."""

import json
import re

from galley.cli.inspect import folded
from galley.cli.main import main


def test_model_info_and_tensors(capsys):
    assert main(["inspect", "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "LlamaForCausalLM" in out
    assert "model.layers.0.self_attn.q_proj.weight" in out
    assert "Q4_1" in out


def test_program_and_memory(capsys):
    flags = ["--max-model-len", "256", "--kv-cache-memory-bytes", "64M"]
    assert main(["inspect", "--program", "--unfolded", "--memory", *flags]) == 0
    out = capsys.readouterr().out
    assert out.count("rope_kv") == out.count("attention ") == 30
    assert "kv_cache" in out
    whole = out.splitlines()
    assert main(["inspect", "--program", "--memory", "--json", *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["memory"]["kv_cache"] > 0
    assert [line.split()[1] for line in facts["program"][:-1]] == [
        line.split()[1] for line in whole[: len(facts["program"]) - 1]
    ]
    # Equal layers are shown once: what is shown and what is counted are all lines.
    short = folded(facts["program"])
    (counted,) = [line for line in short if line.startswith("     … these")]
    size, times = (int(n) for n in re.findall(r"\d+", counted))
    assert times == 29
    assert len(short) - 1 + size * times == len(facts["program"])


def test_what_is_no_layer_is_not_folded():
    assert folded(["a", "b", "c"]) == ["a", "b", "c"]
    assert folded([]) == []
    lines = ["0 x %0", "1 y %1", "2 x %2", "3 y %3", "4 z"]
    assert folded(lines)[2:] == [
        "     … these 2 lines 1 more times, for the layers after it",
        "4 z",
    ]


def test_json_holds_what_the_text_shows(capsys):
    assert main(["inspect", "--json", "--tensors"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["parameters"] == 134_515_008
    assert facts["sampling"] == {"temperature": 0.2, "top_p": 0.5}
    assert set(facts["weight_formats"]) == {"Q4_1", "Q8_0", "float32"}
    assert facts["kv_groups"][0]["layers"] == 30
    assert facts["layers"] == {"Attention + MLP": 30}
    names = [tensor["name"] for tensor in facts["tensors"]]
    layers = [int(name.split(".")[2]) for name in names if ".layers." in name]
    assert layers == sorted(layers)
    assert len(names) == len(set(names)) == 272


def test_a_missing_file_is_one_line(capsys):
    assert main(["inspect", "/nowhere/model.gguf"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_sizes_of_a_large_model_are_known_from_its_config(capsys, tmp_path):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path), "--load-format", "dummy"]) == 0
    out = capsys.readouterr().out
    assert "70,553,706,496" in out
    assert "141,104,775,168 bytes in memory" in out
    assert "327,680 bytes per token" in out
    assert "139,003,428,864 per token + 2,621,440 per token of context" in out


def test_kv_groups_are_listed(capsys, tmp_path):
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "use_sliding_window": True,
        "sliding_window": 256,
        "max_window_layers": 1,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path), "--load-format", "dummy"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # A block of a layer: K and V, 4 heads of 16, 16 tokens, bfloat16. The full layer needs 64
    # blocks for 1,024 tokens, each of the two others 17, as 256 tokens begin anywhere in a block.
    block = 2 * 4 * 16 * 16 * 2
    assert ["sequence", "of", "1,024", "tokens", f"{(64 + 2 * 17) * block:,}", "bytes"] in lines
    assert [" ".join(words[2:]) for words in lines if words[0] == "group"] == [
        f"full 1 layer, {block:,} bytes per block of 16 tokens",
        f"window of 256 tokens 1 layer, {block:,} bytes per block of 16 tokens",
        f"window of 256 tokens 1 layer, {block:,} bytes per block of 16 tokens",
    ]


def test_states_are_listed_beside_the_cache_of_tokens(capsys, tmp_path):
    config = {
        "architectures": ["BambaForCausalLM"],
        "model_type": "bamba",
        "vocab_size": 128,
        "hidden_size": 256,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_state": 32,
        "max_position_embeddings": 1024,
        "torch_dtype": "bfloat16",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path), "--load-format", "dummy"]) == 0
    out = capsys.readouterr().out
    # Two layers: 8 heads of 64 x 32 numbers and 16 of scale, and 3 inputs of 9 runs of 64 channels.
    assert (
        f"{2 * 4 * (8 * (64 * 32 + 16) + 3 * 9 * 64):,} bytes per sequence, kept every 512" in out
    )
    # K and V of one layer, 16 tokens of 8 heads of 32, are 16,384 bytes: two heads and scales fit
    # into a little more.
    assert "4 caches, 9 blocks of 16,512 bytes per state" in out
