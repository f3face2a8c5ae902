# Every target does its own set-up: nothing but Python >= 3.11 and make is needed.
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3,$(if $(shell $(p) -c 'import sys; print(int(sys.version_info >= (3, 11)))' 2>/dev/null | grep 1),$(p))))
VENV   := .venv
BIN    := $(VENV)/bin
DEV    := $(VENV)/.dev-installed
CORE   := $(VENV)/.core-installed
# The same tests of adapters with the SDKs' previous major versions, which exclude the newest.
OLD      := .venv-previous
PREVIOUS := $(OLD)/.installed
# Task queues, web servers, kernels and pages, with which docs/workers.md is run.
WORKERS := .venv-recipes
RECIPES := $(WORKERS)/.installed
# Ray, which has 400 MB.
RAY := .venv-ray
# Frameworks: those that go together with the newest SDKs, and those that still need older ones.
FRAMES          := .venv-frameworks
FRAMES_PREVIOUS := .venv-frameworks-previous
# Clients in Node, which is not installed here.
CLIENTS := .node-clients
# schemathesis, which plugs itself into every pytest that it is installed beside.
CONTRACT := .venv-contract
# Some of them bring plugins for pytest.
TRY := -m pytest -p anyio -p pytest_timeout

# Tests start interpreters by the hundred: each would compile the package, and each process of tests
# the tests, anew. Images for containers switch it off.
unexport PYTHONDONTWRITEBYTECODE

# Many tests wait for processes: two more at a time than there are processors.
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 3 ? n + 2 : 4)))

# What has targets of its own.
OTHERS := --ignore tests/postgres --ignore tests/ray --ignore tests/node --ignore tests/contract

.DEFAULT_GOAL := help
.PHONY: help demo test postgres ray recipes frameworks node contract suites simulate stalls soak fuzz lint types bench check format clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

demo: $(CORE)  ## Run a batch against a simulated provider: parking, a reset, a raise, an exact account
	@$(BIN)/python -m scheduler demo

test: $(DEV) $(PREVIOUS)  ## Run all tests (nine minutes on two cores)
	$(OLD)/bin/python -m pytest -n $(JOBS) --dist worksteal tests/sdks
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(OTHERS)

recipes: $(RECIPES)  ## Run the recipes with real Celery, RQ, gunicorn, Jupyter, Streamlit (two minutes)
	$(WORKERS)/bin/python -m pytest -n 2 tests/recipes

postgres: $(DEV)  ## Run the tests against a real PostgreSQL, started for them (two minutes)
	$(BIN)/python -m pip install --quiet --editable . --group postgres-tests
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/postgres

ray: export RAY_USAGE_STATS_ENABLED = 0
ray: $(RAY)/.installed  ## Run the tests on a real Ray cluster of several nodes, started for them (three minutes)
	$(RAY)/bin/python -m pytest tests/ray

frameworks: export PYTEST_DISABLE_PLUGIN_AUTOLOAD = 1
frameworks: $(DEV) $(PREVIOUS) $(FRAMES)/.installed $(FRAMES_PREVIOUS)/.installed  ## Run each line of the table of frameworks (two minutes)
	$(BIN)/python $(TRY) tests/frameworks/of_sdks.py
	$(OLD)/bin/python $(TRY) tests/frameworks/of_sdks.py
	$(FRAMES)/bin/python $(TRY) tests/frameworks/with_openai_3.py
	$(FRAMES_PREVIOUS)/bin/python $(TRY) tests/frameworks/with_openai_2.py

node: $(DEV) $(CLIENTS)/.installed  ## Run the vendors' Node clients against a gateway (a minute; needs node and npm)
	$(BIN)/python -m pytest -n 2 tests/node

contract: $(DEV) $(CONTRACT)/.installed  ## Try the gateway by its own description for CONTRACT_SECONDS=40
	$(BIN)/python -m pytest tests/contract

SEED ?=
STEPS ?= 60
SECONDS ?= 60
STORE ?= both
MINUTES ?= 30
TARGET ?=

simulate: $(DEV)  ## Try simulated worlds for SECONDS=60, or replay one: SEED=7 STEPS=60 STORE=memory
	$(BIN)/python -m tests.simulation --steps $(STEPS) --seconds $(SECONDS) --store $(STORE) $(if $(SEED),--seed $(SEED))

stalls: $(DEV)  ## Run the tests while loops and threads stand still now and then: what fails is a race (nine minutes)
	$(BIN)/python -m pytest -p tests.stalls -n 8 --dist worksteal --timeout 300 -k "not runTest" $(OTHERS)

fuzz: $(DEV)  ## Parsers under a coverage-guided fuzzer for SECONDS=60, or one of them: TARGET=batch
	$(BIN)/python -m pip install --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz.coverage_guided --seconds $(SECONDS) $(if $(TARGET),--target $(TARGET))

soak: $(DEV)  ## A day in the life, compressed into MINUTES=30; a table of what grew
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES)

SUITE ?=
CHECKOUT ?=

suites: $(DEV)  ## Run the SDKs' own tests bare, wrapped and instrumented, or one's: SUITE=openai CHECKOUT=/path
	$(BIN)/python -m tests.suites $(SUITE) $(if $(CHECKOUT),--checkout $(CHECKOUT))

lint: $(DEV)  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(DEV)  ## Check types, strictly
	$(BIN)/mypy

bench: $(DEV)  ## Measure speed against peers in the same run; tables, and benchmarks/results.json
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks

check: lint types test postgres ray recipes frameworks node contract  ## All that has to pass

format: $(DEV)  ## Lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what the other targets made
	rm -rf $(VENV) $(OLD) $(WORKERS) $(RAY) $(FRAMES) $(FRAMES_PREVIOUS) $(CLIENTS) $(CONTRACT) .venv-suites .suites .demo .fuzz .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml | $(VENV)/bin/python
	@echo "Installing into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): pyproject.toml | $(VENV)/bin/python
	@echo "Installing development tools into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@ $(CORE)

$(PREVIOUS): pyproject.toml | $(VENV)/bin/python
	@echo "Installing previous versions of SDKs into $(OLD) ..."
	@$(VENV)/bin/python -m venv $(OLD)
	@$(OLD)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(OLD)/bin/python -m pip install --quiet --editable . --group sdks-previous
	@touch $@

$(RECIPES): pyproject.toml | $(VENV)/bin/python
	@echo "Installing what the recipes are run with into $(WORKERS) ..."
	@$(VENV)/bin/python -m venv $(WORKERS)
	@$(WORKERS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(WORKERS)/bin/python -m pip install --quiet --editable . --group recipes
	@touch $@

$(CONTRACT)/.installed: pyproject.toml
	@echo "Installing schemathesis into $(CONTRACT) ..."
	@$(BIN)/python -m venv --clear $(CONTRACT)
	@$(CONTRACT)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(CONTRACT)/bin/python -m pip install --quiet --group contract
	@touch $@

$(CLIENTS)/.installed: tests/node/package.json
	@command -v node >/dev/null && command -v npm >/dev/null || { echo "make node needs Node 20 or newer, and npm" >&2; exit 1; }
	@echo "Installing Node clients into $(CLIENTS) ..."
	@rm -rf $(CLIENTS) && mkdir $(CLIENTS) && cp tests/node/package.json $(CLIENTS)/
	@cd $(CLIENTS) && npm install --no-package-lock --no-audit --no-fund --loglevel=error >/dev/null
	@touch $@

# By uv: pip takes minutes for what is some hundreds of packages.
$(FRAMES)/.installed: GROUP = frameworks
$(FRAMES_PREVIOUS)/.installed: GROUP = frameworks-previous
$(RAY)/.installed: GROUP = ray-tests
$(FRAMES)/.installed $(FRAMES_PREVIOUS)/.installed $(RAY)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing $(GROUP) into $(@D) ..."
	@$(BIN)/python -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv
	@$(@D)/bin/uv pip install --quiet --python $(@D)/bin/python --editable . --group $(GROUP)
	@touch $@
