"""`galley inspect` on the built-in model."""

from galley.cli.main import main


def test_facts_and_tensors(capsys):
    assert main(["inspect", "--tensors"]) == 0
    out = capsys.readouterr().out
    assert "LlamaForCausalLM" in out
    assert "model.layers.0.self_attn.q_proj.weight" in out
    assert "Q4_1" in out


def test_program_and_memory(capsys):
    flags = ["--max-model-len", "256", "--kv-cache-memory-bytes", "64M"]
    assert main(["inspect", "--program", "--memory", *flags]) == 0
    out = capsys.readouterr().out
    assert out.count("rope_kv") == out.count("attention ") == 30
    assert "kv_cache" in out


def test_a_missing_file_is_one_line(capsys):
    assert main(["inspect", "/nowhere/model.gguf"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
