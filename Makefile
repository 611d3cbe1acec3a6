# Every target installs what it needs into .venv by itself; only Python >= 3.10 and make have to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1  # two busy processes of two threads each are many times slower than of one

.PHONY: help demo test lint format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

demo: $(VENV)/.ready  ## train and stress-test twin transformers, write runs/demo/report.html (options: make demo ARGS="--quick")
	$(BIN)/vars-ode demo $(ARGS)

test: $(VENV)/.ready  ## run the tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.ready  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready  ## rewrite in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches, not the results
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
