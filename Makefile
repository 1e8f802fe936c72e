# Everything a contributor needs. `make` alone lists the targets.
#
# The tools live in .venv and come from requirements/*.txt, where every file is
# pinned by its hash. After the first time nothing here needs the network.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
ARGS ?=
DATA ?=
SEED ?=
SEEDS ?= 1000
PROCESSES ?= $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')

# Compiling half a thousand modules anew costs every process more than a second: where the
# environment says not to keep what was compiled, it is kept all the same (`.gitignore` knows it).
export PYTHONDONTWRITEBYTECODE :=

BIN := .venv/bin
LOCKS := requirements/build.txt requirements/runtime.txt requirements/gateway.txt requirements/dev.txt
# The environment is as it should be while this file is newer than what it was made from.
INSTALLED := .venv/.installed
# Named, because uv prefers an environment that the shell has activated.
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python
COMPILE := $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-config --custom-compile-command "make lock"
RIVALS := $(basename $(notdir $(wildcard requirements/rivals/*.in)))
COMPOSE := docker compose --env-file deploy/.env

## help      list the targets
.PHONY: help
help:
	@sed -n 's/^## /  make /p' Makefile

## install   make .venv; a second run does nothing and needs no network
.PHONY: install
install: $(INSTALLED)

# All output goes to stderr: `make demo | tail -1` must be the demo's last line alone.
$(INSTALLED): $(LOCKS) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
		echo "Kizashi needs Python 3.11 or 3.12. Name one: make install PYTHON=python3.11" >&2; \
		exit 1; }
	@echo "Installing into .venv …" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
		--requirement requirements/build.txt >&2
	@$(INSTALL) --require-hashes --requirement requirements/runtime.txt \
		--requirement requirements/gateway.txt --requirement requirements/dev.txt >&2
	@# The build backend is already here, so this step never asks the network for one.
	@$(INSTALL) --no-deps --no-build-isolation --editable . >&2
	@touch $@

## demo      run the demo; ARGS="--for 60 --json" is handed on
.PHONY: demo
demo: install
	@$(BIN)/kizashi demo $(ARGS)

## screenshots  the page's pictures in docs/images, taken with the system's Chromium
.PHONY: screenshots
screenshots: install
	@$(BIN)/python -m tests.screenshots

## check     formatting, lint and strict types
.PHONY: check
check: install
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

## test      check, then every test; ARGS="-k config -n 0" is handed on to pytest
.PHONY: test
test: check
	@# A file stays with one process, and with it its broker and its engine. One process more
	@# than cores, for while the others wait for theirs.
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

## simulate  the delivery protocol under drawn faults: SEEDS=20000, or SEED=123 for one in full
.PHONY: simulate
simulate: install
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

## kafka     fetch the Kafka broker that tests and `demo --kafka` start (Java 17, Maven)
.PHONY: kafka
kafka: install
	@$(BIN)/python -c 'from pipeline.broker import fetch_jars; print(fetch_jars())' >&2

## bench     us and the others over a real broker, into docs/performance.md (an hour)
.PHONY: bench
bench: install
	@$(BIN)/python -m benchmarks.wire --document docs/performance.md $(ARGS)

## bench-quick  reading, encoding and the whole job, once; ARGS="--json" as with bench
.PHONY: bench-quick
bench-quick: install
	@$(BIN)/python -m benchmarks.wire --quick $(ARGS)

## bench-gateway  the gateway beside LiteLLM's proxy; ARGS="--json"
.PHONY: bench-gateway
bench-gateway: install
	@$(BIN)/python -m benchmarks.gateway $(ARGS)

## evaluate  the detectors on real data, into docs/detection.md: DATA=folder ARGS="--quick --json"
.PHONY: evaluate
evaluate: install
	@$(BIN)/python -m benchmarks.evaluate $(if $(DATA),--data "$(DATA)") \
		--document docs/detection.md $(ARGS)

## chaos     Kafka, workers and ClickHouse killed in every way: SECONDS=120 SEED=1 ARGS="--json"
.PHONY: chaos
chaos: install
	@$(BIN)/python -m tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(SEED),--seed $(SEED)) $(ARGS)

## sbom      a bill of materials of what is shipped, as CycloneDX, on stdout
.PHONY: sbom
sbom: install
	@$(BIN)/python deploy/supply_chain.py sbom

## audit     ask whether an advisory speaks of what is shipped; needs the network
.PHONY: audit
audit: install
	@$(BIN)/python deploy/supply_chain.py audit

## up        the whole stack in containers; passwords are made once, in deploy/.env
.PHONY: up
up:
	@deploy/make-passwords deploy/.env
	$(COMPOSE) up --build --detach --wait

## down      stop the stack; its data stays in the named volumes
.PHONY: down
down:
	$(COMPOSE) down

## lock      resolve the requirement files anew from pyproject.toml
.PHONY: lock
lock: install
	$(COMPILE) pyproject.toml --output-file requirements/runtime.txt
	$(COMPILE) pyproject.toml --extra gateway --constraint requirements/runtime.txt \
		--output-file requirements/gateway.txt
	$(COMPILE) --group dev --constraint requirements/runtime.txt \
		--constraint requirements/gateway.txt --output-file requirements/dev.txt
	$(COMPILE) --group build --constraint requirements/runtime.txt \
		--constraint requirements/dev.txt --output-file requirements/build.txt
	$(COMPILE) pyproject.toml --extra transformers --constraint requirements/runtime.txt \
		--output-file requirements/transformers.txt
	@# The rivals have an environment each, and so no versions in common with us.
	for name in $(RIVALS); do \
		$(COMPILE) requirements/rivals/$$name.in \
			--output-file requirements/rivals/$$name.txt || exit; \
	done

## clean     remove what make made; collected data (kizashi-data) stays
.PHONY: clean
clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist
	find . -path ./.git -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -print0 \
		| xargs -0 rm -rf
