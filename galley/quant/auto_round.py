"""AutoRound checkpoints, which are packed as those of GPTQ or AWQ (`packing_format`).

    auto_round:auto_gptq                 GPTQ, zeros minus 1
    auto_round, auto_round:gptqmodel     GPTQ, zeros themselves
    auto_round:auto_awq                  AWQ in the "gemm" layout

`extra_config` gives layers other bits or groups, by name; 16 bits and more are dense weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from galley.errors import ModelError
from galley.kernels.quantized import QuantizedWeight
from galley.quant.awq import AWQ
from galley.quant.gptq import GPTQ
from galley.quant.scheme import PlainScheme, Scheme, Tensors

_METHOD = "auto-round"
_FORMATS = ("auto_round", "auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round:auto_awq")


class AutoRound:
    """`Scheme` of AutoRound checkpoints."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        packing = config.get("packing_format", "auto_round:auto_gptq")
        if packing not in _FORMATS:
            raise ModelError(
                f"{_METHOD}: packing_format is {packing!r}; {', '.join(_FORMATS)} are supported"
            )
        for key, supported in (("data_type", ("int",)), ("act_bits", (16, 32))):
            value = config.get(key)
            if value is not None and value not in supported:
                raise ModelError(f"{_METHOD}: {key} is {value!r}; {supported[0]!r} is supported")
        self._packing = packing
        self._every = _scheme(packing, config)
        extra = config.get("extra_config") or {}
        if not isinstance(extra, Mapping):
            raise ModelError(f"{_METHOD}: extra_config is not an object")
        self._by_name = {
            name: _scheme(packing, {**config, **table})
            for name, table in extra.items()
            if isinstance(table, Mapping)
        }

    def read(self, name: str, shape: tuple[int, int], tensors: Tensors) -> QuantizedWeight:
        return self._scheme_of(name).read(name, shape, tensors)

    def _scheme_of(self, name: str) -> Scheme:
        if name in self._by_name:
            return self._by_name[name]
        for pattern, scheme in self._by_name.items():
            try:
                if re.search(pattern, name):
                    return scheme
            except re.error:
                continue
        return self._every


def _scheme(packing: str, config: Mapping[str, Any]) -> Scheme:
    if config.get("bits") in (16, 32):
        return PlainScheme()
    if packing == "auto_round:auto_awq":
        fields = {key: config.get(key) for key in ("bits", "group_size")}
        return AWQ({**fields, "zero_point": True, "version": "gemm"})
    version = "gptq" if packing == "auto_round:auto_gptq" else "gptq_v2"
    fields = {key: config.get(key) for key in ("bits", "group_size")}
    return GPTQ({**fields, "checkpoint_format": version})
