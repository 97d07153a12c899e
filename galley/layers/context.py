"""State shared by the layers of a model while they are built."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec.structs import replace

from galley.errors import ModelError
from galley.kernels.ops import CacheLayer, KVLayer, LatentLayer, RotaryTable, StateLayer
from galley.layers.rotary import Rotary, rotary_table
from galley.layers.weights import WeightSource


class BuildContext:
    """Passed to each layer's `build`.

    Attributes:
        source: where weights come from.
        max_positions: the longest sequence, in tokens.
        kv_layers: caches that layers have asked for so far, in order.
    """

    def __init__(
        self, source: WeightSource, max_positions: int, before: Sequence[CacheLayer] = ()
    ) -> None:
        """
        Args:
            max_positions: the longest sequence, in tokens; rotary tables have one row for each.
            before: caches of another model, that come first.
        """
        self.source = source
        self.kv_layers: list[CacheLayer] = list(before)
        self._drafts = bool(before)
        self.max_positions = max_positions
        self._shared: dict[KVLayer, KVLayer] = {}
        self._by_keys: dict[str, KVLayer] = {}
        self._tables: dict[Rotary, RotaryTable] = {}

    def add_kv_layer(
        self,
        kv_heads: int,
        head_dim: int,
        window: int,
        causal: bool = True,
        keys: str = "",
        in_parts: bool = False,
    ) -> KVLayer:
        """The KV cache of one more layer; `kv_heads` are this rank's, `keys` is the name of its k
        projection.

        Layers whose tokens see the whole sequence read in a step what they have written in it, and
        never again: those of one shape share one cache.
        """
        layer = KVLayer(
            len(self.kv_layers),
            kv_heads,
            head_dim,
            window,
            causal,
            in_parts,
            self._kv_scale(keys, "k"),
            self._kv_scale(keys, "v"),
            self._number(keys),
        )
        same = replace(layer, index=0, number=0)
        shared = None if causal else self._shared.setdefault(same, layer)
        if shared is not None and shared is not layer:
            layer = shared
        else:
            self.kv_layers.append(layer)
        self._by_keys[keys] = layer
        return layer

    def kv_layer_of(self, keys: str) -> KVLayer:
        """The cache of the layer with this k projection. ModelError where it is not built here."""
        layer = self._by_keys.get(keys)
        if layer is None:
            raise ModelError(f"a layer reads the cache of {keys}, which another process has")
        return layer

    def add_latent_layer(self, rank: int, rope_dim: int, keys: str = "") -> LatentLayer:
        """The latent KV cache of one more layer; `keys` is the name of the projection to it."""
        scale = self._kv_scale(keys, "k")
        self._kv_scale(keys, "v")  # of a cache that is not latent
        layer = LatentLayer(len(self.kv_layers), rank, rope_dim, scale, self._number(keys))
        self.kv_layers.append(layer)
        return layer

    def _number(self, keys: str) -> int:
        """Of the layer in the model: the first number in the name of its projection."""
        found = None if self._drafts else re.search(r"(?:^|\.)(\d+)\.", keys)
        return int(found[1]) if found else -1

    def _kv_scale(self, keys: str, name: str) -> float:
        """The scale of a layer's K or V that the checkpoint has for a cache in FP8; 1 for none."""
        layer = keys.rpartition(".")[0]
        names = (f"{name}_scale", f"attn.{name}_scale", f"{name}_proj.{name}_scale")
        candidates = [f"{layer}.{each}" for each in (*names, f"{name}_proj.output_scale")]
        scale = self.source.number(candidates) if layer else None
        return 1.0 if scale is None else scale

    def add_state(self, units: int, unit_size: int) -> StateLayer:
        """A recurrent state of one more layer: so many units of so many float32 numbers."""
        state = StateLayer(len(self.kv_layers), units, unit_size)
        self.kv_layers.append(state)
        return state

    def require_one_rank(self, what: str) -> None:
        """Raise ModelError where ranks would have to share what they cannot."""
        if self.source.group.size > 1:
            raise ModelError(f"{what} cannot be shared by {self.source.group.size} ranks")

    def rotary_table(self, rotary: Rotary) -> RotaryTable:
        """The table of a rotary embedding; layers with equal settings share one."""
        positions = self.max_positions
        rotary = rotary.for_length(positions)
        table = self._tables.get(rotary)
        if table is None:
            shape = (positions, rotary.dim)
            values = self.source.constant(shape, lambda: rotary_table(rotary, positions))
            table = self._tables[rotary] = RotaryTable(values, rotary.interleaved)
        return table
