"""Measures the machine's limits, for rooflines. Native only, and part of no model."""

from __future__ import annotations

from galley.kernels.ops.definition import NativeOp

PROBE = NativeOp(
    "probe",
    pointers={"data?": "read", "done": "int64 [threads]"},
    ints={
        "what?": "0 read memory, 1 f32, 2 bf16, 3 int8 multiply-adds",
        "size": "bytes in all, or rounds per thread",
    },
    note="the machine's limits, for rooflines; part of no model",
)
