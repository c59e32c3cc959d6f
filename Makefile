# Two commands do everything: `make demo` and `make test`. Each installs what it needs into .venv, in
# exactly the versions that the lock files name.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEV := $(VENV)/.ready-dev
# One worker more than the two cores of a small machine: many tests wait for servers and disks.
PYTEST := $(BIN)/pytest -n 3 --no-loadscope-reorder

# The tests start many Pythons: without this each would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

# torch is no part of the locks: one version number stands for builds for the CPU, for CUDA and for
# ROCm, each with a hash and dependencies of its own, and pip's settings choose between them.
TORCH := torch==2.13.0

.PHONY: demo test test-long test-newest test-vllm unit lint bench lock clean

define new_venv
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "goldloop needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
endef

# $(1): a lock file
# uv, which the lock names too, takes seconds where pip takes minutes. It does not read pip's settings
# (a mirror, say): where it fails, pip does the work.
define install
	$(new_venv)
	@echo "Installing $$(grep -c '^[a-z].*==' $(1)) packages and torch into $(VENV) (once)"
	sed -n '/^uv==/,/[^\\]$$/p' $(1) >$(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r $(VENV)/uv.txt
	UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --no-deps -r $(1) || { \
	echo "uv did not manage; pip tries, which takes minutes"; \
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r $(1); }
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@
endef

$(VENV)/.ready: requirements.lock pyproject.toml
	$(call install,requirements.lock)

$(VENV)/.ready-dev: requirements-dev.lock pyproject.toml
	$(call install,requirements-dev.lock)

demo: $(VENV)/.ready
	$(BIN)/goldloop demo

# The newest versions that pyproject.toml allows, in an environment of their own; torch as locked,
# unless it is told otherwise: make test-newest TORCH=torch.
test-newest:
	$(MAKE) test VENV=.venv-newest TORCH='$(TORCH)' DEV=.venv-newest/.newest

.PHONY: .venv-newest/.newest
.venv-newest/.newest:
	$(new_venv)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	echo '$(TORCH)' >$(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager -c $(VENV)/constraints.txt -e '.[dev,bench]'

test: lint
	$(PYTEST)

# Chaos runs and sweeps that take longer than a change should wait for.
test-long: $(DEV)
	$(PYTEST) -m long

# A real vLLM and llama.cpp in an environment of their own (3 GB), against transformers.
test-vllm:
	PYTHON=$(PYTHON) tests/vllm/run.sh

unit: $(DEV)
	$(PYTEST) -m 'not slow and not long'

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Students against Hugging Face Trainer; the other benchmarks in tests/bench are run by hand.
bench: $(DEV)
	$(BIN)/python tests/bench/bench_student.py

# Renews the lock files: the newest versions that pyproject.toml allows, for Python 3.11 and newer, on
# Linux and macOS.
UV_LOCK = .venv-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links

lock:
	test -x .venv-lock/bin/uv || { $(PYTHON) -m venv .venv-lock && .venv-lock/bin/python -m pip install --quiet uv; }
	echo '$(TORCH)' >.venv-lock/constraints.txt
	$(UV_LOCK) --no-emit-package torch -c .venv-lock/constraints.txt --extra dev --extra bench pyproject.toml -o requirements-dev.lock
	$(UV_LOCK) --no-emit-package torch -c .venv-lock/constraints.txt -c requirements-dev.lock --extra datasets --extra excel --extra postgres --extra serve pyproject.toml -o requirements.lock
	echo "label-studio==$$(sed -n 's/^VERSION = "\(.*\)"/\1/p' connectors/label_studio/server.py)" | $(UV_LOCK) - -o connectors/label_studio/requirements.lock

clean:
	rm -rf $(VENV) .venv-newest .venv-lock build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo demo-by-hand
