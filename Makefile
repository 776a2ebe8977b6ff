# One vocabulary of tasks for people, hooks and CI.
#   make demo            the whole route on Fashion-MNIST, or on your own folder: make demo IMAGES=/path/to/folder
#   make stop | clean    stop what the demo left running | remove what it stored (asks first)
#   make images          build the images of the stack in containers
#   make up | down       start the stack in containers and say where it is | stop it; nothing stored is lost
#   make k8s-check       the manifests of k8s/, rendered, validated and judged by a policy linter
#   make test | lint     what must be green before a change lands; make test-e2e: the same in containers and a browser
#   make bench-serving   our server against the others of its kind; make soak-serving: half an hour of it, with swaps
#   make soak            every stage killed at random moments, 100 times and more; the store taken away from every stage
SHELL := /bin/sh
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECKOV := .venv-checkov
export IMAGES ?=
DETACH ?=
KILLS ?= 100
SECONDS ?= 60
DOCKER ?= docker
COMPOSE ?= $(DOCKER) compose
QUIET_RUN = $(COMPOSE) --progress quiet run --rm --no-deps --no-TTY
SECRET ?=
PEERS ?=
FROM ?=
STACK_TAG ?= dev
K8S_SECRETS = k8s/overlays/local/secrets
# What the images are labelled with; the commit's time and not the clock's, so that the same code gives the same image.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
REVISION = $(shell git describe --always --abbrev=40 --exclude='*' --dirty 2>/dev/null)
CREATED = $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)

.PHONY: help install images image-pipeline image-serving image-gateway up down secrets rotate k8s-secrets k8s-rotate demo stop clean test test-e2e soak fuzz bench-serving soak-serving lint k8s-check format constraints preflight

help: ## show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

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

images: image-gateway image-serving image-pipeline ## build safelight/{pipeline,serving,gateway}:dev (STACK_TAG=, BASE=, TORCH_INDEX_URL=)

image-pipeline image-serving: CONTEXT = .
image-pipeline: DOCKERFILE = pipeline/Dockerfile
image-serving: DOCKERFILE = serving/Dockerfile
image-gateway: DOCKERFILE = serving/gateway/Dockerfile
image-gateway: CONTEXT = serving/gateway
image-pipeline image-serving image-gateway:
	DOCKER_BUILDKIT=1 $(DOCKER) build --file $(DOCKERFILE) --tag safelight/$(@:image-%=%):$(STACK_TAG) \
	  --build-arg BASE --build-arg TORCH_INDEX_URL \
	  --build-arg VERSION=$(VERSION) --build-arg REVISION=$(REVISION) --build-arg CREATED=$(CREATED) $(CONTEXT)

up: ## start the stack in containers, wait until all of it is healthy, say where it is (STACK_BIND=address)
	@for each in pipeline serving gateway; do \
	  $(DOCKER) image inspect safelight/$$each:$(STACK_TAG) >/dev/null 2>&1 || $(MAKE) image-$$each || exit; \
	done
	@$(QUIET_RUN) secrets write # refuses a STACK_BIND before anything that runs is touched
	@chosen=$$($(COMPOSE) config --environment) || exit; \
	value() { printf '%s\n' "$$chosen" | sed -n "s/^$$1=//p"; }; \
	host=$$(value STACK_HOST); bind=$$(value STACK_BIND); \
	case "$${host:-$$bind}" in '') host=localhost;; 0.0.0.0 | '[::]') host=$$(hostname);; *) host=$${host:-$$bind};; esac; \
	STACK_HOST=$$host $(COMPOSE) up --detach --wait --no-build || exit; \
	show() { port=$$($(COMPOSE) port $$2 $$3 2>/dev/null) && printf '%-16s http://%s:%s%s\n' "$$1" "$$host" "$${port##*:}" "$$4"; }; \
	show 'Prefect UI' prefect-server 4200; show 'inference' gateway 8080; show '  its API' gateway 8080 /docs; \
	show 'object store' object-store 9000; show '  its console' object-store 9001; show 'Grafana' grafana 3000; \
	echo "'make secrets' shows users and passwords; 'make down' stops it all and keeps what is stored."

down: ## stop the stack in containers; what is stored stays
	@$(COMPOSE) --profile '*' down

secrets: ## show the users and passwords of the stack in containers
	@$(QUIET_RUN) secrets show

k8s-secrets: $(VENV)/.installed ## make the secrets of the stack in Kubernetes, as files for k8s/overlays/local, and show them
	@$(BIN)/python -m pipeline.cluster_secrets $(K8S_SECRETS) write
	@$(BIN)/python -m pipeline.cluster_secrets $(K8S_SECRETS) show

k8s-rotate: $(VENV)/.installed ## replace one of them (SECRET=name), and say how the cluster gets it
	@$(BIN)/python -m pipeline.cluster_secrets $(K8S_SECRETS) rotate "$(SECRET)"

rotate: ## replace a secret of the stack (SECRET=name, FROM=file with your own) and start anew what uses it
	@DOCKER="$(DOCKER)" COMPOSE="$(COMPOSE)" pipeline/rotate-secret "$(SECRET)" "$(FROM)"

test: $(VENV)/.installed-dev ## unit and integration tests, on a real object store and a real Prefect
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

test-e2e: $(VENV)/.installed-dev ## the stack in containers, used by a real browser, killed, and knocked at by strangers (needs Docker and Chromium)
	DOCKER="$(DOCKER)" $(BIN)/python -m pytest tests/e2e

soak: $(VENV)/.installed-dev ## kill every stage 100 times or KILLS=..., verifying each time; then take the store away from each
	SAFELIGHT_SOAK_KILLS=$(KILLS) OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -s tests/integration/test_soak.py
	SAFELIGHT_SOAK_OUTAGES=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q -s tests/integration/test_outage.py

bench-serving: $(VENV)/.installed ## our server against LitServe, BentoML, Ray Serve, MLServer, mosec (needs wrk, h2load; PEERS=folder)
	$(BIN)/python -m benchmarks.serving --overload $(if $(PEERS),--environments "$(PEERS)")
	$(BIN)/python -m benchmarks.serving --model resnet18 --overload $(if $(PEERS),--environments "$(PEERS)")

soak-serving: $(VENV)/.installed-dev ## half an hour at 80 % of what the server can, with another version every 20 s (MINUTES=)
	$(BIN)/python -m benchmarks.serving_soak --minutes $(or $(MINUTES),30)

fuzz: $(VENV)/.installed-dev ## feed the image decoder with mutated files for SECONDS=60 (needs a wheel of atheris)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	mkdir -p $(VENV)/corpus && PYTHONPATH=tests $(BIN)/python tests/fuzz/fuzz_decode.py $(VENV)/corpus -max_total_time=$(SECONDS)

lint: $(VENV)/.installed-dev ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint pipeline/Dockerfile serving/Dockerfile serving/gateway/Dockerfile

# It wants other versions of what we use ourselves.
$(CHECKOV)/.installed: Makefile | preflight
	$(PYTHON) -m venv $(CHECKOV)
	$(CHECKOV)/bin/python -m pip install --quiet --disable-pip-version-check 'checkov==3.3.30'
	@touch $@

k8s-check: $(VENV)/.installed-dev $(CHECKOV)/.installed ## render k8s/ with every overlay and combination, validate it, judge it
	$(BIN)/python -m pytest -q tests/unit/test_manifests*.py
	@rm -rf $(CHECKOV)/rendered
	$(BIN)/python tests/manifests.py $(CHECKOV)/rendered
	$(CHECKOV)/bin/checkov --config-file k8s/.checkov.yaml --directory $(CHECKOV)/rendered

format: $(VENV)/.installed-dev ## put the code into the one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

constraints: $(VENV)/.installed-dev ## renew constraints.txt from the newest versions that work together
	$(PYTHON) -m venv $(VENV)-fresh
	$(VENV)-fresh/bin/python -m pip install --quiet '.[pipeline,serving,dev]' 'prefect==3.8.8' 'fastapi>=0.139,<0.151'
	( head -n 2 constraints.txt; $(VENV)-fresh/bin/python -m pip freeze --exclude safelight | sort -f ) > constraints.new
	mv constraints.new constraints.txt
	rm -r $(VENV)-fresh
