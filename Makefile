# The verbs of this project. They need nothing but a Python and the package index.
PYTHON ?= python3
# STACK=0.21, 0.22, 0.26 or 0.32: pinned. Any other pair of releases is resolved when it is asked
# for: 0.29, 0.33+0.32, 0.32+0.32.0.dev20261024, latest, nightly. Or
# path:<vllm checkout>[,<tpu-inference checkout>], or installed: what PYTHON has.
STACK ?=
# STREAMER=0.17.0: a Run:ai streamer other than the one that tpu-inference pins.
STREAMER ?=
# DAYS=7: make prune leaves what was used since.
DAYS ?= 0
# TARGET=emulated, torch-xla, gpu or tpu.
TARGET ?= emulated
# EXPECT=known: exactly the known upstream failures of the stack must happen; equal: none may. The
# releases with the bug are to fail unless asked otherwise.
EXPECT ?= $(if $(filter 0.21,$(STACK)),equal,known)
# FAMILIES=all: every row, so every family in every storage, tensor and expert parallel.
FAMILIES ?= chosen
# Workers of make verify; on a TPU they would divide its chips.
WORKERS ?= $(if $(filter tpu,$(TARGET)),0,2)
SETUP := $(PYTHON) ci/setup.py --target $(TARGET) $(if $(STREAMER),--streamer $(STREAMER))

.PHONY: help setup verify test canary fixed full check quick lint types soak bench docs wheel lock prune
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## these lines
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

# Each verb asks ci/setup.py for the environment, which makes it when it is not there.
setup: ## the environment of STACK, where it is not there yet
	@$(SETUP) $(STACK)

verify: ## the scenarios of STACK on TARGET
	@bin=$$($(SETUP) $(STACK))/bin && $$bin/pytest scenarios -n $(WORKERS) --target=$(TARGET) --expect=$(EXPECT) --families=$(FAMILIES) $(if $(filter path:%,$(STACK)),--stack=$(STACK))

# Every test: the canary on the releases with the bug, the fix taken back where it was made first,
# then everything on the default stack.
test: canary fixed full ## every test: the three verbs below

UPSTREAM := tests/on_stack/test_contract.py tests/on_stack/test_audit_installed.py tests/on_stack/test_audit_run.py

canary: ## the scenarios, and the tests of upstream's calls, on vLLM 0.21
	@bin=$$($(SETUP) 0.21)/bin && $$bin/pytest scenarios $(UPSTREAM) -n 2 --expect=known

fixed: ## the tests of upstream's calls on vLLM 0.22
	@bin=$$($(SETUP) 0.22)/bin && $$bin/pytest $(UPSTREAM) -n 2

# What counts processes, or measures time, runs with nothing beside it, and first: the reports that
# a session leaves are then those of all the rest.
full: ## every test, and the scenarios, on STACK
	@bin=$$($(SETUP) $(STACK))/bin || exit; \
	$$bin/pytest tests -m alone --expect=known; alone=$$?; \
	$$bin/pytest -m "not alone" -n 2 --expect=known --families=$(FAMILIES) && exit $$alone

check: lint types quick ## what to run before each commit: lint, types and the quick tests

quick: ## the tests that need neither the stack nor seconds
	@bin=$$($(SETUP))/bin && $$bin/pytest tests --ignore=tests/on_stack --ignore=tests/repository -m "not slow and not alone" -n 2

lint: ## ruff: rules and format; import-linter: the order of imports
	@bin=$$($(SETUP))/bin && $$bin/ruff check . && $$bin/ruff format --check . && $$bin/lint-imports --no-logo --no-cache

types: ## mypy, strict
	@bin=$$($(SETUP))/bin && $$bin/mypy

# Loads of faultless checkpoints, streamed in every way: a finding in one is the harness's own fault.
soak: ## 50 clean loads on STACK, of which none may have a finding
	@bin=$$($(SETUP) $(STACK))/bin && PYTHONPATH=. $$bin/python ci/clean_runs.py --runs 50

# Each benchmark with its defaults, in turn; the first that fails ends it.
bench: ## every script under benchmarks/
	@bin=$$($(SETUP) $(STACK))/bin && for script in $(filter-out benchmarks/loads.py,$(wildcard benchmarks/*.py)); do echo "$$script"; PYTHONPATH=. $$bin/python $$script || exit; done

# A link that leads nowhere, or a page that is not in the navigation, is an error.
docs: ## docs/ as a site, into site/
	@$$($(SETUP) --docs)/bin/mkdocs build --strict

# Nothing of this checkout or of a stack is in that environment.
wheel: ## the wheel, into dist/, installed in an environment of its own and tried
	@uv=$$($(PYTHON) ci/setup.py --uv) && rm -rf dist && $$uv build --quiet --out-dir dist && \
	$$uv venv --quiet --clear --python $(PYTHON) dist/env && \
	$$uv pip install --quiet --python dist/env/bin/python dist/*.whl && \
	cd dist && env/bin/harness --version && env/bin/harness schema >report.schema.json && \
	env/bin/harness families >families.txt && ls -l *.whl

lock: ## the requirements of every stack, compiled anew
	@$(SETUP) --lock

prune: ## remove the environments of pairs that are not pinned
	@$(SETUP) --prune $(DAYS)
