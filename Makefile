# make demo   the app on the bundled model, in a fresh virtual environment
# make test   every check that needs no GPU: lint, types, import contracts, tests
# make test-gpu   the tests marked gpu, on a machine that has one

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test check pytest test-gpu

demo: $(VENV)/runtime.done
	$(BIN)/python -m app

test: check pytest

check: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error
	$(BIN)/lint-imports

# One thread in each of the two workers: twice two threads on two cores wait for one another.
pytest: $(VENV)/dev.done
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

test-gpu: $(VENV)/dev.done
	$(BIN)/python -m pytest -m gpu

$(VENV)/runtime.done: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.txt
	touch $@

$(VENV)/dev.done: $(VENV)/runtime.done pyproject.toml
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@
