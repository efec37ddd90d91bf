# What a person types; `make` alone lists it. Every target brings along what it needs, into .venv/ and build/, and
# repeated calls redo only what changed. PYTHON=... picks the interpreter, PYTEST_ARGS=... narrows a test run.
VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=

PY := $(VENV)/bin/python
CORE := shmd/_core.abi3.so
FAILPOINTS := build/failpoints/shmd/_core.abi3.so
SANITIZED := build/asan/shmd/_core.abi3.so
CORE_SOURCES := setup.py $(wildcard csrc/*.c csrc/*.h)
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test soak bench lint coverage c-test c-asan c-tsan clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/.runtime $(CORE) ## a daemon, a publisher of this host's /proc, three subscribers; ends by itself
	$(VENV)/bin/shmd demo

test: $(VENV)/.dev $(CORE) $(FAILPOINTS) $(SANITIZED) c-test ## everything once, small
	.ci/pytest $(PY) $(PYTEST_ARGS)

soak: $(VENV)/.dev $(CORE) $(FAILPOINTS) $(SANITIZED) c-test ## the same tests in full size: hours
	SHMD_SOAK=1 $(PY) -m pytest $(PYTEST_ARGS)

bench: $(VENV)/.dev $(CORE) ## shmd beside its peers and floors, as ratios
	$(PY) -m benchmarks

lint: $(VENV)/.dev ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

coverage: $(VENV)/.dev $(CORE) $(FAILPOINTS) $(SANITIZED) ## branch coverage of the Python code
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest $(PYTEST_ARGS)
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report

c-test: ## the C core without Python
	$(MAKE) -C tests/c test

c-asan: ## the same under AddressSanitizer and UndefinedBehaviorSanitizer
	$(MAKE) -C tests/c asan

c-tsan: ## the same under ThreadSanitizer, and the proof that it would notice a missing release
	$(MAKE) -C tests/c tsan
	$(MAKE) -C tests/c tsan-weakened

clean: ## forget everything that was built
	$(MAKE) -C tests/c clean
	rm -rf $(VENV) build dist *.egg-info $(CORE) .coverage .coverage.*
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created: .ci/prerequisites
	python=$$(PYTHON=$(PYTHON) .ci/prerequisites) && "$$python" -m venv --clear $(VENV)
	touch $@

$(VENV)/.runtime: $(VENV)/.created pyproject.toml
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.runtime

# The installation has just built the core as well; from then on only a changed source does.
$(CORE): $(CORE_SOURCES) | $(VENV)/.runtime
	$(PIP_INSTALL) 'setuptools>=77'
	$(PY) setup.py --quiet build_ext --inplace

# With failpoints, and with sanitizers: tests load these by their paths, and nothing installs them.
$(FAILPOINTS) $(SANITIZED): build/%/shmd/_core.abi3.so: $(CORE_SOURCES) tests/core_builds.py | $(VENV)/.dev
	$(PY) -m tests.core_builds $*
