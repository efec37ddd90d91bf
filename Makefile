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
SYSTEM_VENV := /opt/shmd
PACKAGE_SOURCES := pyproject.toml setup.py MANIFEST.in README.md LICENSE csrc shmd
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test soak bench lint coverage c-test c-asan c-tsan clean install-system install-units uninstall-system

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 18

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

# The system's Python, since the daemon's user may not enter a home directory to run another.
install-system: ## as root: the daemon for all users of this host, as a systemd service
	@test "$$(id -u)" = 0 || { echo 'install-system needs root' >&2; exit 1; }
	umask 022 && python=$$(PYTHON=$(or $(PYTHON),/usr/bin/python3) .ci/prerequisites) && "$$python" -m venv $(SYSTEM_VENV)
	umask 022 && source=$$(mktemp -d) && cp -r $(PACKAGE_SOURCES) "$$source" && $(SYSTEM_VENV)/bin/pip install --quiet "$$source" && \
	    rm -r "$$source"
	@$(MAKE) --no-print-directory install-units

# What install-system does once $(SYSTEM_VENV)/bin/shmd is there. The last command is a client's: it starts the daemon.
install-units:
	ln -sf $(SYSTEM_VENV)/bin/shmd /usr/local/bin/shmd
	install -D -m 644 systemd/shmd.sysusers /etc/sysusers.d/shmd.conf
	systemd-sysusers /etc/sysusers.d/shmd.conf
	install -D -m 644 -t /etc/systemd/system systemd/shmd.service systemd/shmd.socket
	systemctl daemon-reload
	systemctl enable --now shmd.socket
	systemctl try-restart shmd.service
	@/usr/local/bin/shmd ls --socket /run/shmd/control.sock || { journalctl -u shmd -n 20 --no-pager; exit 1; }
	@echo 'shmd runs: systemctl status shmd, journalctl -u shmd; every user may connect'

uninstall-system: ## as root: remove what install-system made; topics stay until the next boot
	systemctl disable --now shmd.socket shmd.service
	rm -f /etc/systemd/system/shmd.service /etc/systemd/system/shmd.socket /etc/sysusers.d/shmd.conf /usr/local/bin/shmd
	rm -rf $(SYSTEM_VENV)
	systemctl daemon-reload

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
