"""Number formats of keys and values in the KV cache (csrc/kv_format.h)."""

from __future__ import annotations

import msgspec

#: Name → number in csrc and bytes of a number.
FORMATS = {
    "float32": (0, 4),
    "bfloat16": (1, 2),
    "fp8_e4m3": (2, 1),
    "fp8_e5m2": (3, 1),
    "int8": (4, 1),
}
#: Largest magnitude of the formats of eight bits.
LARGEST = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0, "int8": 127.0}
#: Bytes of the scale of a token and head, of K and of V each.
SCALE_BYTES = 4


class KVFormat(msgspec.Struct, frozen=True):
    """How the numbers of a KV cache are stored.

    Attributes:
        name: a key of `FORMATS`.
        token_scales: numbers of eight bits have a scale for each token and head, chosen by the
            largest of them and stored beside them; otherwise one for each layer's K and V, which
            does not change.
        excepted: layers, by their number in the model, whose numbers are in the format `plain`.
        plain: of the model: bfloat16 or float32.
    """

    name: str
    token_scales: bool = False
    excepted: frozenset[int] = frozenset()
    plain: str = "bfloat16"

    def of(self, layer: int) -> KVFormat:
        """The format of one layer."""
        return KVFormat(self.plain) if layer in self.excepted else self

    @property
    def number(self) -> int:
        """In native code."""
        return FORMATS[self.name][0]

    @property
    def itemsize(self) -> int:
        return FORMATS[self.name][1]

    @property
    def is_codes(self) -> bool:
        """Numbers of eight bits, times a scale."""
        return self.itemsize == 1

    @property
    def scale_bytes(self) -> int:
        """Bytes of the scale of a token's K (or V) of one head."""
        return SCALE_BYTES if self.token_scales else 0

    def __str__(self) -> str:
        scales = ", a scale per token and head" if self.token_scales else ""
        layers = ", ".join(map(str, sorted(self.excepted)))
        return self.name + scales + (f"; {self.plain} in layers {layers}" if layers else "")
