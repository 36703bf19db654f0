# `make up` runs perdure, `make test` proves it.  Both need only Python (3.11 or newer), venv and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEEDED = $(if $(SEED),--seed $(SEED))
# JSON names a directory: each campaign writes its figures to a file of its own there.
REPORTED = $(if $(JSON),$(shell mkdir -p $(JSON))--json $(JSON)/$(1).json)

.PHONY: up test check wheel crash kills powercut faults corruption many fuzz oracle year bench lock clean

up: $(VENV)/.run
	@exec $(BIN)/perdure up

test: $(VENV)/.dev check
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What others install: dist/perdure-VERSION-py3-none-any.whl.
wheel: $(VENV)/.run
	$(BIN)/python -m hatchling build -t wheel -d dist

# The long part of the proof; each of these prints its figures and stops at a loss.  SEED goes to each that draws
# anything (faults tries everything there is), JSON (a directory) to all of them.
crash: kills powercut faults corruption many

# Processes killed at random and at marked points.  Options: CYCLES, VICTIMS, POINTS, SEED, JSON.
kills: $(VENV)/.dev
	$(BIN)/python -m tests.crash --cycles $(or $(CYCLES),10000) $(if $(VICTIMS),--victims $(VICTIMS)) \
	    $(if $(POINTS),--points $(POINTS)) --date $(shell date -u +%F) $(call REPORTED,kills) $(SEEDED)

# Every legal image of the disk after a cut, over many workloads.  Options: WORKLOADS, SEED, JSON.
powercut: $(VENV)/.dev
	$(BIN)/python -m tests.powercut --workloads $(or $(WORKLOADS),5) $(call REPORTED,powercut) $(SEEDED)

# Every call that the store makes of its disk, failing.  Option: JSON.
faults: $(VENV)/.dev
	$(BIN)/python -m tests.faults $(call REPORTED,faults)

# Bits flipped in every page of a small store.  Options: FLIPS, SEED, JSON.
corruption: $(VENV)/.dev
	$(BIN)/python -m tests.corruption --flips $(or $(FLIPS),5000) $(call REPORTED,corruption) $(SEEDED)

# Conversations sprayed over four daemons that are killed, stopped and restarted; then rolling restarts.
# Options: TURNS, ROUNDS, SEED, JSON.
many: $(VENV)/.dev
	$(BIN)/python -m tests.many --turns $(or $(TURNS),20000) $(call REPORTED,spray) $(SEEDED)
	$(BIN)/python -m tests.many.rolling --rounds $(or $(ROUNDS),20) $(call REPORTED,rolling) $(SEEDED)

# Inputs changed for as long as one likes, guided by what they reach.  Options: SECONDS (per target), SEED, TARGETS,
# JSON.
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz $(TARGETS) --seconds $(or $(SECONDS),300) $(call REPORTED,fuzz) $(SEEDED)

# Years of days on a real store, of which rows and sessions grow old: a table per month.  Options: YEARS, SESSIONS, SEED.
year: $(VENV)/.dev
	$(BIN)/python -m tests.year --years $(or $(YEARS),3) --sessions $(or $(SESSIONS),20) $(SEEDED)

# What a turn's identity waits while the worker does something else.  Options: GIGABYTES, ROUNDS.
bench: $(VENV)/.dev
	$(BIN)/python -m bench.identity_latency --gigabytes $(or $(GIGABYTES),1) --rounds $(or $(ROUNDS),3)

# Generated conversations and look-alikes against the truth.  Options: CONVERSATIONS, PAIRS, SEED.
oracle: $(VENV)/.dev
	$(BIN)/python -m tests.oracle --conversations $(or $(CONVERSATIONS),5000) --pairs $(or $(PAIRS),100000) --seed $(or $(SEED),1)

# The lock files from pyproject.toml, with hashes: what runs, what it is tested with, what builds it.
lock: $(VENV)/.dev
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate -q pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate -q pyproject.toml --group dev -o requirements-dev.lock
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --no-annotate -q --group build -c requirements-dev.lock -o requirements-build.lock

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python requirements.lock requirements-build.lock pyproject.toml
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-build.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
