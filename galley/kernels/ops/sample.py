"""The sampler. Native only: a program's last op (csrc/sample.h)."""

from __future__ import annotations

from galley.kernels.ops.definition import NativeOp

SAMPLE = NativeOp(
    "sample",
    pointers={
        "logits": "f32 [L][logits_stride]",
        "token_ids": "int32 [L]",
        "logprob?": "f32 [L]",
        "rank?": "int32 [L]",
        "top_ids?": "int32 [L][top_stride]",
        "top_logprobs?": "f32 [L][top_stride]",
    },
    ints={"vocab": "", "logits_stride?": "default vocab", "top_stride?": "0 = no lists"},
)
