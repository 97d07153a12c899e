"""The linear layers of a model that adapters may add to, numbered as they are built."""

from __future__ import annotations

import msgspec
import numpy as np

from galley.kernels.adapters import PANEL, AdapterPart, AdapterShape, AdapterSite
from galley.layers.questions import Matrix, Part


class SiteTensors(msgspec.Struct, frozen=True):
    """A site, and the tensors of the checkpoint that it consists of.

    Attributes:
        names: of its tensors, without ".weight": one for each A.
        parts: one for each B.
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
        self._inputs = self._outputs = 0

    def add(self, matrix: Matrix, run: int, ranks: int = 1, logits: bool = False) -> AdapterSite:
        """Number a layer.

        Args:
            run: its parts are interleaved, so many outputs at a time; 0 = one after the other.
            ranks: that share its outputs.
            logits: its rows are logit rows.
        """
        sizes = [part.num_rows // ranks for part in matrix.parts]
        names = tuple(dict.fromkeys(part.name for part in matrix.parts))
        # Panels of interleaved parts come in turn; no other run is used.
        assert run in (0, PANEL)
        starts = [i * run for i in range(len(sizes))] if run else [0, *np.cumsum(sizes).tolist()]
        step = len(sizes) * run if run else PANEL
        parts = tuple(
            AdapterPart(names.index(part.name), size, start, step)
            for part, size, start in zip(matrix.parts, sizes, starts, strict=False)
        )
        site = AdapterSite(
            matrix.num_inputs, self._inputs, self._outputs, len(names), parts, logits
        )
        self._inputs += len(names)
        self._outputs += len(parts)
        self.all.append(SiteTensors(site, names, matrix.parts))
        return site

    @property
    def shape(self) -> AdapterShape:
        return AdapterShape.of([tensors.site for tensors in self.all])
