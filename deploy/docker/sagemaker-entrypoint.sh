#!/bin/bash
# Entry point for SageMaker: SM_VLLM_MAX_MODEL_LEN=4096 is the flag --max-model-len 4096, a value of
# "true", or none, the flag alone, as in vLLM's image. SageMaker asks port 8080 for /ping and
# /invocations.
#   docker run --entrypoint /opt/galley/sagemaker-entrypoint.sh -e SM_VLLM_MODEL=/opt/ml/model galley
set -euo pipefail

flags=(--port 8080)
while IFS= read -r -d '' entry; do
  name=${entry%%=*} value=${entry#*=}
  [[ $name == SM_VLLM_* ]] || continue
  name=${name#SM_VLLM_}
  name=${name,,}
  flags+=("--${name//_/-}")
  if [[ -n $value && $value != true ]]; then flags+=("$value"); fi
done < <(env -0)
exec galley serve "${flags[@]}"
