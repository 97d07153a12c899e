# Galley. `make serve` sets up and serves, `make test` sets up and tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

native: ## build the C++ kernels into galley/kernels (development)
	@cmake -S . -B build/dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE=$(abspath $(BIN)/python) >/dev/null
	@cmake --build build/dev
	@cp build/dev/_native*.so galley/kernels/

.PHONY: native
