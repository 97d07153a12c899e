"""The command line: vLLM's conventions, help by topic, clear errors."""

import subprocess
import sys

import pytest

from galley.cli.parser import CommandParser
from galley.config.resolve import SECTIONS
from galley.errors import ConfigError


@pytest.fixture
def parser():
    return CommandParser("serve", "Serve.", SECTIONS.values(), (("MODEL", "a model"),))


def test_dashes_underscores_and_equals_are_alike(parser):
    for argv in (["--max-model-len", "4k"], ["--max_model_len", "4000"], ["--max-model-len=4k"]):
        assert parser.parse(argv).values == {"max_model_len": 4000}


def test_booleans_have_no_forms(parser):
    assert parser.parse(["--enable-prefix-caching"]).values == {"enable_prefix_caching": True}
    assert parser.parse(["--no-enable-prefix-caching"]).values == {"enable_prefix_caching": False}


def test_short_aliases(parser):
    assert parser.parse(["-tp", "1"]).values == {"tensor_parallel_size": 1}
    assert parser.parse(["--device-memory-utilization", "0.5"]).values == {
        "gpu_memory_utilization": 0.5
    }


def test_lists_take_several_words(parser):
    parsed = parser.parse(["m", "--served-model-name", "a", "b", "--seed", "3"])
    assert parsed.values == {"served_model_name": ("a", "b"), "seed": 3}
    assert parsed.positionals == ["m"]


def test_json_flags_take_dotted_keys(parser):
    parsed = parser.parse(["--override-generation-config.top_k", "3"])
    assert parsed.values == {"override_generation_config": {"top_k": 3}}
    parsed = parser.parse(["--override-generation-config", '{"top_k": 3}'])
    assert parsed.values == {"override_generation_config": {"top_k": 3}}


def test_config_file_gives_way_to_the_command_line(parser, tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("model: some/model\nmax-num-seqs: 7\nseed: 1\nenable-prefix-caching: false\n")
    parsed = parser.parse(["--config", str(path), "--seed", "2"])
    assert parsed.values == {
        "model": "some/model",
        "max_num_seqs": 7,
        "seed": 2,
        "enable_prefix_caching": False,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- 1", "must hold"), ("max-model-lenn: 3", "Did you mean")],
)
def test_bad_config_files(parser, tmp_path, text, message):
    path = tmp_path / "serve.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parser.parse(["--config", str(path)])


def test_missing_config_file(parser):
    with pytest.raises(ConfigError, match="No such file"):
        parser.parse(["--config", "/nowhere.yaml"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-model-len"], "--max-model-len needs a value"),
        (["--served-model-name", "--seed", "1"], "needs at least one value"),
        (["--sed", "1"], "unknown option --sed. Did you mean --seed"),
        (["a", "b"], "unexpected argument 'b'"),
        (["--dtype", "int2"], "--dtype must be one of"),
        (["--default-mm-loras", "x"], "they choose these themselves"),
        (["--no-enable-prefix-caching=true"], "takes no value"),
        (["--help=nothing-like-this"], "no flag or group matches"),
    ],
)
def test_refusals_name_the_flag(parser, argv, message):
    with pytest.raises(ConfigError, match=message):
        parser.parse(argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--no-enable-tower-connector-lora"],
        ["--enable-tower-connector-lora=false"],
        ["--nnodes", "1", "--cpu-offload-gb", "0"],
        ["--attention-backend", "CPU_ATTN"],
        ["--data-parallel-backend", "mp"],
        ["--mamba-cache-mode", "none"],
        ["--mamba-cache-mode", "align"],
        ["--mamba-cache-dtype", "float32", "--mamba-ssm-cache-dtype", "auto"],
    ],
)
def test_flags_matching_fixed_behaviour_are_accepted(parser, argv):
    parsed = parser.parse([*argv, "--seed", "1"])
    assert parsed.values == {"seed": 1}
    assert all("that is the behaviour already" in n for n in parsed.notices)
    assert len(parsed.notices) == sum(word.startswith("--") for word in argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--runner", "draft"],
        ["--kv-cache-dtype", "nvfp4"],
        ["--nnodes", "2"],
        ["--cpu-offload-gb", "4"],
        ["--mamba-cache-mode", "all"],
        ["--mamba-cache-dtype", "bfloat16"],
        ["--mamba-ssm-cache-dtype", "float16"],
    ],
)
def test_flags_contradicting_fixed_behaviour_are_refused(parser, argv):
    with pytest.raises(ConfigError):
        parser.parse(argv)


def test_config_file_may_disable_missing_features(parser, tmp_path):
    path = tmp_path / "serve.yaml"
    path.write_text("enable-dbo: false\nattention-backend: CPU_ATTN\nseed: 3\n")
    assert parser.parse(["--config", str(path)]).values == {"seed": 3}
    path.write_text("enable-dbo: true\n")
    with pytest.raises(ConfigError, match="enable-dbo"):
        parser.parse(["--config", str(path)])


def test_vllm_hints_print_a_notice(parser):
    parsed = parser.parse(["--async-scheduling", "--optimization-level", "3", "--seed", "1"])
    assert parsed.values == {"seed": 1}
    assert len(parsed.notices) == 2


@pytest.mark.parametrize(
    ("topic", "wanted"),
    [
        ("", "KV cache"),
        ("CacheConfig", "--block-size {16,32,64,128}"),
        ("max-num-seqs", "Maximum sequences per step"),
        ("all", "--prefix-caching-hash-algo"),
        ("preempt", "--num-gpu-blocks-override"),
        ("enable-dbo", "a flag of vLLM's"),
        ("AttentionConfig", "only attention backend"),
        ("VllmConfig", "--speculative-config, -sc JSON"),
        ("listgroup", "--scheduling-policy"),
        ("page", "--prefix-caching-hash-algo"),
    ],
)
def test_help_has_topics(parser, capsys, topic, wanted):
    with pytest.raises(SystemExit) as end:
        parser.parse([f"--help={topic}" if topic else "--help"])
    assert end.value.code == 0
    assert wanted in capsys.readouterr().out


def galley(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "galley", *argv], capture_output=True, text=True, timeout=60
    )


def test_help_describes_the_commands_own_flags_first(capsys):
    from galley.cli import chat, collect_env, run_batch, serve

    shown = chat.parser().help()
    own, _, shared = shown.partition("option groups")
    assert "Send this, print the answer and exit." in own
    assert "--max-model-len" not in own
    assert "--max-model-len" in shared
    shown = run_batch.parser().help()
    assert "File of requests" in shown.partition("option groups")[0]
    shown = serve.parser().help()
    assert "--kv-cache-memory-bytes N" in shown.partition("option groups")[0]
    assert "option groups" not in collect_env.parser().help()


def test_help_finds_groups_before_flags_and_names_before_texts(parser, capsys):
    assert parser.help("KV cache") == parser.help("kv-cache")
    assert parser.help("KV cache").startswith("KV cache:")
    names = [line for line in parser.help("kv").splitlines() if line.startswith("  --")]
    has = ["kv" in name for name in names]
    assert has == sorted(has, reverse=True)
    with pytest.raises(ConfigError, match=r"Did you mean --help=quantization\?"):
        parser.help("qantization")
    with pytest.raises(SystemExit):
        parser.parse(["--help", "seed"])
    assert capsys.readouterr().out.startswith("  --seed")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["serve", "--ctx-size", "8"], "Did you mean --max-model-len?"),
        (["serve", "-ngl", "99"], "no layers to give"),
        (["serve", "-m", "x.gguf"], "MODEL"),
        (["serve", "--version"], "galley --version"),
        (["run", "llama3"], "galley chat MODEL"),
        (["show"], "galley inspect MODEL"),
        (["xyz"], "One of: serve"),
    ],
)
def test_habits_of_other_programs_lead_on(argv, words, capsys):
    from galley.cli.main import main

    assert main(argv) == 2
    assert words in capsys.readouterr().err


def test_help_of_a_command(capsys):
    from galley.cli.main import main

    with pytest.raises(SystemExit):
        main(["help", "models"])
    assert capsys.readouterr().out.startswith("usage: galley models")


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from galley.cli.main import main; main(['--help']);"
        "heavy = {'numpy', 'starlette', 'tokenizers', 'torch', 'transformers'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout


def test_version_and_unknown_command():
    from galley import __version__

    assert galley("--version").stdout.strip() == __version__
    wrong = galley("sevre")
    assert wrong.returncode == 2
    assert "Did you mean `galley serve`" in wrong.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ("serve", "--gpu-memory-utilization", "1.1"),
        ("serve", "--max-model-len", "0"),
        ("serve", "--port", "http"),
        ("serve", "--no-such-flag"),
        ("chat", "--url", "http://localhost:1/v1", "model.gguf"),
    ],
)
def test_wrong_flags_exit_with_code_2_and_one_line(argv):
    done = galley(*argv)
    assert done.returncode == 2
    assert done.stderr.startswith("galley: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--hf-token", "hf_x"], "hf_x"),
        (["--hf-token"], True),
        (["--hf-token", "--seed", "1"], True),
        (["--hf-token=false"], False),
    ],
)
def test_api_token_value_is_optional(parser, argv, value):
    assert parser.parse(argv).values["hf_token"] == value


def test_overrides_of_the_config_by_dots(parser):
    parsed = parser.parse(["--hf-overrides.rope_scaling.factor", "4", "--hf-overrides.x", "y"])
    assert parsed.values == {"hf_overrides": {"rope_scaling": {"factor": 4}, "x": "y"}}


def test_repeated_list_flags_add_up(parser):
    parsed = parser.parse(["--served-model-name", "a", "--served-model-name", "b", "c"])
    assert parsed.values == {"served_model_name": ("a", "b", "c")}
