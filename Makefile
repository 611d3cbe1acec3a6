# Every target installs what it needs into .venv by itself; only Python >= 3.10 and make have to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1  # two busy processes of two threads each are many times slower than of one

.PHONY: help demo test lint docs screenshots notebooks format clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

demo: $(VENV)/.ready  ## train and stress-test transformers that differ in their attention, write runs/demo/report.html (options: make demo ARGS="--quick")
	$(BIN)/vars-ode demo $(ARGS)

test: $(VENV)/.ready  ## run the tests on all cores, one thread each (one process: make test ARGS="-n 0")
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(VENV)/.ready  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs-ready  ## build the documentation site in docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

screenshots: docs  ## render report, convergence page and documentation at desktop and phone width, where chromium is installed (options: make screenshots ARGS=runs/demo/report.html)
	$(BIN)/python docs/screenshots.py $(ARGS)

notebooks: $(VENV)/.ready  ## run the notebooks in examples/ and keep their outputs (options: make notebooks ARGS=quickstart)
	$(BIN)/python examples/execute.py $(ARGS)

$(VENV)/.docs-ready: $(VENV)/.ready
	$(BIN)/python -m pip install --editable ".[docs]"
	touch $@

format: $(VENV)/.ready  ## rewrite in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches, not the results
	rm -rf $(VENV) build docs/_build docs/examples *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
