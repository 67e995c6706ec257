# make setup | demo | fast | test | slow | chaos | fuzz | fuzz-archives | fuzz-messages | lint | format | hashes | benchmark.
# Everything runs in .venv, which the first makes. What it installs has the hashes that requirements/ lists; where the
# package index has other builds of the same versions, make setup HASHES=no goes by constraints.txt alone.
PYTHON ?= python3
BIN := .venv/bin
N ?= 50
HASHES ?= yes
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --constraint constraints.txt

.PHONY: setup demo fast test slow lint format hashes chaos fuzz fuzz-archives fuzz-messages benchmark clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12 $(MAKECMDGOALS)" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
ifeq ($(HASHES),yes)
	$(PIP) --require-hashes --no-deps --requirement requirements/dev.txt
	@# A CPU build of torch where the index has one; else the public build, with its libraries for GPUs.
	$(PIP) --require-hashes --no-deps --requirement requirements/torch-cpu.txt 2>/dev/null \
	|| $(PIP) --require-hashes --no-deps --requirement requirements/torch.txt
	$(PIP) --no-deps --no-build-isolation --editable .
else
	$(PIP) --constraint constraints.txt --editable ".[dev]"
endif
	@touch $@

demo: setup
	$(BIN)/python jobs/demo.py --output demo

lint: setup # All of them run; it fails if any did.
	@failed=; \
	$(BIN)/ruff check . || failed="$$failed ruff-check"; \
	$(BIN)/ruff format --check --quiet . || failed="$$failed ruff-format(make_format)"; \
	$(BIN)/pyright --pythonpath $(BIN)/python || failed="$$failed pyright"; \
	$(BIN)/vulture || failed="$$failed vulture"; \
	[ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

format: setup
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

fast: lint # What starts neither Ray nor a job, and takes a moment.
	$(BIN)/python -m pytest -q -m "not slow and not ray and not lengthy" --numprocesses 2 --dist loadfile

test: lint
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

slow: setup
	$(BIN)/python -m pytest -m slow

chaos: setup
	PYTHONPATH=.:tests/support $(BIN)/python tests/chaos/trials.py --trials $(N)

fuzz: N = 500
fuzz: setup
	FUZZ_MUTANTS=$(N) $(BIN)/python -m pytest tests/preprocess/test_hostile_files.py -k mutants -s

fuzz-archives: N = 200000
fuzz-archives: setup
	FUZZ_ARCHIVES=$(N) $(BIN)/python -m pytest tests/storage/test_archives_fuzz.py -s

fuzz-messages: N = 200000
fuzz-messages: setup
	FUZZ_MESSAGES=$(N) $(BIN)/python -m pytest tests/sandbox/test_messages.py -k mutants -s

hashes: setup # After a change of constraints.txt or of dependencies: the hashes of all builds that the public index has.
	echo torch | $(COMPILE) --output-file requirements/torch.txt -
	@skipped=$$(sed -nE 's/^((torch|triton|cuda-|nvidia-)[^= ]*)==.*/--no-emit-package \1/p' requirements/torch.txt); \
	$(COMPILE) --extra dev $$skipped --output-file requirements/dev.txt pyproject.toml && \
	$(COMPILE) --extra cluster $$skipped --output-file requirements/cluster.txt pyproject.toml
	sed -i 's/ --no-emit-package .*//' requirements/*.txt

benchmark: setup
	$(BIN)/python jobs/benchmark.py all

clean:
	rm -rf .venv demo
