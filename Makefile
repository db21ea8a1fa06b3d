# Two commands do everything on a fresh machine: 'make demo' and 'make test'.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BUILD_TOOLS := pip setuptools wheel Cython

export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test lint checks benchmarks clean

# The environment is made anew whenever the changes.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "labelwise needs Python 3.11 or newer, got " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -iE '^($(subst $() ,|,$(BUILD_TOOLS)))==' requirements.lock)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# A real study on embedded data: prints the leaderboard and where to look.
demo: $(VENV)/.installed
	$(BIN)/labelwise run demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# As many processes as cores, four at most: each one loads torch. A file stays in one, which trains or starts once what its tests share.
test: lint
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# What takes minutes: real kills in every phase of a study, memory over hundreds of steps, whole studies of extensions.
checks: $(VENV)/.installed
	$(BIN)/python -m pytest -m long

benchmarks: $(VENV)/.installed
	$(BIN)/python tests/benchmarks/run.py

clean:
	rm -rf $(VENV) build *.egg-info
