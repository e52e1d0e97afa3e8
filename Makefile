# `make help` lists the targets. Everything happens in .venv; nothing else is needed but Python and make.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo pictures submit test test-fast test-cluster test-server bench-data bench-sweep bench-cluster bench-server system-packages lint format types coverage constraints clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

install: .venv/.installed ## Make .venv and install lzsweep with the tested versions

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "lzsweep needs Python >= 3.11; say which one: make PYTHON=python3.12 install"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --group dev --editable .
	@touch $@

submit: install ## Put a ready-made sweep on the Slurm cluster: make submit SWEEP=cluster
	@test -n "$(SWEEP)" || { echo "say which sweep of sweeps/: make submit SWEEP=cluster"; exit 2; }
	$(BIN)/lzsweep submit sweeps=$(SWEEP)

demo: install ## Run a real sweep on the bundled games: ten trials, under five minutes
	$(BIN)/lzsweep -m sweeps=demo

pictures: install system-packages ## Take the pictures of the docs anew, from a real sweep
	$(BIN)/python -m docs.pictures

test: install system-packages ## Run the test suite
	$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

test-fast: install ## Run the tests that take seconds
	$(PYTEST) -m "not slow and not engine and not gpu"

test-cluster: install system-packages ## Run the tests on a Slurm of two nodes, which they start
	CI=true $(PYTEST) tests/cluster

test-server: install system-packages ## Run the tests that start servers and a browser
	CI=true $(PYTEST) -m server

bench-data: install system-packages ## Measure reading, decoding and training beside named peers
	$(BIN)/python -m benchmarks.data

bench-sweep: install build/bench/peers/.venv/.installed ## Measure sweeps beside the stock sweeper, joblib and Ray Tune (half an hour)
	$(BIN)/python -m benchmarks.sweep

build/bench/peers/.venv/.installed: benchmarks/peers/requirements.txt pyproject.toml constraints.txt | install
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python build/bench/peers/.venv
	$(BIN)/uv pip install --quiet --compile-bytecode --python build/bench/peers/.venv/bin/python --constraint constraints.txt \
		--requirements benchmarks/peers/requirements.txt --editable .
	@touch $@

bench-cluster: install system-packages ## Measure sweeps on a Slurm cluster beside the stock sweeper (a quarter of an hour)
	$(BIN)/python -m benchmarks.cluster

bench-server: install ## Measure the server: ready beside MLflow's own command, under 32 clients, at 1,000 runs
	$(BIN)/python -m benchmarks.serving

# Tests of the engine, the cluster and the pages need programs of the system; without root they
# are left out. No daemon of these packages needs to run: the tests start their own.
system-packages:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		for package in leela-zero gnugo chromium slurm-wlm munge slurmdbd mariadb-server; do \
			dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; \
		done; \
		if [ -n "$$missing" ]; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
		fi; \
	fi

lint: install ## Check format, lint and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install ## Check the types
	$(BIN)/mypy

coverage: install ## Run the tests that take seconds and show what they leave out
	$(PYTEST) -m "not slow and not engine and not gpu" --cov=lzsweep --cov-report=term-missing:skip-covered

constraints: ## Write the installed versions into constraints.txt
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | grep -vE '^(uv|pip|setuptools)==' > constraints.txt

clean: ## Remove what building and testing left
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage
