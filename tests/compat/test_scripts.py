"""Programs written for vLLM, run by compat/: the calls of its offline examples, hub names and all.

The names are folders below the working directory, so that nothing is downloaded.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from galley.config.engine import LoadConfig, ModelConfig
from galley.errors import ConfigError, InvalidRequest, RequestFailed
from galley.loader import resolve_source

ROOT = Path(__file__).parents[2]
NAME = "facebook/opt-125m"
SMALL = {"max_model_len": 512, "kv_cache_memory_bytes": 64 << 20}
PROMPTS = ["Hello, my name is", "The capital of France is"]


@pytest.fixture(autouse=True, scope="module")
def _module_vllm() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "compat"))
    yield
    sys.path.remove(str(ROOT / "compat"))
    for name in [n for n in sys.modules if n.split(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of that name, with the built-in model."""
    (tmp_path / NAME).mkdir(parents=True)
    source = resolve_source(ModelConfig(), LoadConfig())
    (tmp_path / NAME / "model.gguf").symlink_to(source.path)
    monkeypatch.chdir(tmp_path)


def test_basic_chat_and_batch() -> None:
    from vllm import LLM, SamplingParams
    from vllm.outputs import RequestOutput

    llm = LLM(model=NAME, gpu_memory_utilization=0.4, enforce_eager=True, **SMALL)
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.8, top_p=0.95, seed=1))
    assert [output.prompt for output in outputs] == PROMPTS
    assert all(isinstance(o, RequestOutput) and o.outputs[0].text for o in outputs)
    params = llm.get_default_sampling_params()
    params.max_tokens = 8
    talk = [{"role": "user", "content": "What is the capital of France?"}]
    (one,) = llm.chat(talk, params, use_tqdm=False)
    params.temperature = 0
    many = llm.chat([talk] * 3, params, use_tqdm=False)
    assert len({o.outputs[0].text for o in many}) == 1
    assert "Paris" in many[0].outputs[0].text
    assert one.finished


def test_structured_outputs_and_prefix_caching() -> None:
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.sampling_params import StructuredOutputsParams

    llm = LLM(model=NAME, enable_prefix_caching=True, **SMALL)
    for constraint, check in (
        ({"choice": ["Positive", "Negative"]}, lambda t: t in ("Positive", "Negative")),
        ({"regex": r"[a-z]{1,8}@[a-z]{1,8}\.com"}, lambda t: "@" in t and t.endswith(".com")),
        ({"json": {"type": "object", "properties": {"a": {"type": "boolean"}},
                   "required": ["a"], "additionalProperties": False}},
         lambda t: isinstance(json.loads(t)["a"], bool)),
        ({"grammar": 'root ::= "SELECT " ("col_1" | "col_2")'}, lambda t: t.startswith("SELECT")),
    ):  # fmt: skip
        params = SamplingParams(
            structured_outputs=StructuredOutputsParams(**constraint), temperature=0, max_tokens=64
        )
        text = llm.generate("Answer:", params, use_tqdm=False)[0].outputs[0].text
        assert check(text), text
    prefix = "You are an expert school principal, skilled in managing faculty and staff. " * 4
    prompts = [prefix + prompt for prompt in PROMPTS]
    greedy = SamplingParams(temperature=0.0)
    before = [o.outputs[0].text for o in llm.generate(prompts, greedy, use_tqdm=False)]
    again = llm.generate(prompts, greedy, use_tqdm=False)
    assert [o.outputs[0].text for o in again] == before
    assert all((o.num_cached_tokens or 0) >= 32 for o in again)
    del llm
    cleanup_dist_env_and_memory()


def test_vectors_and_scores(capsys: pytest.CaptureFixture[str]) -> None:
    from vllm import LLM, EngineArgs
    from vllm.config import AttentionConfig, PoolerConfig
    from vllm.platforms import current_platform
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.utils.print_utils import print_embeddings
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.set_defaults(
        model=NAME, runner="pooling", enforce_eager=True, pooler_config=PoolerConfig(task="embed")
    )
    args = parser.parse_args([])
    assert not current_platform.is_rocm()
    llm = LLM(**vars(args), **SMALL)
    outputs = llm.embed(PROMPTS)
    assert [len(output.outputs.embedding) for output in outputs] == [576, 576]
    print_embeddings(outputs[0].outputs.embedding)
    assert re.match(r"Embeddings: \[.*, \.\.\.\] \(size=576\)", capsys.readouterr().out)
    with pytest.raises(ConfigError, match="only attention backend"):
        LLM(NAME, attention_config=AttentionConfig(backend=AttentionBackendEnum.FLASH_ATTN))
    (same, other) = llm.score(PROMPTS[1], [PROMPTS[1], PROMPTS[0]])
    assert same.outputs.score > other.outputs.score


def test_drafts_beams_rows_and_metrics() -> None:
    from vllm import LLM, SamplingParams
    from vllm.inputs import EmbedsPrompt, TokensPrompt
    from vllm.renderers.inputs.preprocess import parse_model_prompt
    from vllm.sampling_params import BeamSearchParams
    from vllm.v1.metrics.reader import Counter, Histogram, Vector

    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    llm = LLM(model=NAME, speculative_config=drafts, enable_prompt_embeds=True, **SMALL)
    greedy = SamplingParams(temperature=0, max_tokens=24)
    (plain,) = llm.generate(["one two three one two three one"], greedy, use_tqdm=False)
    values = {m.name: m for m in llm.get_metrics()}
    assert isinstance(values["vllm:spec_decode_num_drafts"], Counter)
    tokens = values["vllm:iteration_tokens_total"]
    assert isinstance(tokens, Histogram)
    assert tokens.sum == len(plain.prompt_token_ids) + len(plain.outputs[0].token_ids)
    accepted = values["vllm:spec_decode_num_accepted_tokens_per_pos"]
    assert isinstance(accepted, Vector)
    assert len(accepted.values) == 3
    parsed = parse_model_prompt(llm.llm_engine.model_config, PROMPTS[1])
    rendered = llm.renderer.render_cmpl(
        [parsed], llm.renderer.default_cmpl_tok_params.with_kwargs()
    )
    ids = llm.get_tokenizer().encode(PROMPTS[1])
    assert rendered == [{"prompt_token_ids": ids, "prompt": PROMPTS[1]}]
    prompts = [TokensPrompt(prompt_token_ids=ids)]
    (beams,) = llm.beam_search(prompts, BeamSearchParams(beam_width=2, max_tokens=4))
    assert len(beams.sequences) == 2
    rows = np.random.default_rng(0).normal(0, 0.1, (4, 576)).astype(np.float32)
    masks = ([False, True, True, False], [False, False, False, False], [True] * 4)
    given = [
        EmbedsPrompt(prompt_embeds=rows[[0, 3]], prompt_token_ids=ids[:4], embeds_at=[0, 3]),
        EmbedsPrompt(prompt_embeds=rows),
        TokensPrompt(prompt_token_ids=ids[:4]),
    ]
    for mask, same in zip(masks, given, strict=True):
        prompt = EmbedsPrompt(
            prompt_embeds=rows, prompt_token_ids=ids[:4], prompt_is_token_ids=mask
        )
        one, two = llm.generate([prompt, same], greedy, use_tqdm=False)
        assert one.outputs[0].token_ids == two.outputs[0].token_ids
    with pytest.raises(InvalidRequest, match="prompt_is_token_ids"):
        llm.generate(EmbedsPrompt(prompt_embeds=rows, prompt_is_token_ids=[True]), greedy)


def test_logits_processors_on_tensors() -> None:
    """The two classes of vLLM's offline examples: of a batch, and of a request's callable."""
    torch = pytest.importorskip("torch")
    from vllm import LLM, SamplingParams
    from vllm.config import VllmConfig
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample.logits_processor import (
        AdapterLogitsProcessor,
        BatchUpdate,
        LogitsProcessor,
        RequestLogitsProcessor,
    )
    from vllm.v1.sample.logits_processor.builtin import process_dict_updates

    class DummyLogitsProcessor(LogitsProcessor):
        @classmethod
        def validate_params(cls, params: SamplingParams) -> None:
            target = params.extra_args and params.extra_args.get("target_token")
            if target is not None and not isinstance(target, int):
                raise VLLMValidationError(f"target_token value {target} is not int")

        def __init__(self, vllm_config: VllmConfig, device: Any, is_pin_memory: bool) -> None:
            assert vllm_config.scheduler_config.max_num_seqs >= 1
            self.req_info: dict[int, int] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: BatchUpdate | None) -> None:
            process_dict_updates(
                self.req_info,
                batch_update,
                lambda params, _, __: params.extra_args and params.extra_args.get("target_token"),
            )

        def apply(self, logits: Any) -> Any:
            if not self.req_info:
                return logits
            cols = torch.tensor(list(self.req_info.values()), dtype=torch.long)
            rows = torch.tensor(list(self.req_info.keys()), dtype=torch.long)
            kept = logits[rows, cols].clone()
            logits[rows] = float("-inf")
            logits[rows, cols] = kept
            return logits

    class WrappedPerReqLogitsProcessor(AdapterLogitsProcessor):
        def is_argmax_invariant(self) -> bool:
            return False

        def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
            word = params.extra_args and params.extra_args.get("then")
            if word is None:
                return None

            def after_the_prompt(prompt: list[int], output: list[int], logits: Any) -> Any:
                bias = torch.zeros_like(logits)
                bias[prompt[-1] if output else word] = 1000.0
                return logits + bias

            return after_the_prompt

    llm = LLM(NAME, logits_processors=[DummyLogitsProcessor, WrappedPerReqLogitsProcessor], **SMALL)
    params = [
        SamplingParams(temperature=0.0, max_tokens=3, extra_args={"target_token": 128}),
        SamplingParams(temperature=0.0, max_tokens=3),
        SamplingParams(temperature=0.0, max_tokens=3, extra_args={"then": 67}),
    ]
    answers = llm.generate([[5, 9]] * 3, params, use_tqdm=False)
    first, plain, third = (answer.outputs[0].token_ids for answer in answers)
    assert (first, third) == ([128] * 3, [67, 9, 9])
    (alone,) = llm.generate([[5, 9]], params[1], use_tqdm=False)
    assert alone.outputs[0].token_ids == plain != first
    with pytest.raises(InvalidRequest, match="target_token value a is not int"):
        llm.generate("a", SamplingParams(extra_args={"target_token": "a"}))


def test_engine_that_its_caller_steps() -> None:
    from vllm import EngineArgs, LLMEngine, RequestOutput, SamplingParams
    from vllm.utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser(description="a script"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.set_defaults(model=NAME)
    args = parser.parse_args(["--max_model_len", "512", "--kv-cache-memory-bytes=64M"])
    assert (args.rounds, args.max_model_len, args.tensor_parallel_size) == (2, 512, 1)
    given = vars(args)
    assert given == {**SMALL, "rounds": 2, "model": NAME}
    engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(args))
    waiting = [
        (PROMPTS[0], SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=1)),
        (PROMPTS[1], SamplingParams(temperature=0.8, top_k=5, presence_penalty=0.2, seed=1)),
        (PROMPTS[1], SamplingParams(n=2, temperature=0.8, top_p=0.95, seed=1)),
    ]
    number, finished = 0, {}
    while waiting or engine.has_unfinished_requests():
        if waiting:
            engine.add_request(str(number), *waiting.pop(0))
            number += 1
        for output in engine.step():
            assert isinstance(output, RequestOutput)
            if output.finished:
                finished[output.request_id] = output
    assert sorted(finished) == ["0", "1", "2"]
    assert len(finished["2"].outputs) == 2
    assert finished["0"].prompt_logprobs is not None
    engine.add_request("a", PROMPTS[0], SamplingParams(max_tokens=100, ignore_eos=True))
    with pytest.raises(InvalidRequest, match="'a' is running"):
        engine.add_request("a", PROMPTS[0], SamplingParams())
    engine.abort_request(["a"])
    assert not engine.has_unfinished_requests()
    engine.shutdown()


def test_asyncio() -> None:
    from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    assert AsyncLLMEngine is AsyncLLM
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=NAME, enforce_eager=True, disable_log_requests=True, **SMALL)
    )
    params = SamplingParams(
        max_tokens=12, temperature=0.8, seed=42, output_kind=RequestOutputKind.DELTA
    )

    async def text(request_id: str, prompt: str) -> str:
        pieces = []
        async for output in engine.generate(
            request_id=request_id, prompt=prompt, sampling_params=params
        ):
            pieces.append(output.outputs[0].text)
        assert output.finished
        return "".join(pieces)

    async def use() -> None:
        alone = [await text(str(i), prompt) for i, prompt in enumerate(PROMPTS)]
        beside = await asyncio.gather(*(text(f"b{i}", p) for i, p in enumerate(PROMPTS)))
        assert beside == alone, "the same beside others"
        asked = asyncio.ensure_future(text("kept", PROMPTS[0]))
        await engine.pause_generation(mode="keep")
        assert await engine.is_paused()
        await asyncio.sleep(0.05)
        assert not asked.done()
        await engine.resume_generation()
        assert await asked == alone[0]
        long = SamplingParams(max_tokens=400, ignore_eos=True)
        # A reader that leaves aborts its request.
        async for _ in engine.generate(PROMPTS[0], long, "left"):
            break
        with pytest.raises(InvalidRequest):
            await text("bad", "word " * 1000)
        ended = asyncio.ensure_future(drain(engine.generate(PROMPTS[0], long, "long")))
        while "long" not in engine._readers:
            await asyncio.sleep(0.01)
        await engine.abort("long")
        with pytest.raises(RequestFailed, match="aborted"):
            await ended
        while await engine.get_num_unfinished_requests():
            await asyncio.sleep(0.01)
        await engine.check_health()
        assert engine.is_running
        waiting = asyncio.ensure_future(drain(engine.generate(PROMPTS[0], long, "last")))
        while "last" not in engine._readers:
            await asyncio.sleep(0.01)
        engine.shutdown()
        with pytest.raises(RequestFailed, match="shut down"):
            await waiting
        with pytest.raises(RequestFailed, match="stopped"):
            await text("late", PROMPTS[0])

    async def drain(outputs: Any) -> None:
        async for _ in outputs:
            pass

    asyncio.run(use())


def test_names_without_counterpart_say_why() -> None:
    import vllm

    assert vllm.__version__.startswith("0.32")
    for name in ("ModelRegistry", "initialize_ray_cluster"):
        with pytest.raises(ImportError, match="no counterpart in Galley: "):
            getattr(vllm, name)
    with pytest.raises(ImportError):
        from vllm.sampling_params import GuidedDecodingParams  # noqa: F401
    with pytest.raises(AttributeError, match="run by Galley"):
        _ = vllm.NoSuchName
    with pytest.raises(ConfigError, match="no-such-flag"):
        vllm.EngineArgs(no_such_flag=1)
    with pytest.raises(ConfigError, match="tensor-parallel-size"):
        vllm.EngineArgs(tensor_parallel_size=4)
    with pytest.raises(ImportError, match="LLM"):
        vllm.EngineArgs().create_engine_config()


def test_every_name_of_every_module_resolves() -> None:
    import vllm

    for info in pkgutil.walk_packages(vllm.__path__, "vllm."):
        if info.name.endswith("main"):
            continue
        module = importlib.import_module(info.name)
        for name in dir(module):
            getattr(module, name)
    names = json.loads((ROOT / "docs" / "generate" / "vllm" / "fields.json").read_text())
    for name in names["python"]["exports"]:
        assert name in vllm._names.MISSING or hasattr(vllm, name), name


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("cli.main", ["serve", "--help=port"]),
        ("openai.api_server", ["--help=served-model-name"]),
        ("openai.run_batch", ["--help=fail-on-error"]),
    ],
)
def test_the_command_is_galleys(module: str, words: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"vllm.entrypoints.{module}", *words],
        cwd=ROOT / "compat",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert words[-1].partition("=")[2] in done.stdout
