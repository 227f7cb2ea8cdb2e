# The verbs of this project. `make verify` and `make test` need nothing but a Python and the index.
PYTHON ?= python3
STACK ?=
BIN := .venv/bin

.PHONY: setup verify test lint types lock

setup:
	@$(PYTHON) ci/setup.py $(STACK)

verify: setup
	@$(BIN)/pytest scenarios

test: setup
	@$(BIN)/pytest

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	@$(BIN)/mypy

lock:
	@$(PYTHON) ci/setup.py --lock
