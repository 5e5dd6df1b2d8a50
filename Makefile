# Every target works on a fresh Linux machine with Python >= 3.11 and make; CI calls check and test as they stand here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
export OMP_NUM_THREADS := 1
unexport PYTHONDONTWRITEBYTECODE  # tests start hundreds of Pythons: each would compile advisor anew

.PHONY: demo test test-slow test-older check fix faults bench families clean

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --editable . --group dev
	touch $@

demo: $(BIN)/.installed  ## tune the shipped model on this machine's CPU and show what is recommended
	PYTHON=$(BIN)/python sh benchmarks/demo.sh

# Tests give wrong things on purpose, and know what is not None: of them mypy asks only whether what they import exists.
NAMES_ONLY := --implicit-reexport --no-warn-unused-ignores --allow-untyped-calls \
	$(addprefix --disable-error-code=,arg-type index operator union-attr type-var dict-item comparison-overlap \
	name-defined no-any-return var-annotated)

check: $(BIN)/.installed  ## lint, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy $(NAMES_ONLY) tests benchmarks
	$(BIN)/lint-imports

fix: $(BIN)/.installed  ## what a machine can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

PYTEST := -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test: $(BIN)/.installed  ## all tests but the slow ones, in two processes; GPU tests skip where there is no GPU
	$(BIN)/python $(PYTEST) -m "not slow"

test-slow: $(BIN)/.installed  ## what computes, compiles, imports or is killed again and again
	$(BIN)/python -m pytest -q -m slow

OLDER := .venv-older

$(OLDER)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDER)
	$(OLDER)/bin/pip install --quiet --upgrade 'pip>=25.1'
	$(OLDER)/bin/pip install --quiet --editable . 'transformers==5.17.*' --group dev
	touch $@

test-older: $(OLDER)/.installed  ## gate, worker, encoders and attention with the oldest transformers that is supported
	$(OLDER)/bin/python $(PYTEST) tests/test_gate.py tests/test_gate_parts.py tests/test_worker.py tests/test_encoders.py tests/test_attention.py

faults: $(BIN)/.installed  ## kill -9 of tunes and of the daemon, a host gone, a server away, a disk full, many jobs: some two hours
	$(BIN)/python tests/faults/kill.py --kills 20 --seed 0
	$(BIN)/python tests/faults/kill.py --kills 20 --seed 0 --postgresql
	$(BIN)/python tests/faults/together.py --tunes 4 --kills 20 --seed 0
	$(BIN)/python tests/faults/together.py --tunes 4 --kills 20 --seed 0 --postgresql
	$(BIN)/python tests/faults/daemon.py --kills 30 --seed 0 --write docs/faults.md

bench: $(BIN)/.installed  ## start-up times, and the gate's calibration in 100 runs
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/calibrate_gate.py --runs 100

families: $(BIN)/.installed  ## is the verdict right on every kind of model? some ten minutes on two cores
	$(BIN)/python benchmarks/families.py --write docs/families.md

clean:
	rm -rf $(VENV) $(OLDER) .demo
