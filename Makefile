# make setup | demo | test | slow | chaos | fuzz | lint | benchmark. Everything runs in .venv, which the first of them makes.
PYTHON ?= python3
BIN := .venv/bin
N ?= 50

.PHONY: setup demo test slow lint chaos fuzz benchmark clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12 $(MAKECMDGOALS)" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup
	$(BIN)/python jobs/demo.py --output demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --durations 20

slow: setup
	$(BIN)/python -m pytest -m slow

chaos: setup
	PYTHONPATH=.:tests/support $(BIN)/python tests/chaos/trials.py --trials $(N)

fuzz: N = 500
fuzz: setup
	FUZZ_MUTANTS=$(N) $(BIN)/python -m pytest tests/preprocess/test_hostile_files.py -k mutants -s

benchmark: setup
	$(BIN)/python jobs/benchmark.py all

clean:
	rm -rf .venv demo
