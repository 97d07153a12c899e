"""Callables on one row's logits: (output ids, row) or (prompt ids, output ids, row)."""

from __future__ import annotations

from collections.abc import Callable

import torch

LogitsProcessor = (
    Callable[[list[int], torch.Tensor], torch.Tensor]
    | Callable[[list[int], list[int], torch.Tensor], torch.Tensor]
)
