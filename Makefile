# All that a newcomer needs: `make demo` and `make test` set up everything themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-all soak check format bench wheel clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(STAMP)  ## run the quickstart suite, draw its figures, check its claims, write the report
	$(BIN)/raybench run quickstart
	$(BIN)/raybench verify results --suite quickstart
	$(BIN)/raybench report results --suite quickstart

test: $(STAMP)  ## the default tests, some 12 minutes on 2 cores
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow"

test-all: $(STAMP)  ## every test, under 40 minutes on 2 cores, the slowest listed at the end
	$(BIN)/python -m pytest -q -n 2 --dist worksteal --durations 25

soak: $(STAMP)  ## minutes of kills at random moments: is a run lost, double or different?
	$(BIN)/python tests/soak.py

check: $(STAMP)  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## runs per second, overhead and memory, beside Ray Tune, joblib and plain loops
	$(BIN)/raybench bench

wheel: $(STAMP)  ## build dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove what the targets made, but for results
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache
