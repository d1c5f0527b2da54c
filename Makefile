# Two commands, each alone on a fresh clone: `make demo` and `make test`. Both set up .venv on first use and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOORS := .venv-floors
BUILD := .venv-build
# More for pytest, such as PYTEST_ARGS='-k parser'.
PYTEST_ARGS ?=
# Two processes of one thread each; tests that start two more share one of them (see tests/conftest.py).
PYTEST := -m pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

.PHONY: setup demo test test-reliability test-floors lint docs dist clean

setup: $(VENV)/.ready

# Made anew when the dependencies change. The stamp is written last, so a broken set-up is not taken for a whole one.
$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# Many kills, signals and stops of real processes; see docs/reliability.md.
test-reliability: setup
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST) -m reliability

# The tests on the lowest versions that setup.cfg allows, in an environment of its own.
test-floors: $(FLOORS)/.ready
	OMP_NUM_THREADS=1 $(FLOORS)/bin/python $(PYTEST)

$(FLOORS)/.ready: setup.cfg pyproject.toml tests/floors.py
	$(PYTHON) -m venv --clear $(FLOORS)
	$(FLOORS)/bin/python -m pip install --quiet --upgrade pip
	$(PYTHON) tests/floors.py > $(FLOORS)/floors.txt
	$(FLOORS)/bin/python -m pip install --quiet --constraint $(FLOORS)/floors.txt --editable '.[demo,dev]'
	touch $@

# The site, in site/; any warning fails.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -E -q docs site

$(VENV)/.docs: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

# sdist and wheel, in dist/. The wheel is built from the sdist, so that nothing left in build/ gets into it.
dist: $(BUILD)/.ready
	rm -rf build dist *.egg-info
	$(BUILD)/bin/python -m build

$(BUILD)/.ready:
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/python -m pip install --quiet --upgrade pip build
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ickd_pl

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
