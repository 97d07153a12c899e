"""Activation order: groups whose inputs do not follow each other (`g_idx`)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from galley.errors import ModelError
from galley.quant.packed_ints import int32_of
from galley.quant.scheme import Tensors


def input_order(
    method: str, name: str, k: int, group: int, tensors: Tensors
) -> NDArray[np.int32] | None:
    """The inputs sorted by their group, which tensor `name` holds; None if they are in order.

    Raises ModelError if groups do not have `group` inputs each.
    """
    groups = int32_of(method, tensors.use(name, (k,)))
    want = np.arange(k) // group
    if np.array_equal(groups, want):
        return None
    order = np.argsort(groups, kind="stable").astype(np.int32)
    if not np.array_equal(groups[order], want):
        raise ModelError(
            f"{method}: tensor {name} does not give {group} inputs to each of its groups"
        )
    return order
