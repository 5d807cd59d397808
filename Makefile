# `make` lists what there is. Everything runs in .venv, made at first use from hash-pinned requirements.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.SUFFIXES:

BIN := .venv/bin
PY := $(BIN)/python
PACKAGES := engine server workers gateway simnet client cli bench
# Extra words for the commands: make up ARGS="--workers 4", make test ARGS="-k cancel"
ARGS ?=

PROTOC = $(PY) -m grpc_tools.protoc -Iprotos --python_out=$(1) --grpc_python_out=$(1) \
	--plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=quiet:$(1) \
	--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc --mypy_grpc_out=quiet:$(1) protos/orders/v1/orders.proto

LOCK = uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-header --no-annotate --quiet pyproject.toml

.PHONY: help
help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

.PHONY: up
up: .venv/.installed ## Run the engine with everything it needs; Ctrl-C stops it all
	@exec $(BIN)/order-engine up $(ARGS)

.PHONY: test
test: .venv/.installed-dev ## Run the tests against embedded PostgreSQL and Valkey, or just those of ARGS
ifeq ($(ARGS),)
	@$(PY) -m pytest --numprocesses auto --dist loadfile --ignore tests/e2e
	@exec $(PY) -m pytest tests/e2e # By themselves: they kill and freeze what they watch by the clock.
else
	@exec $(PY) -m pytest $(ARGS)
endif

.PHONY: check
check: .venv/.installed-dev ## Run what reads the code without running it: lint, types, imports, contract
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(PACKAGES) tests
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code --path protos/orders
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; $(call PROTOC,"$$fresh"); \
		diff -r --exclude=__pycache__ generated/orders "$$fresh/orders" \
		|| { echo 'generated/ is not what protos/ make: run `make generate`' >&2; exit 1; }
	@echo 'generated/ is fresh'

.PHONY: bench
bench: .venv/.installed ## Measure orders a second, latency and CPU, and print where the time goes
	@exec $(PY) -m bench $(ARGS)

.PHONY: generate
generate: .venv/.installed-dev ## Make generated/, .env.example and the README's settings anew from what they follow
	$(call PROTOC,generated)
	$(PY) -c 'from engine.settings import env_example; print(env_example(), end="")' > .env.example
	$(PY) -c 'from engine.settings import settings_table; print(settings_table(), end="")' > README.settings
	sed -i.old -e '/<!-- settings -->/,/<!-- \/settings -->/{//!d}' -e '/<!-- settings -->/r README.settings' README.md
	rm README.settings README.md.old

.PHONY: lock
lock: ## Pin every dependency anew in requirements.txt and requirements-dev.txt (needs uv)
	@command -v uv > /dev/null || { echo 'make lock needs uv on the PATH' >&2; exit 2; }
	$(LOCK) --group build -o requirements.txt
	$(LOCK) --group dev -c requirements.txt -o requirements-dev.txt

.PHONY: clean
clean: ## Remove .venv and every cache; the data folder stays
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: requirements.txt pyproject.toml
	@$(call install,requirements.txt)

.venv/.installed-dev: requirements-dev.txt pyproject.toml
	@$(call install,requirements-dev.txt)
	@touch .venv/.installed

# A .venv that lacks pip was interrupted half way; one whose Python is gone cannot run it.
define install
$(PY) -m pip --version > /dev/null 2>&1 || { \
	for python in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do \
		"$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && break; \
		python=; \
	done; \
	[ -n "$$python" ] || { echo 'no python3 >= 3.11 with the venv module was found; install one first' >&2; exit 2; }; \
	"$$python" -m venv --clear .venv; \
}; \
echo 'Installing $(1) into .venv (once; about a minute)' >&2; \
$(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(1); \
$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .; \
touch $@
endef
