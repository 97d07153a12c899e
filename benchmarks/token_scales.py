"""Perplexity of W8A8 with inputs rounded by PyTorch: what int8 inputs with a scale per token cost.

    python -m benchmarks.token_scales

The built-in model as transformers' Llama in float32, with the int8 weights of `benchmarks.formats`
dequantised; each projection's input is rounded to int8 with the largest magnitude of its token as
127, as the format prescribes. Noise on the inputs shows how much depends on codes at the border of
two integers. Then the same in bfloat16, as compressed-tensors computes such a model in PyTorch:
weights, inputs, scales and results are bfloat16. Nothing of it is Galley's arithmetic.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.formats import in_method, rounded_inputs, values_of
from galley.text import load_tokenizer
from tests.runner.models import TEXT, default_checkpoint, dequantised, torch_model
from tests.runner.test_quality import WINDOW, torch_perplexity

WINDOWS = 4


def main() -> None:
    default = default_checkpoint()
    info, arrays = default.model_info, dequantised(default)
    ids = load_tokenizer(Path(info.source)).encode(TEXT.read_text(encoding="utf-8"))
    windows = np.array(ids[: WINDOWS * WINDOW]).reshape(WINDOWS, WINDOW)
    model = torch_model(info, values_of(in_method(info, arrays, "W8A8"), arrays))
    exact = torch_perplexity(model, windows)
    level = [0.0]
    random = torch.Generator().manual_seed(0)

    def noisy(x: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(x.shape, generator=random).to(x.dtype)
        return x * (1 + level[0] * noise) if level[0] else x

    for name, module in model.named_modules():
        if name.endswith("_proj"):
            module.register_forward_pre_hook(lambda _, args: (rounded_inputs(noisy(args[0])),))
    for noise in (0.0, 1e-6, 1e-6, 1e-3, 1e-3):
        level[0] = noise
        int8 = torch_perplexity(model, windows)
        gap = f"{100 * (int8 / exact - 1):+.2f} %"
        print(f"int8 inputs, noise {noise:g}: {int8:.3f} ({gap}; float32 inputs {exact:.3f})")
    level[0] = 0.0
    int8 = torch_perplexity(model.bfloat16(), windows)
    print(f"int8 inputs in bfloat16: {int8:.3f} ({100 * (int8 / exact - 1):+.2f} %)")


if __name__ == "__main__":
    main()
