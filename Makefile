# Two commands for a newcomer: `make quickstart` and `make test`. Both set everything up first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
RUNS := runs/quickstart
# Tests run in so many processes; what one leaves idle, the other takes.
TEST_PROCESSES ?= -n 2 --dist worksteal
# What benchmarks/ compares with is installed apart. One of them needs Python 3.12.
PYTHON312 ?= python3.12
PEERS := .venv-bench

.PHONY: quickstart test test-wheel check bench lock clean

quickstart: $(READY)
	$(BIN)/reasoning-jax train --config=configs/quickstart.py:objective=bc --workdir=$(RUNS)/bc
	$(BIN)/reasoning-jax train --config=configs/quickstart.py:objective=mle --workdir=$(RUNS)/mle
	$(BIN)/reasoning-jax train --config=configs/quickstart.py:objective=sequencematch \
	  --workdir=$(RUNS)/sequencematch
	$(BIN)/reasoning-jax report $(RUNS)/sequencematch $(RUNS)/bc $(RUNS)/mle --out=$(RUNS)/report.html

test: $(READY)
	$(BIN)/python -m pytest $(TEST_PROCESSES)

# What users of the package get: a wheel in an environment of its own, tested from outside the tree.
# WHEEL_TESTS says which tests, by default all.
WHEEL_TESTS ?=
test-wheel:
	rm -rf build
	$(PYTHON) -m venv build/venv
	build/venv/bin/pip install --quiet --no-deps --require-hashes -r requirements-lock.txt
	build/venv/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/dist .
	build/venv/bin/pip install --quiet --no-deps build/dist/*.whl
	venv=$$PWD/build/venv && outside=$$(mktemp -d) && trap 'rm -rf "$$outside"' EXIT && \
	  cp -R tests configs docs benchmarks *.md LICENSE Makefile pyproject.toml "$$outside" && \
	  cd "$$outside" && "$$venv/bin/python" -m pytest $(TEST_PROCESSES) $(WHEEL_TESTS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/pyright --pythonpath $(BIN)/python

# A peer that cannot be installed ends nothing: the table says why. JSON beside the table, in runs/.
bench: $(READY)
	$(BIN)/python -m benchmarks.peers --into=$(PEERS) --python=$(PYTHON) --python312=$(PYTHON312)
	$(BIN)/python -m benchmarks.speed --peers=$(PEERS) --out=runs/bench.json

# The lock holds every version with hashes, for Python 3.11 and up; no index address stands in it.
lock:
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra gguf --universal --generate-hashes \
	  --no-annotate --no-header --fork-strategy requires-python \
	  --python-version 3.11 --override requirements-overrides.txt --output-file requirements-lock.txt

clean:
	rm -rf $(VENV) $(PEERS) runs build dist *.egg-info

$(READY): requirements-lock.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-lock.txt
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@
