# make quickstart   set up .venv and train a recognizer from random weights (minutes)
# make test         set up .venv and run the tests
# make slow         run the tests that `make test` leaves out: they take minutes, or repeat fast tests with more cases
# make check        what CI runs: format, lint, types, tests
# make docs         regenerate the reference pages in docs/ and the golden files in tests/
# make benchmarks   measure start-up, memory, data loading and training, and compare with baselines (takes an hour)
PYTHON ?= python3
BIN := .venv/bin
# The models of tests are tiny, so one process per core is faster than threads. PYTHONDONTWRITEBYTECODE is cleared,
# because tests start hundreds of processes, and processes start faster if the modules of this clone are compiled.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 8 --dist worksteal

PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart setup test slow check docs benchmarks clean

quickstart: setup
	$(BIN)/tiny-audio run recipes/quickstart.yaml $(ARGS)

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tiny-audio needs Python 3.11 or newer, and this is " + sys.version.split()[0] + "; choose a newer Python: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(PIP) setuptools
	-$(PIP) uv
# --compile-bytecode: otherwise, tests would compile modules of other packages, and fail because of their warnings.
# uv installs several times faster than pip. But uv ignores pip's settings, such as mirrors. If uv fails, pip is used.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]' || $(PIP) -e '.[dev]'
	touch $@

test: setup
	$(PYTEST)

slow: setup
	$(BIN)/pytest -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

docs: setup
	$(BIN)/tiny-audio reference --output-dir docs
	$(BIN)/python -m tests.commands.golden
	REGENERATE=1 $(PYTEST) tests/*/test_messages.py tests/test_registry_messages.py tests/recipe/test_errors.py

benchmarks: setup
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/plan_memory.py
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/finetune.py

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
