"""The layers of a model that adapters may add to, numbered as they are built."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from galley.errors import ConfigError
from galley.kernels.adapters import PANEL, AdapterPart, AdapterShape, AdapterSite
from galley.layers.weight_specs import Matrix, Part, parts_of

#: Layers that other engines fuse → the modules that they consist of.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


class SiteTensors(msgspec.Struct, frozen=True):
    """A site, and the tensors of the checkpoint that it consists of.

    Attributes:
        names: of its tensors, without ".weight": one for each A, of all experts.
        parts: one for each B, of all experts.
    """

    site: AdapterSite
    names: tuple[str, ...]
    parts: tuple[Part, ...]


class Sites:
    """See the module. The same model has the same sites, wherever its weights come from.

    Attributes:
        all: in order.
    """

    def __init__(self) -> None:
        self.all: list[SiteTensors] = []
        self._inputs = self._outputs = self._copies = 0

    def add(self, matrix: Matrix, run: int, ranks: int = 1) -> AdapterSite:
        """Number a linear layer, or all experts of one.

        Args:
            run: its parts are interleaved, so many outputs at a time; 0 = one after the other.
            ranks: that share its outputs.
        """
        sizes = [part.num_rows // ranks for part in matrix.parts]
        names = list(dict.fromkeys(part.name for part in matrix.parts))
        # Panels of interleaved parts come in turn; no other run is used.
        assert run in (0, PANEL)
        starts = [i * run for i in range(len(sizes))] if run else [0, *np.cumsum(sizes).tolist()]
        step = len(sizes) * run if run else PANEL
        parts = tuple(
            AdapterPart(names.index(part.name), size, start, step)
            for part, size, start in zip(matrix.parts, sizes, starts, strict=False)
        )
        site = AdapterSite(
            matrix.num_inputs,
            self._inputs,
            self._outputs,
            len(names),
            parts,
            experts=max(1, matrix.experts),
        )
        return self._take(site, [part for parts in parts_of(matrix) for part in parts])

    def add_head(self, part: Part, trained: bool = True, pooled: bool = False) -> AdapterSite:
        """Number the layer that scores the vocabulary, or one of a head that pools.

        Args:
            trained: an adapter may have a whole one of its own.
        """
        parts = (AdapterPart(0, part.num_rows, 0),)
        copy = self._copies if trained else -1
        site = AdapterSite(
            *(part.num_inputs, self._inputs, self._outputs, 1, parts),
            logits=True,
            copy=copy,
            pooled=pooled,
        )
        return self._take(site, [part])

    def add_embedding(self, part: Part) -> AdapterSite:
        """Number the embedding of tokens."""
        parts = (AdapterPart(0, part.num_inputs, 0),)
        site = AdapterSite(
            part.num_rows, self._inputs, self._outputs, 1, parts, copy=self._copies, lookup=True
        )
        return self._take(site, [part])

    def _take(self, site: AdapterSite, parts: Sequence[Part]) -> AdapterSite:
        names = tuple(dict.fromkeys(part.name for part in parts))
        assert len(names) == site.inputs * site.experts
        self._inputs += len(names)
        self._outputs += len(parts)
        self._copies += site.copy >= 0
        self.all.append(SiteTensors(site, names, tuple(parts)))
        return site

    def targets(self, names: Sequence[str]) -> frozenset[str]:
        """The modules' last names that `names` mean: their own, or those of fused ones.

        Raises ConfigError for a name that no module has.
        """
        known = {name.rpartition(".")[2] for tensors in self.all for name in tensors.names}
        chosen: set[str] = set()
        for name in names:
            meant = {name} & known or set(FUSED.get(name, ())) & known
            if not meant:
                raise ConfigError(
                    f"--lora-target-modules: no module is called {name!r}; there are "
                    f"{', '.join(sorted(known))}.",
                    field="lora_target_modules",
                )
            chosen |= meant
        return frozenset(chosen)

    def num_bytes(self, rank: int, itemsize: int, targets: frozenset[str]) -> int:
        """Most bytes of an adapter of these modules whose ranks are at most `rank`; without whole
        matrices. No targets: of all modules."""
        names = [name for tensors in self.all for name in tensors.names]
        used = [not targets or name.rpartition(".")[2] in targets for name in names]
        return self.shape.num_bytes([rank * is_used for is_used in used], itemsize)

    @property
    def shape(self) -> AdapterShape:
        return AdapterShape.of([tensors.site for tensors in self.all])
