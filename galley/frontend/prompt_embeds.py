"""Prompts of embedding rows: from numbers as callers have them to what the engine is sent."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np

from galley.errors import InvalidRequest
from galley.frontend.saved_tensor import read_rows
from galley.request import PromptEmbeds

FIELD = "prompt_embeds"


def decoded(text: str | bytes, columns: int, max_rows: int) -> np.ndarray[Any, Any]:
    """The rows of a base64 file of `torch.save`, float32 [n, columns]. Raises InvalidRequest."""
    try:
        return read_rows(base64.b64decode(text, validate=True), columns, max_rows)
    except binascii.Error as error:
        raise InvalidRequest(f"{FIELD} is not valid base64: {error}.", field=FIELD) from None
    except ValueError as error:
        raise InvalidRequest(f"{FIELD}: {error}.", field=FIELD) from None


def prompt_embeds(
    rows: Any, at: Any, length: int | None, columns: int, max_rows: int
) -> PromptEmbeds:
    """Rows for the engine.

    Args:
        rows: [n, columns] or [1, n, columns] floats: an array, or a tensor of torch.
        at: n positions in the prompt, ascending; None: 0 … n - 1.
        length: of the prompt; None: n.

    Raises InvalidRequest naming the field.
    """
    if hasattr(rows, "detach"):
        rows = rows.detach().cpu().float().numpy()
    try:
        array = np.asarray(rows)
    except ValueError as error:
        raise InvalidRequest(f"{FIELD}: {error}.", field=FIELD) from None
    if array.ndim == 3 and len(array) == 1:
        array = array[0]
    if array.ndim != 2 or array.shape[1] != columns or not 1 <= len(array) <= max_rows:
        raise InvalidRequest(
            f"{FIELD} must be [1 … {max_rows} rows, {columns} columns], got {list(array.shape)}.",
            field=FIELD,
        )
    if array.dtype.kind != "f":
        raise InvalidRequest(f"{FIELD} must be floats, got {array.dtype}.", field=FIELD)
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise InvalidRequest(f"{FIELD} must be finite numbers.", field=FIELD)
    n = len(array)
    positions = np.arange(n) if at is None else np.asarray(at, np.int64)
    within = positions.min(initial=0) >= 0 and positions.max(initial=0) < (length or n)
    if positions.shape != (n,) or not within or (np.diff(positions) < 1).any():
        raise InvalidRequest(
            f"embeds_at must be {n} ascending positions in the prompt.", field="embeds_at"
        )
    return PromptEmbeds(array.tobytes(), positions.astype(np.int32).tobytes(), columns)
