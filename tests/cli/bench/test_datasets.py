"""Prompts: requested number and length, reproducible by seed, file formats as documented."""

import dataclasses
import gzip
import json

import pytest

from galley.cli.bench.datasets import DataFlags, load_samples, with_clients
from galley.cli.bench.datasets.custom import read_lines
from galley.cli.bench.datasets.random_tokens import range_ratios
from galley.cli.bench.datasets.text import Corpus, read_text
from galley.cli.bench.endpoint import find_tokenizer
from galley.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer():
    return find_tokenizer(None, None)[1]


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return Corpus(read_text(), tokenizer)


def length(tokenizer, text):
    return len(tokenizer.encode(text, add_special_tokens=False))


def load(tokenizer, **flags):
    return load_samples(DataFlags(**flags), tokenizer)


def test_random_prompts_have_the_requested_length(tokenizer):
    samples = load(tokenizer, num_prompts=20, random_input_len=50, random_output_len=9)
    assert len({s.prompt for s in samples}) == 20
    lengths = [length(tokenizer, s.prompt) for s in samples]
    assert sum(n == 50 for n in lengths) >= 18
    assert all(abs(n - 50) <= 2 for n in lengths)
    assert {(s.prompt_len, s.output_len) for s in samples} == {(50, 9)}


def test_random_lengths_vary_within_the_ratio(tokenizer):
    samples = load(
        tokenizer,
        num_prompts=200,
        random_input_len=20,
        random_range_ratio='{"input":0.5,"output":0}',
    )
    lengths = {s.prompt_len for s in samples}
    assert min(lengths) == 10
    assert max(lengths) == 30
    assert {s.output_len for s in samples} == {128}


def test_random_prompts_may_share_a_prefix(tokenizer):
    samples = load(tokenizer, num_prompts=4, random_input_len=8, random_prefix_len=16)
    ids = [tokenizer.encode(s.prompt, add_special_tokens=False) for s in samples]
    assert len({tuple(i[:8]) for i in ids}) == 1
    assert len({tuple(i) for i in ids}) == 4


@pytest.mark.parametrize("ratio", ["1", "-0.1", "x", '{"input": 0.1}', "[1, 2]"])
def test_invalid_range_ratios(ratio):
    with pytest.raises(ConfigError, match="range-ratio"):
        range_ratios(ratio)


def test_prefix_repetition_makes_groups(tokenizer):
    samples = load(
        tokenizer,
        dataset_name="prefix_repetition",
        num_prompts=10,
        prefix_repetition_num_prefixes=3,
        prefix_repetition_prefix_len=12,
        prefix_repetition_suffix_len=8,
    )
    starts = [tuple(tokenizer.encode(s.prompt, add_special_tokens=False)[:8]) for s in samples]
    assert sorted(starts.count(start) for start in set(starts)) == [3, 3, 4]


def test_seeds_repeat_and_differ(tokenizer):
    first, again = (load(tokenizer, num_prompts=3, input_len=10) for _ in range(2))
    assert first == again
    assert first != load(tokenizer, num_prompts=3, input_len=10, seed=1)


def test_text_windows_are_real_and_exact(tokenizer, corpus):
    samples = load(tokenizer, dataset_name="text", num_prompts=12, text_input_len=40, output_len=3)
    assert all(length(tokenizer, s.prompt) == 40 for s in samples)
    assert all(s.prompt in corpus.text for s in samples)
    assert len({s.prompt for s in samples}) == 12
    assert {s.output_len for s in samples} == {3}


def test_text_prompts_may_share_a_prefix(tokenizer, corpus):
    prompts = corpus.prompts(6, 32, 16, seed=5)
    start = corpus.prompts(1, 32, 16, seed=5)[0][:60]
    assert all(p.startswith(start) for p in prompts)
    assert all(length(tokenizer, p) == 48 for p in prompts)


def test_windows_wrap_around_at_the_end(corpus):
    text, after = corpus.window(len(corpus.edge) - 3, 20)
    assert corpus.text.startswith(text)
    assert after < 100


def test_custom_text_file(tokenizer, tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    samples = load(
        tokenizer, dataset_name="text", dataset_path=str(path), num_prompts=2, input_len=10
    )
    assert all("fox" in s.prompt or "dog" in s.prompt for s in samples)
    with pytest.raises(ConfigError, match="too few"):
        load(tokenizer, dataset_name="text", dataset_path=str(path), input_len=100_000)


def test_shipped_book_is_complete():
    text = read_text()
    assert len(text) > 500_000
    assert "Author and Benefactor" in text
    assert gzip.compress(text.encode())


def test_sharegpt_uses_first_question_and_answer_length(tokenizer, tmp_path):
    def talk(*turns):
        return {"conversations": [{"from": "x", "value": turn} for turn in turns]}

    question = "What is the colour of the sky on a clear day?"
    answer = "It is blue, because air scatters short waves more than long ones."
    data = [
        talk(question, answer, "Why?"),
        talk("Only one turn here, so there is nothing to answer."),
        talk("Hi", answer),  # too short
        talk("word " * 1500, answer),  # too long
    ]
    path = tmp_path / "talks.json"
    path.write_text(json.dumps(data))
    flags = {"dataset_name": "sharegpt", "dataset_path": str(path), "num_prompts": 3}
    samples = load(tokenizer, **flags)
    assert [s.prompt for s in samples] == [question] * 3
    assert samples[0].prompt_len == length(tokenizer, question)
    assert samples[0].output_len == length(tokenizer, answer)
    assert len(load(tokenizer, **flags, no_oversample=True)) == 1
    assert load(tokenizer, **flags, sharegpt_output_len=7)[0].output_len == 7
    assert load(None, **flags)[0].prompt_len == len(question.split())


def test_custom_lines(tokenizer, tmp_path):
    path = tmp_path / "own.jsonl"
    turns = [{"role": "user", "content": "Second?"}]
    path.write_text(
        '{"prompt": "First?", "output_tokens": 3}\n\n'
        + json.dumps({"messages": turns, "output_tokens": 4})
        + "\n"
    )
    flags = {
        "dataset_name": "custom",
        "dataset_path": str(path),
        "num_prompts": 2,
        "disable_shuffle": True,
        "custom_output_len": -1,
    }
    plain = load(tokenizer, **flags, skip_chat_template=True)
    assert [(s.prompt, s.output_len) for s in plain] == [("First?", 3), ("Second?", 4)]
    assert plain[1].messages == turns
    rendered = load(tokenizer, **flags)
    assert "<|im_start|>user\nFirst?<|im_end|>" in rendered[0].prompt
    assert rendered[0].prompt_len > plain[0].prompt_len


def test_incomplete_custom_lines(tokenizer, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "ok"}\n{"text": "?"}\n')
    with pytest.raises(ConfigError, match="line 2"):
        read_lines(str(path))
    path.write_text('{"prompt": "ok"}\n')
    flags = {"dataset_name": "custom", "dataset_path": str(path), "custom_output_len": -1}
    with pytest.raises(ConfigError, match="output_tokens"):
        load(tokenizer, **flags)


@pytest.mark.parametrize("name", ["sharegpt", "custom"])
def test_files_must_be_named_and_readable(tokenizer, name, tmp_path):
    with pytest.raises(ConfigError, match="needs --dataset-path"):
        load(tokenizer, dataset_name=name)
    with pytest.raises(ConfigError, match="missing"):
        load(tokenizer, dataset_name=name, dataset_path=str(tmp_path / "missing"))


def test_random_dataset_reads_no_file(tokenizer):
    with pytest.raises(ConfigError, match="reads no file"):
        load(tokenizer, dataset_path="x.json")
    with pytest.raises(ConfigError, match="tokenizer"):
        load(None)
    with pytest.raises(ConfigError, match="num-prompts"):
        load(tokenizer, num_prompts=0)


def test_requests_are_assigned_to_clients_round_robin(tokenizer):
    samples = load(tokenizer, num_prompts=5, input_len=4)
    dealt = with_clients(samples, 2)
    assert [s.client for s in dealt] == [0, 1, 0, 1, 0]
    assert [dataclasses.replace(s, client=0) for s in dealt] == samples
