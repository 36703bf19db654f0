# `make up` runs perdure, `make test` proves it.  Both need only Python (3.11 or newer), venv and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: up test check crash oracle lock clean

up: $(VENV)/.run
	@exec $(BIN)/perdure up

test: $(VENV)/.dev check
	$(BIN)/python -m pytest --durations=10

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The long kill campaign.  Options: CYCLES, SEED.
crash: $(VENV)/.dev
	$(BIN)/python -m tests.crash --cycles $(or $(CYCLES),1000) $(if $(SEED),--seed $(SEED))

# Generated conversations and look-alikes against the truth.  Options: CONVERSATIONS, PAIRS, SEED.
oracle: $(VENV)/.dev
	$(BIN)/python -m tests.oracle --conversations $(or $(CONVERSATIONS),5000) --pairs $(or $(PAIRS),100000) --seed $(or $(SEED),1)

# Both lock files from pyproject.toml, with hashes.
lock: $(VENV)/.dev
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate -q pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate -q pyproject.toml --group dev -o requirements-dev.lock

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python requirements.lock pyproject.toml
	$(BIN)/python -m pip install -q --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(BIN)/python -m pip install -q --require-hashes -r requirements-dev.lock
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
