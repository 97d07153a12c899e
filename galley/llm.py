"""`LLM`: offline generation in this process, with vLLM's arguments and results.

The server's path without HTTP and without a second process: input processor, engine core, output
processor. Unlike the server, it does not survive a crash of its engine: that ends this process.
"""

from __future__ import annotations

import dataclasses
import gc
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import msgspec
from prometheus_client import CollectorRegistry

from galley.config import EngineConfig
from galley.config.pooling import PoolingSettings, pooling_settings
from galley.config.resolve import from_kwargs
from galley.engine.assembly import assemble
from galley.engine.pausing import check_level
from galley.errors import ConfigError, InvalidRequest, ModelError, Unsupported
from galley.frontend.arguments import (
    LoRAs,
    Message,
    Prompts,
    as_conversations,
    as_list,
    per_prompt,
    prefixed,
    tokenization,
)
from galley.frontend.beam_search import BeamSearch, BeamSearchOutput, BeamSearchParams
from galley.frontend.chunked_embedding import ChunkedTexts, as_ids
from galley.frontend.client import InprocClient
from galley.frontend.input_processor import InputProcessor, default_sampling_params, limits_of
from galley.frontend.interrupt import uninterrupted
from galley.frontend.output_processor import OutputProcessor, RequestState, figures_of
from galley.frontend.progress import progress_bar
from galley.frontend.prompts import Prompt, parse_prompt
from galley.frontend.scoring import PairEncoder, as_texts, check_pairs, compare, task_of
from galley.frontend.unsupported import UnsupportedMethods
from galley.loader import Source, resolve_source, resolve_tokenizer
from galley.observability.metrics import EngineMetrics
from galley.observability.perfetto import profile_settings
from galley.outputs import (
    ClassificationRequestOutput,
    EmbeddingRequestOutput,
    PoolingRequestOutput,
    RequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from galley.request import (
    Adapter,
    LoRARequest,
    PoolingParams,
    PoolingTask,
    RequestOutputKind,
    SamplingParams,
)
from galley.runner.logits_processor import processor_classes
from galley.text import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from galley.chat.templates import ChatRenderer
    from galley.chat.tokenizer import ChatTokenizer
    from galley.config.engine_flags import EngineFlags
    from galley.frontend.metric_values import Metric

Params = SamplingParams | Sequence[SamplingParams]
Pooling = PoolingParams | Sequence[PoolingParams]
ContentFormat = Literal["auto", "string", "openai"]


class LLM(UnsupportedMethods):
    """A model in this process.

    Args:
        model: directory, .gguf file or hub name; "" is the built-in default model.
        chat_template: replaces the model's own: a file, or the template itself.
        flags: every engine flag by its Python name (`max_model_len=4096`, `seed=1` …).

    Raises:
        ConfigError: an unknown flag, or one out of range; names it.
        ModelError: the model cannot be found or used.
    """

    def __init__(
        self, model: str = "", *, chat_template: str | None = None, **flags: Unpack[EngineFlags]
    ) -> None:
        try:
            config = from_kwargs({"model": model, **flags}, "offline")
            folder = self._adapter_folder(config)
            source = resolve_source(config.model, config.load)
            reading = threading.Event()
            with _uncollected(), ThreadPoolExecutor(1) as beside:
                tokenizer = beside.submit(_tokenizer_of, config, source, reading)
                try:
                    loaded = assemble(config, source=source, adapters=folder, on_read=reading.set)
                finally:
                    reading.set()
                self._tokenizer = tokenizer.result()
        except ConfigError as error:
            raise ConfigError(_python_words(error.message), field=error.field) from error
        self.config = loaded.config
        self._model_info = loaded.model_info
        self._core = loaded.core
        self._chat_template = chat_template
        self._renderers: dict[str, ChatRenderer] = {}
        ends = self._tokenizer.end_ids if self._tokenizer else ()
        limits = dataclasses.replace(
            limits_of(self.config, self._model_info, end_ids=ends),
            max_model_len=self._core.executor.max_model_len,
        )
        self._registry = CollectorRegistry()
        self._metrics = self._observer()
        self._client = InprocClient(
            self._core,
            InputProcessor(
                limits,
                self._tokenizer,
                seed=self.config.model.seed,
                structured=self.config.structured.settings,
                pooling=pooling_settings(self.config.model, self._model_info),
                processors=processor_classes(self.config),
            ),
            OutputProcessor(
                self._tokenizer,
                self._metrics,
                self.config.scheduler.stream_interval,
                figures_of(self.config),
            ),
        )
        self._enqueued: list[RequestState] = []
        self._num_requests = 0
        self._adapters = None
        if folder is not None:
            from galley.frontend.adapters import AdapterLoader, OfflineAdapters

            loader = AdapterLoader(self.config, self._model_info, folder)
            self._adapters = OfflineAdapters(loader)

    def __repr__(self) -> str:
        name = self.config.model.served_model_name[0]
        return f"LLM({name}, {self._model_info.dtype}, {self.max_model_len:,} tokens)"

    @property
    def max_model_len(self) -> int:
        """Tokens of a prompt and its answer together, at most."""
        return self._client.inputs.limits.max_model_len

    def _adapter_folder(self, config: EngineConfig) -> Path | None:
        """A folder for packed adapters that lives as long as this object; None without LoRA."""
        if not config.lora.enable_lora:
            return None
        folder = tempfile.TemporaryDirectory(prefix="galley-adapters-")
        self._folder = folder  # removed with this object
        return Path(folder.name)

    # ------------------------------------------------------------------ generation

    def generate(
        self,
        prompts: Prompts,
        sampling_params: Params | None = None,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        priority: int | Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts; returns one output per prompt, in order.

        Args:
            prompts: one or several: text, token ids, or {"prompt"} / {"prompt_token_ids"} dicts.
            sampling_params: one for all, or one each. Default: `get_default_sampling_params()`.
            use_tqdm: show a progress bar.
            lora_request: adapter of all prompts, or of each (None = the model alone).
            priority: one for all, or one each; smaller runs first (--scheduling-policy priority).
            tokenization_kwargs: `add_special_tokens`, `truncate_prompt_tokens`.

        Raises:
            InvalidRequest, Unsupported: a prompt or parameter; nothing has been computed.
            RequestFailed: a request failed in the engine.
        """
        add_special, truncate = tokenization(tokenization_kwargs)
        items = as_list(prompts)
        params = self._params_of(sampling_params, len(items), truncate)
        states = self._enter(items, params, priority, add_special, lora_request)
        return self._finish(states, use_tqdm)

    def enqueue(
        self,
        prompts: Prompts,
        sampling_params: Params | None = None,
        lora_request: LoRAs = None,
        priority: int | Sequence[int] | None = None,
        use_tqdm: bool = True,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[str]:
        """Enqueue prompts for `wait_for_completion`; returns their ids.

        Arguments and errors as for `generate`. Other calls that run the engine compute them too.
        """
        add_special, truncate = tokenization(tokenization_kwargs)
        items = as_list(prompts)
        params = self._params_of(sampling_params, len(items), truncate)
        states = self._enter(items, params, priority, add_special, lora_request)
        self._enqueued += states
        return [state.submission.request_id for state in states]

    def enqueue_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None = None,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        priority: int | Sequence[int] | None = None,
        **options: Any,
    ) -> list[str]:
        """Enqueue conversations for `wait_for_completion`; returns their ids.

        Arguments and errors as for `chat`.
        """
        states = self._enter_chat(messages, sampling_params, priority, lora_request, **options)
        self._enqueued += states
        return [state.submission.request_id for state in states]

    def wait_for_completion(
        self, output_type: type | None = None, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        """Compute all enqueued prompts; returns their outputs in order.

        Raises:
            RequestFailed: a request failed in the engine; the others are aborted.
        """
        states, self._enqueued = self._enqueued, []
        return self._finish(states, use_tqdm)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None = None,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        priority: int | Sequence[int] | None = None,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormat = "auto",
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one or several conversations; returns one output per conversation, in order.

        Args:
            chat_template: replaces the model's own.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: go on with the last message instead of answering it.
            tools: descriptions that the template shows to the model.
            chat_template_kwargs: further variables of the template.

        Raises: as `generate`.
        """
        states = self._enter_chat(
            messages,
            sampling_params,
            priority,
            lora_request,
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
            chat_template_kwargs=chat_template_kwargs,
            tokenization_kwargs=tokenization_kwargs,
        )
        return self._finish(states, use_tqdm)

    def _enter_chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: Params | None,
        priority: int | Sequence[int] | None,
        lora_request: LoRAs = None,
        *,
        chat_template_content_format: ContentFormat = "auto",
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> list[RequestState]:
        """Submit conversations to the engine: all, or none if one is invalid."""
        _, truncate = tokenization(tokenization_kwargs)
        renderer = self._renderer(chat_template_content_format)
        prompts: list[Prompt] = [
            renderer.render(
                [dict(message) for message in talk],
                tools=None if tools is None else [dict(tool) for tool in tools],
                kwargs=chat_template_kwargs,
                **options,
            )
            for talk in as_conversations(messages)
        ]
        params = self._params_of(sampling_params, len(prompts), truncate)
        return self._enter(prompts, params, priority, False, lora_request)

    def beam_search(
        self,
        prompts: Prompts,
        params: BeamSearchParams,
        lora_request: LoRAs = None,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """Find the most likely continuations of prompts; returns one output per prompt, in order.

        Args:
            use_tqdm: show a progress bar per step.
            concurrency_limit: maximum prompts at a time.

        Raises: as `generate`.
        """
        items = [self._ids_of(prompt) for prompt in as_list(prompts)]
        loras = per_prompt(lora_request, len(items))
        size = concurrency_limit or max(len(items), 1)
        found: list[BeamSearchOutput] = []
        for at in range(0, len(items), size):
            part = slice(at, at + size)
            found += self._search(items[part], params, loras[part], use_tqdm)
        return found

    def _search(
        self,
        prompts: list[list[int]],
        params: BeamSearchParams,
        loras: Sequence[LoRARequest | None],
        shown: bool,
    ) -> list[BeamSearchOutput]:
        eos = self._client.inputs.limits.eos_token_ids
        searches = [BeamSearch(ids, params, eos) for ids in prompts]
        adapters = dict(zip(map(id, searches), loras, strict=True))
        while running := [search for search in searches if not search.done]:
            asked: list[Prompt] = [ids for search in running for ids in search.prompts]
            params_of = [one for search in running for one in search.step_params()]
            given = [adapters[id(search)] for search in running for _ in search.prompts]
            outputs = iter(self.generate(asked, params_of, shown, given))
            for search in running:
                steps = [next(outputs).outputs[0].logprobs for _ in search.prompts]
                search.advance([(step or [{}])[0] for step in steps])
        texts = None if self._tokenizer is None else self._tokenizer.decode
        return [search.output(texts) for search in searches]

    def _ids_of(self, prompt: Prompt) -> list[int]:
        parsed = parse_prompt(prompt)
        if parsed["token_ids"] is not None:
            return list(parsed["token_ids"])
        return self._words().encode(parsed["text"] or "")

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Complete one prompt; yields the new text after each step. Leaving the loop aborts it."""
        return self._stream(prompt, sampling_params, add_special_tokens=True)

    def stream_chat(
        self,
        messages: Sequence[Message],
        sampling_params: SamplingParams | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> Iterator[RequestOutput]:
        """Answer one conversation; yields the new text after each step. Arguments as in `chat`."""
        text = self._renderer().render(
            [dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        return self._stream(text, sampling_params, add_special_tokens=False)

    def _stream(
        self, prompt: Prompt, params: SamplingParams | None, add_special_tokens: bool
    ) -> Iterator[RequestOutput]:
        params = params or self.get_default_sampling_params()
        self._require("generate")
        streamed = msgspec.structs.replace(params, output_kind=RequestOutputKind.DELTA)
        state = self._add(prompt, streamed, 0, add_special_tokens)
        return self._client.stream(state)

    def _enter(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        priority: int | Sequence[int] | None,
        add_special_tokens: bool,
        lora_request: LoRAs = None,
    ) -> list[RequestState]:
        """Submit prompts to the engine: all, or none if one is invalid."""
        self._require("generate")
        adapters = self._adapters_of(lora_request, len(prompts))
        if priority is None or isinstance(priority, int):
            priority = [priority or 0] * len(prompts)
        if len(priority) != len(prompts):
            raise InvalidRequest(
                f"{len(prompts)} prompts but {len(priority)} priorities.", field="priority"
            )
        states: list[RequestState] = []
        try:
            for i, prompt in enumerate(prompts):
                final = msgspec.structs.replace(params[i], output_kind=RequestOutputKind.FINAL_ONLY)
                state = self._add(prompt, final, priority[i], add_special_tokens, adapters[i])
                states.append(state)
        except BaseException:
            self._cancel(states)
            raise
        return states

    def _finish(self, states: Sequence[RequestState], shown: bool) -> list[RequestOutput]:
        """Step until all have finished. On an exception all are aborted."""
        try:
            self._drive(states, shown)
            return [output for state in states if (output := state.take()) is not None]
        finally:
            self._cancel(states)

    def _cancel(self, states: Sequence[RequestState]) -> None:
        for state in states:
            self._client.cancel(state)

    def _drive(self, states: Sequence[RequestState], shown: bool) -> None:
        ended = [state for state in states if state.ended]
        for state in states:
            state.notify = partial(ended.append, state)
        with progress_bar(len(states), "Prompts", shown) as bar:
            while len(ended) < len(states):
                if self._core.pausing.stopped and not self._core.has_work:
                    raise InvalidRequest("The model is asleep: call wake_up() first.")
                self._client.step()
                if bar is not None and bar.is_due(len(ended)):
                    prompt_tokens = sum(len(s.submission.prompt_token_ids) for s in ended)
                    output_tokens = sum(len(a.token_ids) for s in states for a in s.sequences)
                    bar.draw(len(ended), prompt_tokens, output_tokens)

    @property
    def client(self) -> InprocClient:
        """Steps the engine and cancels requests, for callers that drive it themselves."""
        return self._client

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        request_id: str,
        priority: int = 0,
        lora_request: LoRARequest | None = None,
    ) -> RequestState:
        """Pass one request to the engine; `client.step()` computes it, `take()` has its outputs.

        Raises: as `generate`.
        """
        self._require("generate")
        (adapter,) = self._adapters_of(lora_request, 1)
        return self._client.add(prompt, params, request_id, priority=priority, adapter=adapter)

    def _add(
        self,
        prompt: Prompt,
        params: SamplingParams | PoolingParams,
        priority: int,
        add_special_tokens: bool,
        adapter: Adapter | None = None,
    ) -> RequestState:
        request_id = str(self._num_requests)
        self._num_requests += 1
        return self._client.add(
            prompt,
            params,
            request_id,
            priority=priority,
            add_special_tokens=add_special_tokens,
            truncation_side="left" if isinstance(params, SamplingParams) else "right",
            adapter=adapter,
        )

    def _adapters_of(self, given: LoRAs, count: int) -> list[Adapter | None]:
        """The adapter of each prompt. Raises InvalidRequest, Unsupported."""
        requests = per_prompt(given, count)
        if not any(requests):
            return [None] * count
        if self._adapters is None:
            raise Unsupported(
                "lora_request needs a model that was loaded with enable_lora=True.",
                field="lora_request",
            )
        try:
            return [r if r is None else self._adapters.find(r) for r in requests]
        except ModelError as error:
            raise InvalidRequest(error.message, field="lora_request") from None

    def _require(self, runner: Literal["generate", "pooling"]) -> None:
        """Raise Unsupported if the model was not loaded for this."""
        if self.config.model.runner == runner:
            return
        if runner == "generate":
            raise Unsupported(
                "this model was loaded with runner='pooling' and generates no text: use embed "
                "or encode, or load it with runner='generate'.",
                field="runner",
            )
        raise Unsupported(
            "this model was loaded to generate text: load it with runner='pooling' (or "
            "convert='embed') to embed prompts.",
            field="runner",
        )

    def _params_of(
        self, given: Params | None, count: int, truncate: int | None
    ) -> list[SamplingParams]:
        if given is None:
            given = self.get_default_sampling_params()
        params = [given] * count if isinstance(given, SamplingParams) else list(given)
        kinds = {type(p).__name__ for p in params if not isinstance(p, SamplingParams)}
        if kinds or isinstance(given, Mapping | str):
            kind = type(given).__name__ if isinstance(given, Mapping | str) else kinds.pop()
            raise InvalidRequest(
                f"sampling_params must be SamplingParams, or a list of them; got {kind}.",
                field="sampling_params",
            )
        if len(params) != count:
            raise InvalidRequest(
                f"{count} prompts but {len(params)} sampling_params.", field="sampling_params"
            )
        if truncate is not None:
            params = [msgspec.structs.replace(p, truncate_prompt_tokens=truncate) for p in params]
        return params

    # ------------------------------------------------------------------ pooling

    def embed(
        self,
        prompts: Prompts,
        use_tqdm: bool = True,
        pooling_params: Pooling | None = None,
        lora_request: LoRAs = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """Embed prompts; returns one output per prompt, in order.

        Args:
            prompts: as for `generate`.
            pooling_params: one for all, or one each. Default: the model's own pooling.
            tokenization_kwargs: `add_special_tokens`, `truncate_prompt_tokens` (which keeps the
                first tokens).

        Raises:
            InvalidRequest, Unsupported: a prompt or parameter, or a model that was loaded to
                generate; nothing has been computed.
            RequestFailed: a request failed in the engine.
        """
        outputs = self.encode(
            prompts, pooling_params, use_tqdm, lora_request, "embed", tokenization_kwargs
        )
        return [EmbeddingRequestOutput.of(output) for output in outputs]

    def encode(
        self,
        prompts: Prompts,
        pooling_params: Pooling | None = None,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        pooling_task: str | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[PoolingRequestOutput]:
        """Pool prompts by a task; returns one output per prompt, in order, with float32 arrays.

        Args:
            pooling_task: embed, classify, token_embed or token_classify; by default that of
                `pooling_params`, or the model's own.

        Other arguments and errors as for `embed`.
        """
        self._require("pooling")
        if pooling_task is not None and pooling_task not in get_args(PoolingTask):
            raise InvalidRequest(
                f"pooling_task must be one of {', '.join(get_args(PoolingTask))}, got "
                f"{pooling_task!r}.",
                field="pooling_task",
            )
        add_special, truncate = tokenization(tokenization_kwargs)
        items = prefixed(self._client.inputs.pooling.text_before(None), as_list(prompts))
        given = pooling_params or PoolingParams()
        params = [given] * len(items) if isinstance(given, PoolingParams) else list(given)
        if len(params) != len(items):
            raise InvalidRequest(
                f"{len(items)} prompts but {len(params)} pooling_params.", field="pooling_params"
            )
        if truncate is not None:
            params = [msgspec.structs.replace(p, truncate_prompt_tokens=truncate) for p in params]
        if pooling_task is not None:
            params = [msgspec.structs.replace(p, task=pooling_task) for p in params]
        adapters = self._adapters_of(lora_request, len(items))
        return self._pool(items, params, add_special, use_tqdm, adapters)

    def classify(
        self,
        prompts: Prompts,
        pooling_params: Pooling | None = None,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[ClassificationRequestOutput]:
        """Classify prompts; returns the numbers of all labels of each, in order.

        Arguments and errors as for `embed`.
        """
        outputs = self.encode(
            prompts, pooling_params, use_tqdm, lora_request, "classify", tokenization_kwargs
        )
        return [ClassificationRequestOutput.of(output) for output in outputs]

    def reward(
        self,
        prompts: Prompts,
        pooling_params: Pooling | None = None,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[PoolingRequestOutput]:
        """The rewards of prompts: numbers of each token, or of each step.

        Arguments and errors as for `embed`.
        """
        return self.encode(
            prompts, pooling_params, use_tqdm, lora_request, "token_classify", tokenization_kwargs
        )

    def score(
        self,
        data_1: Any,
        data_2: Any,
        use_tqdm: bool = True,
        pooling_params: PoolingParams | None = None,
        lora_request: LoRAs = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> list[ScoringRequestOutput]:
        """Score pairs of texts; returns one output per text of `data_2`, in order.

        Args:
            data_1: one text, or as many as there are in `data_2`.
            chat_template: renders a pair: messages of the roles "query" and "document".

        Other arguments and errors as for `embed`.
        """
        self._require("pooling")
        first, second = as_texts(data_1, "data_1"), as_texts(data_2, "data_2")
        check_pairs(first, second, ("data_1", "data_2"))
        settings = pooling_settings(self.config.model, self._model_info)
        special, most = tokenization(tokenization_kwargs)
        params = msgspec.structs.replace(pooling_params or PoolingParams(), task=task_of(settings))
        if settings.score_kind != "cross-encoder":
            texts: list[Any] = [*first, *second]
            params = msgspec.structs.replace(params, truncate_prompt_tokens=most)
            adapters = self._adapters_of(lora_request, len(texts))
            outputs = self._pool(texts, [params] * len(texts), special, use_tqdm, adapters)
            return self._compared(settings, outputs[: len(first)], outputs[len(first) :])
        encode = PairEncoder(self._words(), settings.segment, self._pair_template(chat_template))
        if most == -1:
            most = self._client.inputs.limits.max_model_len
        queries = first if len(first) > 1 else first * len(second)
        pairs: list[Any] = [encode(q, d, most) for q, d in zip(queries, second, strict=True)]
        adapters = self._adapters_of(lora_request, len(pairs))
        outputs = self._pool(pairs, [params] * len(pairs), False, use_tqdm, adapters)
        return [
            ScoringRequestOutput(
                output.request_id,
                ScoringOutput(float(output.outputs.data[0])),
                output.prompt_token_ids,
                output.num_cached_tokens,
            )
            for output in outputs
        ]

    def _pair_template(self, source: str | None) -> Callable[[list[dict[str, Any]]], str] | None:
        if source is None and self._chat_template is None:
            return None
        from galley.chat.templates import ChatRenderer

        renderer = ChatRenderer.of(self._words(), source or self._chat_template)
        assert renderer is not None
        return renderer.render

    @staticmethod
    def _compared(
        settings: PoolingSettings,
        queries: list[PoolingRequestOutput],
        documents: list[PoolingRequestOutput],
    ) -> list[ScoringRequestOutput]:
        scored = []
        for i, document in enumerate(documents):
            query = queries[i if len(queries) > 1 else 0]
            score = compare(settings, query.outputs.data, document.outputs.data)
            scored.append(
                ScoringRequestOutput(
                    f"{query.request_id}_{document.request_id}",
                    ScoringOutput(score),
                    [*query.prompt_token_ids, *document.prompt_token_ids],
                    query.num_cached_tokens + document.num_cached_tokens,
                )
            )
        return scored

    def _pool(
        self,
        prompts: Sequence[Prompt],
        params: Sequence[PoolingParams],
        add_special: bool,
        shown: bool,
        adapters: Sequence[Adapter | None],
    ) -> list[PoolingRequestOutput]:
        """The outputs of prompts, computed together; nothing is if one is invalid."""
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        cut = any(each.truncate_prompt_tokens is not None for each in params)
        if texts and self._tokenizer is not None and not cut:
            made = iter(self._tokenizer.encode_batch(texts, add_special))
            prompts = [next(made) if isinstance(prompt, str) else prompt for prompt in prompts]
        chunked = None
        alike = all(adapter is adapters[0] for adapter in adapters)
        if params and alike and all(each == params[0] for each in params):
            inputs = self._client.inputs
            chunked = ChunkedTexts.of(
                inputs.pooling, inputs.limits.max_model_len, as_ids(prompts), params[0]
            )
        if chunked is not None:
            prompts, params = chunked.parts, chunked.params
            adapters = [adapters[0]] * len(prompts)
        states: list[RequestState] = []
        try:
            with uninterrupted():  # once for all: it costs more than a short prompt's part
                for prompt, each, adapter in zip(prompts, params, adapters, strict=True):
                    states.append(self._add(prompt, each, 0, add_special, adapter))
            self._drive(states, shown)
            outputs = [output for state in states if (output := state.take_pooled()) is not None]
        finally:
            self._cancel(states)
        return outputs if chunked is None else chunked.joined(outputs)

    # ------------------------------------------------------------------ text

    def get_tokenizer(self) -> ChatTokenizer:
        """The model's tokenizer. Raises InvalidRequest if none is loaded (skip_tokenizer_init)."""
        from galley.chat.tokenizer import ChatTokenizer

        return ChatTokenizer(self._words(), self._chat_template)

    def _words(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequest("No tokenizer is loaded (skip_tokenizer_init=True).")
        return self._tokenizer

    def _renderer(self, content_format: ContentFormat = "auto") -> ChatRenderer:
        if content_format not in self._renderers:
            from galley.chat.templates import ChatRenderer

            made = ChatRenderer.of(self._words(), self._chat_template, content_format)
            if made is None:
                raise Unsupported(
                    "this model has no chat template: give one to LLM(chat_template=…).",
                    field="messages",
                )
            self._renderers[content_format] = made
        return self._renderers[content_format]

    def get_default_sampling_params(self) -> SamplingParams:
        """The model's own sampling defaults (generation_config.json)."""
        return SamplingParams(**default_sampling_params(self.config, self._model_info))

    # ------------------------------------------------------------------ engine

    def get_metrics(self) -> list[Metric]:
        """Current engine metrics by vLLM's names: `Counter`, `Gauge`, `Histogram`, and the `Vector`
        of accepted drafts by position.

        Empty with disable_log_stats=True.
        """
        from galley.frontend.metric_values import read_metrics

        return read_metrics(self._registry)

    def start_profile(
        self,
        profile_prefix: str | None = None,
        *,
        delay_iterations: int | None = None,
        max_iterations: int | None = None,
    ) -> None:
        """Start recording steps, as configured by `LLM(profiler_config=…)` and these arguments.

        Raises:
            InvalidRequest: no profiler is configured.
        """
        config = self.config.observability.profiler_config
        self._core.start_profile(
            *profile_settings(config, profile_prefix, delay_iterations, max_iterations)
        )

    def stop_profile(self) -> str | None:
        """Write the profile, for ui.perfetto.dev; returns the file's path, None if not started."""
        return self._core.stop_profile()

    def _observer(self) -> EngineMetrics | None:
        if self.config.observability.disable_log_stats:
            return None
        return EngineMetrics.of(self._registry, self.config, self._core.executor.max_model_len)

    def get_world_size(self, include_dp: bool = True) -> int:
        """Number of ranks that compute a step."""
        parallel = self.config.parallel
        size = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
        return size * parallel.data_parallel_size if include_dp else size

    def reset_mm_cache(self) -> None:
        """Does nothing: there is no multimodal cache."""

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """Drop the prefix cache. Does nothing and returns False while blocks are in use."""
        if reset_connector:
            raise Unsupported("reset_connector: there is no KV connector.", field="reset_connector")
        return self._core.reset_prefix_cache(reset_running_requests)

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Release memory until `wake_up`: level 1 the KV cache, level 2 the weights too. At level 0
        steps are paused and enqueued requests wait.

        Args:
            mode: treatment of enqueued requests: "abort", "wait" (they are computed first), or
                "keep" (they go on after waking up).

        Raises:
            InvalidRequest: there is no such level or mode.
        """
        check_level(level)
        pausing = self._core.pausing
        pausing.pause(mode)
        while self._core.has_work:
            self._client.step()
        pausing.sleep(level)
        self._report_sleep(level)

    def wake_up(self, tags: list[str] | None = None) -> bool:
        """Allocate memory again: all of it, or what `tags` name: weights, kv_cache, scheduling.

        Returns whether everything is restored; then steps resume.

        Raises:
            InvalidRequest: there is no such tag.
        """
        awake = self._core.pausing.wake_up(tags)
        if awake:
            self._report_sleep(None)
        return awake

    def release_kv_cache_memory(self) -> None:
        """Release the KV cache's memory during `sleep(level=0)`, until `wake_up`."""
        self._core.pausing.release_kv_cache_memory()

    def _report_sleep(self, level: int | None) -> None:
        if self._metrics is not None:
            self._metrics.sleeps(level)

    def shutdown(self) -> None:
        """Release the model's memory; the object cannot be used afterwards."""
        self._client.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without collections of garbage: the start makes nothing but what lives on."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _tokenizer_of(
    config: EngineConfig, source: Source, reading: threading.Event
) -> Tokenizer | None:
    """Make the tokenizer once weights are being read. A large vocabulary takes half a second, in
    which the interpreter's lock is held: packing goes on without it, but cannot begin."""
    reading.wait()
    if config.model.skip_tokenizer_init:
        return None
    return load_tokenizer(resolve_tokenizer(config.model, config.load, source))


def _python_words(message: str) -> str:
    """A sentence about flags with the names that they have as arguments of `LLM`."""

    def argument(option: re.Match[str]) -> str:
        name, value = option[2].replace("-", "_"), "=False" if option[1] else ""
        return name + value

    return re.sub(r"--(no-)?([a-z][a-z0-9-]*)", argument, message)
