"""Quantizes a bf16 Hugging Face directory to int8 W8A8: make_w8a8.py FROM TO

compressed-tensors, one scale per output channel, inputs quantised per token as they come; round to
nearest, without calibration; the head stays bf16. Runs in vLLM's environment.
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

_WEIGHTS = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "channel",
    "dynamic": False,
}
_INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def main() -> None:
    source, out = sys.argv[1:3]
    os.makedirs(out, exist_ok=True)
    tensors = {}
    for name, value in load_file(os.path.join(source, "model.safetensors")).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = value
            continue
        wide = value.float()
        scale = wide.abs().amax(1, keepdim=True) / 127
        tensors[name] = (wide / scale).round().clamp(-127, 127).to(torch.int8)
        tensors[name + "_scale"] = scale.to(torch.bfloat16).contiguous()
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    for name in os.listdir(source):
        if name not in ("model.safetensors", "config.json"):
            shutil.copy(os.path.join(source, name), os.path.join(out, name))
    with open(os.path.join(source, "config.json")) as file:
        config = json.load(file)
    group = {"targets": ["Linear"], "weights": _WEIGHTS, "input_activations": _INPUTS}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    with open(os.path.join(out, "config.json"), "w") as file:
        json.dump(config, file, indent=2)


if __name__ == "__main__":
    main()
