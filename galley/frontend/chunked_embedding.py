"""Embeddings of texts that are longer than the model: in parts, whose vectors are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from galley.config.pooling import PoolingSettings
from galley.errors import InvalidRequest
from galley.outputs import PoolingOutput, PoolingRequestOutput
from galley.request import PoolingParams


class ChunkedTexts(msgspec.Struct, frozen=True):
    """Prompts, the long ones in parts.

    Attributes:
        parts: of all prompts, in order.
        counts: how many parts each has.
        params: of each part: vectors that are averaged are not scaled before.
        scaled: the average is.
    """

    parts: list[str | list[int]]
    counts: list[int]
    params: list[PoolingParams]
    scaled: bool

    @staticmethod
    def of(
        settings: PoolingSettings,
        length: int,
        prompts: Sequence[str | list[int]],
        params: PoolingParams,
    ) -> ChunkedTexts | None:
        """The prompts in parts of `length` tokens; None where all fit, or are not to be cut.

        Raises InvalidRequest for a prompt of more tokens than `settings` allow.
        """
        if not settings.chunks or not prompts:
            return None
        filled = settings.filled(params)
        if filled.task != "embed":
            return None
        sizes = [len(prompt) if isinstance(prompt, list) else 0 for prompt in prompts]
        if max(sizes) <= length:
            return None
        if settings.longest is not None and max(sizes) > settings.longest:
            raise InvalidRequest(
                f"a text may have {settings.longest} tokens (max_embed_len), got {max(sizes)}.",
                field="input",
            )
        parts: list[str | list[int]] = []
        counts, each = [], []
        raw = msgspec.structs.replace(params, use_activation=False)
        for prompt in prompts:
            if isinstance(prompt, str) or len(prompt) <= length:
                parts.append(prompt)
                counts.append(1)
                each.append(params)
                continue
            cut: list[str | list[int]] = [
                prompt[at : at + length] for at in range(0, len(prompt), length)
            ]
            parts += cut
            counts.append(len(cut))
            each += [raw] * len(cut)
        return ChunkedTexts(parts, counts, each, filled.use_activation is not False)

    def joined(self, outputs: Sequence[PoolingRequestOutput]) -> list[PoolingRequestOutput]:
        """The outputs of the prompts: of several parts the average, weighted by their tokens."""
        rest, joined = iter(outputs), []
        for count in self.counts:
            own = [next(rest) for _ in range(count)]
            if count == 1:
                joined += own
                continue
            weights = np.array([len(output.prompt_token_ids) for output in own], np.float64)
            vectors = np.stack([output.outputs.data for output in own]).astype(np.float64)
            mean = (vectors * weights[:, None]).sum(axis=0) / weights.sum()
            if self.scaled:
                mean /= max(float(np.sqrt(np.square(mean).sum())), 1e-12)
            joined.append(
                PoolingRequestOutput(
                    own[0].request_id,
                    PoolingOutput(mean.astype(np.float32)),
                    [token for output in own for token in output.prompt_token_ids],
                    sum(output.num_cached_tokens for output in own),
                )
            )
        return joined


def as_ids(prompts: Sequence[Any]) -> list[str | list[int]]:
    """Prompts with those in objects taken out of them."""
    plain: list[str | list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, Mapping):
            ids = prompt.get("prompt_token_ids")
            prompt = str(prompt.get("prompt", "")) if ids is None else ids
        plain.append(prompt if isinstance(prompt, str) else list(prompt))
    return plain
