# One vocabulary of tasks for people, hooks and CI.
#   make demo            the whole route on Fashion-MNIST, or on your own folder: make demo IMAGES=/path/to/folder
#   make stop | clean    stop what the demo left running | remove what it stored (asks first)
#   make test | lint     what must be green before a change lands
#   make soak            every stage killed at random moments, 100 times and more; the store taken away from every stage
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export IMAGES ?=
DETACH ?=
KILLS ?= 100

.PHONY: help install demo stop clean test soak lint format constraints preflight

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

preflight:
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "safelight: there is no $(PYTHON): install Python 3.11 or newer, or run 'make PYTHON=/path/to/python3.11'." >&2; exit 1; }
	@if [ -e $(VENV)/.installed ]; then $(PYTHON) pipeline/preflight.py --installed; else $(PYTHON) pipeline/preflight.py; fi

$(VENV)/.installed: pyproject.toml constraints.txt | preflight
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,serving]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,serving,dev]'
	@touch $@

install: $(VENV)/.installed ## create .venv and install the pipeline and the server

demo: $(VENV)/.installed ## import, prepare, train, evaluate, register, promote, deploy, ask (IMAGES=folder, DETACH=1)
	@$(BIN)/safelight demo $(if $(IMAGES),--images "$$IMAGES") $(if $(DETACH),--detach)

stop: ## stop everything that 'make demo DETACH=1' left running
	@if [ -x $(BIN)/safelight ]; then $(BIN)/safelight demo --stop; else echo "safelight: nothing is installed, so nothing runs."; fi

clean: ## stop everything and remove what was stored, after asking
	@if [ -x $(BIN)/safelight ]; then $(BIN)/safelight demo --clean; else echo "safelight: nothing is installed, so nothing is stored."; fi

test: $(VENV)/.installed-dev ## unit and integration tests, on a real object store and a real Prefect
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

soak: $(VENV)/.installed-dev ## kill every stage 100 times or KILLS=..., verifying each time; then take the store away from each
	SAFELIGHT_SOAK_KILLS=$(KILLS) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -s tests/integration/test_soak.py
	SAFELIGHT_SOAK_OUTAGES=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -s tests/integration/test_outage.py

lint: $(VENV)/.installed-dev ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## put the code into the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(VENV)/.installed-dev ## renew constraints.txt from the newest versions that work together
	$(PYTHON) -m venv $(VENV)-fresh
	$(VENV)-fresh/bin/python -m pip install --quiet '.[pipeline,serving,dev]' 'prefect==3.8.8' 'fastapi>=0.139,<0.151'
	( head -n 2 constraints.txt; $(VENV)-fresh/bin/python -m pip freeze --exclude safelight | sort -f ) > constraints.new
	mv constraints.new constraints.txt
	rm -r $(VENV)-fresh
