# Two commands do everything: `make demo` and `make test`. Each installs what it needs into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-vllm unit lint bench clean

# torch comes first and alone: a later step that asks for any torch is then satisfied and does not
# fetch a newer build with several GB of CUDA packages.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "goldloop needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $(READY)

demo: $(READY)
	$(BIN)/goldloop demo

test: lint
	$(BIN)/pytest

# A real vLLM and llama.cpp in an environment of their own (3 GB), against transformers.
test-vllm:
	PYTHON=$(PYTHON) tests/vllm/run.sh

unit: $(READY)
	$(BIN)/pytest -m 'not slow'

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Students against Hugging Face Trainer; the other benchmarks in tests/bench are run by hand.
bench: $(READY)
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	$(BIN)/python tests/bench/bench_student.py

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo demo-by-hand
