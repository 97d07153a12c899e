"""T5's position bias: a number of each head and bucket of distances, added to scores (Raffel et
al., "Exploring the Limits of Transfer Learning")."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from galley.kernels.ops import Constant
from galley.layers.context import BuildContext
from galley.layers.weight_specs import Part, Vector


class DistanceBiasSpec(msgspec.Struct, frozen=True):
    """Biases of a layer whose tokens see those on both sides.

    Attributes:
        table: the tensor [buckets, heads].
        most: distance from which on all tokens of a side are in one bucket.
    """

    table: Part
    most: int

    def build(self, context: BuildContext) -> Constant:
        """[2 most + 1, heads] by distance, from -most to most."""
        context.require_one_rank("biases by distance")
        buckets = distance_buckets(self.table.num_rows, self.most)
        return context.source.vector(Vector((self.table,), rows=buckets))


def distance_buckets(buckets: int, most: int) -> tuple[int, ...]:
    """The bucket of each distance from -most to most.

    Each side has half of the buckets; half of these are of one distance each, the others get wider
    as logarithms do.
    """
    each = buckets // 2
    single = each // 2
    far = np.arange(most + 1)
    with np.errstate(divide="ignore"):
        ratio = np.log(far.astype(np.float32) / np.float32(single))
    # In float32, as transformers computes it: distances at borders depend on it.
    share = ratio / np.float32(math.log(most / single)) * np.float32(each - single)
    wide = single + np.maximum(share, 0).astype(np.int64)
    of = np.where(far < single, far, np.minimum(wide, each - 1))
    return (*of[:0:-1].tolist(), *(0 if d == 0 else each + int(of[d]) for d in range(most + 1)))
