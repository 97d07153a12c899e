"""Logits processors on torch tensors, run by Galley's engine (`--logits-processors`)."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import galley
from galley import BatchUpdate, MoveDirectionality, SamplingParams
from galley.config import EngineConfig
from vllm.config import VllmConfig
from vllm.logits_process import LogitsProcessor as RequestLogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

__all__ = [
    "AdapterLogitsProcessor",
    "BatchUpdate",
    "LogitsProcessor",
    "MoveDirectionality",
    "RequestLogitsProcessor",
]


class LogitsProcessor(galley.LogitsProcessor):
    """See `galley.LogitsProcessor`; `apply` gets and returns a torch tensor."""

    def __init__(
        self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool
    ) -> None: ...

    @classmethod
    def create(cls, config: EngineConfig) -> LogitsProcessor:
        return cls(VllmConfig(config), torch.device("cpu"), False)

    def process(self, logits: Any) -> Any:
        with torch.inference_mode():
            return self.apply(torch.from_numpy(logits)).numpy()


class AdapterLogitsProcessor(LogitsProcessor):
    """Callables on the row of a request, which `new_req_logits_processor` makes; None = none."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self.req_info: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {}

    @abstractmethod
    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None: ...

    def _new_state(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> Callable[[torch.Tensor], torch.Tensor] | None:
        processor = self.new_req_logits_processor(params)
        if processor is None:
            return None
        if len(inspect.signature(processor).parameters) == 3:
            return partial(processor, prompt_ids, output_ids)
        return partial(processor, output_ids)

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.req_info, batch_update, self._new_state)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, processor in self.req_info.items():
            logits[row] = processor(logits[row])
        return logits
