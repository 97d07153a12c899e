"""`LLMEngine`: requests are added, and steps run, by the caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from galley import LLM, LoRARequest, PoolingParams, PromptType, RequestOutput, SamplingParams
from galley.errors import InvalidRequest
from galley.frontend.output_processor import RequestState
from vllm._names import missing
from vllm.config import VllmConfig
from vllm.engine.arg_utils import EngineArgs


class LLMEngine:
    """The engine of an LLM, stepped by its caller.

    Attributes:
        llm: has the engine.
        requests: unfinished requests by id.
    """

    def __init__(self, llm: LLM) -> None:
        self.llm = llm
        self.requests: dict[str, RequestState] = {}

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs, *_: Any, **__: Any) -> LLMEngine:
        return cls(LLM(**engine_args.given))

    @classmethod
    def from_vllm_config(cls, *_: Any, **__: Any) -> LLMEngine:
        missing(f"{cls.__name__}.from_vllm_config", "from_engine_args takes the flags")
        raise AssertionError

    def add_request(
        self,
        request_id: str,
        prompt: PromptType,
        params: SamplingParams | PoolingParams,
        arrival_time: float | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
        trace_headers: Mapping[str, str] | None = None,
        priority: int = 0,
        **_: Any,
    ) -> str:
        """Add a request; `step` computes it.

        Raises:
            InvalidRequest, Unsupported: of the prompt, the parameters or the id.
        """
        if not isinstance(params, SamplingParams):
            missing("add_request with PoolingParams", "LLM.encode and LLM.embed pool")
        if request_id in self.requests:
            raise InvalidRequest(f"a request {request_id!r} is running.", field="request_id")
        self.requests[request_id] = self.llm.submit(
            prompt, params, request_id, priority, lora_request
        )
        return request_id

    def step(self) -> list[RequestOutput]:
        """Run a step; returns the outputs that are new. Raises the error of a failed request."""
        if self.requests:
            self.llm.client.step()
        return [output for _, output in self.outputs() if isinstance(output, RequestOutput)]

    def outputs(self) -> list[tuple[str, RequestOutput]]:
        """New outputs by request; a finished request is forgotten."""
        found = []
        for request_id, state in list(self.requests.items()):
            if state.ended:
                del self.requests[request_id]
            output = state.take()
            if output is not None:
                found.append((request_id, output))
        return found

    def abort_request(self, request_ids: str | Sequence[str], internal: bool = False) -> None:
        """End requests; there is no output of them."""
        for request_id in [request_ids] if isinstance(request_ids, str) else request_ids:
            state = self.requests.pop(request_id, None)
            if state is not None:
                self.llm.client.cancel(state)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def get_num_unfinished_requests(self) -> int:
        return len(self.requests)

    @property
    def model_config(self) -> Any:
        return self.llm.config.model

    @property
    def vllm_config(self) -> VllmConfig:
        return VllmConfig(self.llm.config)

    def get_tokenizer(self) -> Any:
        return self.llm.get_tokenizer()

    def get_metrics(self) -> Any:
        return self.llm.get_metrics()

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> bool:
        return bool(self.llm.reset_prefix_cache(*args, **kwargs))

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        self.llm.sleep(level, mode)

    def wake_up(self, tags: list[str] | None = None) -> None:
        self.llm.wake_up(tags)

    def pause(self, mode: str, clear_cache: bool) -> None:
        self.llm.client.core.pausing.pause(mode, clear_cache)

    def resume(self) -> None:
        self.llm.client.core.pausing.resume()

    @property
    def is_paused(self) -> bool:
        """No step is taken until `resume`."""
        return bool(self.llm.client.core.pausing.stopped)

    def do_log_stats(self) -> None:
        """Statistics are in get_metrics()."""

    def shutdown(self, timeout: float | None = None) -> None:
        self.llm.shutdown()
