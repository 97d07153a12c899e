"""`LLM` as its users write it, on the default model: shapes, order, determinism, errors."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import galley
from galley import LLM, BeamSearchParams, RequestOutput, SamplingParams
from galley.errors import ConfigError, InvalidRequest, ModelError, Unsupported
from galley.frontend.flat_logprobs import FlatLogprobs
from galley.frontend.metric_values import Counter, Histogram

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPTS = ["The sea is", "One, two, three,", "def add(a, b):", "Once upon a time"]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_model_len=512, max_num_seqs=16, kv_cache_memory_bytes="256m") as llm:
        yield llm


def said(outputs: list[RequestOutput]) -> list[tuple[str, list[int]]]:
    return [(o.outputs[0].text, o.outputs[0].token_ids) for o in outputs]


@pytest.mark.parametrize(
    ("prompts", "params", "words"),
    [
        (None, None, "got NoneType"),
        (b"hi", None, "got bytes"),
        (["a", b"hi"], None, "got bytes"),
        ("hi", {"temperature": 0}, "must be SamplingParams, or a list of them; got dict"),
        ("hi", "greedy", "must be SamplingParams, or a list of them; got str"),
    ],
)
def test_slips_are_named(llm, prompts, params, words):
    with pytest.raises(InvalidRequest, match=words):
        llm.generate(prompts, params)
    with pytest.raises(InvalidRequest, match="messages must be a list"):
        llm.chat("hi")


def test_names_are_listed():
    import galley

    assert {"LLM", "SamplingParams"} <= set(dir(galley))
    assert "TYPE_CHECKING" not in dir(galley)


def test_outputs_come_in_the_order_of_the_prompts_and_as_alone(llm: LLM) -> None:
    together = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    alone = [llm.generate(p, GREEDY, use_tqdm=False)[0] for p in PROMPTS]
    assert said(together) == said(alone)
    assert [o.prompt for o in together] == PROMPTS
    assert len({o.request_id for o in together + alone}) == 8
    assert all(o.finished and len(o.outputs[0].token_ids) == 12 for o in together)
    assert {o.outputs[0].finish_reason for o in together} == {"length"}


def test_text_ids_and_dicts_are_the_same_prompt(llm: LLM) -> None:
    text = PROMPTS[0]
    ids = llm.get_tokenizer().encode(text)
    forms: list[Any] = [text, ids, {"prompt": text}, {"prompt_token_ids": ids}]
    assert len(set(map(str, said(llm.generate(forms, GREEDY, use_tqdm=False))))) == 1
    (one,) = llm.generate(ids, GREEDY, use_tqdm=False)
    assert one.prompt_token_ids == ids


def test_each_prompt_may_have_its_own_parameters(llm: LLM) -> None:
    params = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 2, 3, 4)]
    outputs = llm.generate(PROMPTS, params, use_tqdm=False)
    assert [len(o.outputs[0].token_ids) for o in outputs] == [1, 2, 3, 4]


def test_logprobs_of_answer_and_prompt(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, logprobs=3, prompt_logprobs=2)
    (output,) = llm.generate("The sea is", params, use_tqdm=False)
    (answer,) = output.outputs
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 4
    total = 0.0
    for token, entry in zip(answer.token_ids, answer.logprobs, strict=True):
        assert next(iter(entry)) == token
        assert entry[token].rank == 1
        assert entry[token].decoded_token == llm.get_tokenizer().decode(token)
        assert len(entry) == 3
        values = [p.logprob for p in entry.values()]
        assert values == sorted(values, reverse=True)
        total += entry[token].logprob
    assert answer.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    assert output.prompt_logprobs[0] is None
    for token, entry_or_none in zip(
        output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True
    ):
        assert entry_or_none is not None
        assert token in entry_or_none


def test_several_samples_are_those_of_single_calls_with_the_next_seeds(llm: LLM) -> None:
    def sampled(n: int, seed: int) -> list[list[int]]:
        params = SamplingParams(n=n, seed=seed, temperature=1.0, max_tokens=8)
        (output,) = llm.generate(PROMPTS[3], params, use_tqdm=False)
        return [a.token_ids for a in output.outputs]

    four = sampled(4, 100)
    assert four == [sampled(1, 100 + i)[0] for i in range(4)]
    assert len(set(map(tuple, four))) > 1


def test_two_engines_of_one_seed_draw_the_same() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=8)
    draws = []
    for _ in range(2):
        with LLM(seed=5, max_model_len=64, max_num_seqs=4, kv_cache_memory_bytes="64m") as other:
            draws.append(said(other.generate(PROMPTS[:2] * 2, params, use_tqdm=False)))
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[0][2]


def test_a_streamed_answer_is_the_whole_one(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[0], GREEDY, use_tqdm=False)
    parts = list(llm.stream(PROMPTS[0], GREEDY))
    assert "".join(p.outputs[0].text for p in parts) == whole.outputs[0].text
    assert len(parts) > 4
    assert [p.finished for p in parts[-2:]] == [False, True]


def test_leaving_a_stream_ends_its_request(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[0], SamplingParams(max_tokens=400, ignore_eos=True))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    llm.generate(PROMPTS[1], GREEDY, use_tqdm=False)
    assert llm.reset_prefix_cache()


def test_enqueued_prompts_wait_for_their_completion(llm: LLM) -> None:
    expected = said(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    ids = llm.enqueue(PROMPTS[:2], GREEDY)
    ids += llm.enqueue(PROMPTS[2], GREEDY)
    # They are computed beside what is asked meanwhile, and may have ended when they are called for.
    assert said(llm.generate(PROMPTS[3], GREEDY, use_tqdm=False)) == expected[3:]
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [o.request_id for o in outputs] == ids
    assert said(outputs) == expected[:3]
    assert llm.wait_for_completion(use_tqdm=False) == []
    with pytest.raises(InvalidRequest):
        llm.enqueue(["fine", ""], GREEDY)
    assert llm.wait_for_completion(use_tqdm=False) == []
    assert llm.reset_prefix_cache(), "nothing was left running"


def test_stop_strings_and_stop_tokens(llm: LLM) -> None:
    (whole,) = llm.generate(PROMPTS[1], GREEDY, use_tqdm=False)
    text, ids = whole.outputs[0].text, whole.outputs[0].token_ids
    stop = text[6:9]
    (cut,) = llm.generate(
        PROMPTS[1], SamplingParams(temperature=0, max_tokens=12, stop=stop), use_tqdm=False
    )
    assert cut.outputs[0].text == text[: text.index(stop)]
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", stop)
    (cut,) = llm.generate(
        PROMPTS[1],
        SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[ids[3]]),
        use_tqdm=False,
    )
    assert cut.outputs[0].token_ids == ids[: ids.index(ids[3]) + 1]
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", ids[3])


def test_a_repeated_prompt_is_found_in_the_cache(llm: LLM) -> None:
    prompt = "A long prompt that fills several blocks of the cache, " * 8
    first, second = (llm.generate(prompt, GREEDY, use_tqdm=False)[0] for _ in range(2))
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens is not None
    assert second.num_cached_tokens >= 64
    assert said([first]) == said([second])


def test_plans_that_travel_as_bytes_give_the_same(llm: LLM) -> None:
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=12, logprobs=2, n=2)
    expected = llm.generate(PROMPTS, params, use_tqdm=False)
    flags = {"max_model_len": 64, "max_num_seqs": 8, "kv_cache_memory_bytes": "64m"}
    with LLM(distributed_executor_backend="loopback", **flags) as other:
        got = other.generate(PROMPTS, params, use_tqdm=False)
    assert [o.outputs for o in got] == [o.outputs for o in expected]


def test_logits_processors_act_here(llm: LLM) -> None:
    def only_seven(token_ids: list[int], logits: Any) -> Any:
        logits[:] = -np.inf
        logits[7] = 0.0
        return logits

    params = SamplingParams(temperature=0, max_tokens=3, logits_processors=[only_seven])
    (output,) = llm.generate(PROMPTS[0], params, use_tqdm=False)
    assert output.outputs[0].token_ids == [7, 7, 7]


def test_chat_is_the_template_and_generate(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    (chatted,) = llm.chat(messages, GREEDY, use_tqdm=False)
    assert chatted.prompt is not None
    assert chatted.prompt.endswith("<|im_start|>assistant\n")
    ids = llm.get_tokenizer().encode(chatted.prompt, add_special_tokens=False)
    assert said(llm.generate(ids, GREEDY, use_tqdm=False)) == said([chatted])
    two = llm.chat([messages, messages], GREEDY, use_tqdm=False)
    assert said(two) == said([chatted]) * 2
    streamed = "".join(o.outputs[0].text for o in llm.stream_chat(messages, GREEDY))
    assert streamed == chatted.outputs[0].text


def test_conversations_can_be_enqueued(llm: LLM) -> None:
    talks = [[{"role": "user", "content": text}] for text in ("Say hi.", "Count to three.")]
    params = SamplingParams(max_tokens=6, temperature=0)
    whole = llm.chat(talks, params, use_tqdm=False)
    ids = llm.enqueue_chat(talks, params)
    found = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in found] == ids
    assert [o.outputs[0].token_ids for o in found] == [o.outputs[0].token_ids for o in whole]
    assert llm.get_world_size() == 1


def test_flat_logprobs_say_the_same(llm: LLM) -> None:
    def ask(flat: bool) -> RequestOutput:
        params = SamplingParams(
            temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=1, flat_logprobs=flat
        )
        return llm.generate(PROMPTS[0], params, use_tqdm=False)[0]

    lists, flat = ask(False), ask(True)
    answer = flat.outputs[0].logprobs
    assert isinstance(answer, FlatLogprobs)
    assert isinstance(flat.prompt_logprobs, FlatLogprobs)
    assert list(answer) == lists.outputs[0].logprobs
    assert list(flat.prompt_logprobs[1:]) == lists.prompt_logprobs[1:]
    assert flat.prompt_logprobs[0] == {}
    assert answer[-1] == answer[1:][2] == lists.outputs[0].logprobs[3]
    assert answer.start_indices == [0, *answer.end_indices[:-1]]
    assert answer.token_ids == [t for p in lists.outputs[0].logprobs for t in p]
    assert flat.outputs[0].cumulative_logprob == lists.outputs[0].cumulative_logprob


def test_logprobs_of_given_tokens(llm: LLM) -> None:
    given = SamplingParams(max_tokens=3, temperature=0, logprob_token_ids=[5, 9])
    likely = SamplingParams(max_tokens=3, temperature=0, logprobs=1)
    [some] = llm.generate("Once upon a time", given, use_tqdm=False)
    [best] = llm.generate("Once upon a time", likely, use_tqdm=False)
    assert some.outputs[0].token_ids == best.outputs[0].token_ids
    assert some.outputs[0].cumulative_logprob == best.outputs[0].cumulative_logprob
    for token, entry in zip(some.outputs[0].token_ids, some.outputs[0].logprobs, strict=True):
        assert set(entry) == {token, 5, 9}
        assert entry[5].logprob < entry[token].logprob
    with pytest.raises(InvalidRequest, match="logprobs must be left out or 2"):
        SamplingParams(logprob_token_ids=[5, 9], logprobs=3)


def test_chat_takes_templates_and_goes_on_with_a_message(llm: LLM) -> None:
    messages = [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "A colour is"},
    ]
    (output,) = llm.chat(
        messages,
        GREEDY,
        use_tqdm=False,
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert output.prompt is not None
    assert output.prompt.endswith("A colour is")
    (output,) = llm.chat(
        messages,
        GREEDY,
        use_tqdm=False,
        chat_template="{{ messages[0].content }}{{ mood }}",
        chat_template_kwargs={"mood": "!"},
    )
    assert output.prompt == "Name a colour.!"


def test_the_progress_bar_counts_prompts_and_speed(
    llm: LLM, capsys: pytest.CaptureFixture[str]
) -> None:
    llm.generate(PROMPTS, GREEDY)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "tokens/s" in shown
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("prompts", "params", "words"),
    [
        (["a", ""], GREEDY, "empty"),
        ("a", [GREEDY, GREEDY], "1 prompts but 2 sampling_params"),
        ("a" * 5000, GREEDY, "512 tokens"),
        ([[10**6]], GREEDY, "out of vocabulary"),
    ],
)
def test_bad_input_computes_nothing(llm: LLM, prompts: Any, params: Any, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        llm.generate(prompts, params, use_tqdm=False)
    assert llm.reset_prefix_cache(), "nothing was left running"


def test_priorities_are_one_each(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="2 prompts but 1 priorities"):
        llm.generate(PROMPTS[:2], GREEDY, use_tqdm=False, priority=[1])
    # First come, first served heeds none.
    expected = said(llm.generate(PROMPTS[:2], GREEDY, use_tqdm=False))
    for priority in (3, [1, 2]):
        found = llm.generate(PROMPTS[:2], GREEDY, use_tqdm=False, priority=priority)
        assert said(found) == expected


def test_what_is_not_supported_is_refused_by_name(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="lora_request"):
        llm.generate("a", GREEDY, lora_request=object())  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="padding"):
        llm.generate("a", GREEDY, tokenization_kwargs={"padding": True})


def test_tokenization_kwargs(llm: LLM) -> None:
    (output,) = llm.generate(
        "one two three four five six",
        GREEDY,
        use_tqdm=False,
        tokenization_kwargs={"truncate_prompt_tokens": 2},
    )
    assert len(output.prompt_token_ids) == 2


def test_metrics_are_exact(llm: LLM) -> None:
    def counts() -> tuple[int, int, int]:
        found = {m.name: m for m in llm.get_metrics() if m.labels.get("engine") == "0"}
        generated, first = (
            found["vllm:generation_tokens"],
            found["vllm:time_to_first_token_seconds"],
        )
        between = found["vllm:inter_token_latency_seconds"]
        assert isinstance(generated, Counter)
        assert isinstance(first, Histogram)
        assert isinstance(between, Histogram)
        assert between.buckets["+Inf"] == between.count
        return generated.value, first.count, between.count

    before = counts()
    llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert tuple(b - a for a, b in zip(before, counts(), strict=True)) == (48, 4, 44)


def test_default_parameters_are_the_models(llm: LLM) -> None:
    assert isinstance(llm.get_default_sampling_params(), SamplingParams)
    (output,) = llm.generate("a", use_tqdm=False)
    assert output.outputs[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("flags", "error", "words"),
    [
        ({"max_num_seq": 3}, ConfigError, "max_num_seq.*max_num_seqs"),
        ({"max_num_seqs": 0}, ConfigError, "max_num_seqs"),
        ({"model": "/no/such/model"}, ModelError, "/no/such/model"),
        ({"max_model_len": 10**7}, ConfigError, "max_model_len"),
    ],
)
def test_wrong_flags_name_themselves(flags: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        LLM(**flags)


def test_beam_search_finds_what_greedy_search_misses(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=5)
    found = llm.beam_search(PROMPTS[:2], params)
    for prompt, output in zip(PROMPTS, found, strict=False):
        ids = llm.get_tokenizer().encode(prompt)
        (greedy,) = llm.generate(
            ids, SamplingParams(temperature=0, max_tokens=5, logprobs=0), use_tqdm=False
        )
        scores = [s.cum_logprob for s in output.sequences]
        assert len(output.sequences) == 3
        assert scores == sorted(scores, reverse=True)
        assert scores[0] >= greedy.outputs[0].cumulative_logprob - 1e-4
        for sequence in output.sequences:
            assert sequence.tokens[: len(ids)] == ids
            assert sequence.text.startswith(prompt)
            # The score is the sum of what a forward pass over the whole gives.
            scored = SamplingParams(max_tokens=1, prompt_logprobs=0)
            (whole,) = llm.generate(sequence.tokens, scored, use_tqdm=False)
            told = zip(whole.prompt_logprobs[len(ids) :], sequence.tokens[len(ids) :], strict=True)
            assert sum(p[t].logprob for p, t in told) == pytest.approx(sequence.cum_logprob)


def test_a_profile_of_some_steps(llm: LLM, tmp_path: Path) -> None:
    """Checklist 175: what /start_profile and /stop_profile do for a server."""
    with pytest.raises(InvalidRequest, match="profiler_config"):
        llm.start_profile()
    config = {"profiler": "torch", "torch_profiler_dir": str(tmp_path)}
    with LLM(max_model_len=64, kv_cache_memory_bytes=16 << 20, profiler_config=config) as other:
        assert other.stop_profile() is None
        other.start_profile("run-", delay_iterations=1, max_iterations=2)
        other.generate(PROMPTS[:1], SamplingParams(max_tokens=6), use_tqdm=False)
        path = other.stop_profile()
    assert path is not None
    assert Path(path).name.startswith("run-")
    events = json.loads(Path(path).read_text())["traceEvents"]
    assert len([e for e in events if e["name"].startswith("step ")]) == 2


def test_names_that_users_import() -> None:
    for name in galley.__all__:
        assert getattr(galley, name) is not None
    assert ".".join(map(str, galley.__version_tuple__)) == galley.__version__
    with pytest.raises(ImportError, match="Nothing"):
        from galley import Nothing  # type: ignore[attr-defined]  # noqa: F401


def test_an_interrupted_call_leaves_the_engine_usable(llm: LLM) -> None:
    def press(token_ids: list[int], logits: Any) -> Any:
        if len(token_ids) == 5:
            signal.raise_signal(signal.SIGINT)
        return logits

    expected = said(llm.generate(PROMPTS, GREEDY, use_tqdm=False))
    params = [SamplingParams(temperature=0, max_tokens=100) for _ in PROMPTS]
    params[1].logits_processors = [press]
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, params, use_tqdm=False)
    assert said(llm.generate(PROMPTS, GREEDY, use_tqdm=False)) == expected
    assert llm.reset_prefix_cache(), "nothing was left running"
