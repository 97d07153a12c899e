"""The sampler. Native only: a program's last op (csrc/sample.h)."""

from __future__ import annotations

from galley.kernels.ops.definition import NativeOp

#: Sampling parameters by slot, and masks and biases by logit row. Each may be absent.
SAMPLING_COLUMNS = (
    "temperature",
    "top_p",
    "min_p",
    "top_k",
    "presence",
    "frequency",
    "repetition",
    "seed",
    "num_logprobs",
)
#: Tokens between that of a row and the one that is sampled, by slot: 0, except of draft heads.
AHEAD = "ahead"
MASK_COLUMNS = ("mask", "bias_indptr", "bias_ids", "bias_values")

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
    columns=("history", "num_tokens", "num_prompt", *SAMPLING_COLUMNS, AHEAD, *MASK_COLUMNS),
)
