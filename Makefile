# `make drill` shows the whole path on a really wedged QEMU; `make test` is what CI runs.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help drill test case soak soak-watch fuzz mutate sbom audit lint bench lab dist deb rpm portable packages-trial clean packages-for-drill packages-for-tests

SCENARIO ?= throttle
PYTEST ?=
SOAK ?= --captures 1000
SOAK_WATCH ?= --minutes 120
FUZZ ?= --seconds 600
# Most of a test's time is spent waiting for a QEMU: three at once on two cores.
WORKERS ?= -n 3 --dist loadfile --no-loadscope-reorder
VENV := .venv
BIN := $(VENV)/bin

FOR_DRILL := qemu-system-x86 qemu-utils gdb
FOR_TESTS := $(FOR_DRILL) qemu-block-extra e2fsprogs xfsprogs zstd xz-utils lz4 iproute2 libvirt-daemon-system \
  libvirt-clients gcc libc6-dev chromium fonts-dejavu-core npm binutils debuginfod strace rpm prometheus
FOR_PACKAGES := binutils
FOR_PORTABLE := binutils autoconf automake libtool libltdl-dev patch zstd xz-utils
FOR_TRIAL := debootstrap
# As pip does it for what it installs; where PYTHONDONTWRITEBYTECODE is set, every run would compile everything again.
COMPILE := PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'from autopsy.report import html; html.compile_templates()' && \
  $(BIN)/python -m compileall -q autopsy
AXE := build/node_modules/axe-core/axe.min.js

help:
	@echo 'make drill [SCENARIO=throttle]  wedge a QEMU, capture it, diagnose it, kill it'
	@echo 'make test  [PYTEST="-k qmp"]    lint, then every test on real QEMUs'
	@echo 'make deb | rpm                  packages in dist/ that install without a network'
	@echo 'make portable                   a folder in dist/ with its own interpreter, for glibc 2.28 or newer'
	@echo 'make packages-trial             installs them in fresh Debians, wedges, captures, upgrades, purges'
	@echo 'make case BUNDLE=… [NAME=…]    a case of fixtures/ from a capture, redacted'
	@echo 'make soak  [SOAK="--minutes 10"] every wedge on every QEMU, every way to hurt a capture: hours'
	@echo 'make soak-watch [SOAK_WATCH="--minutes 10"] what the watch says of healthy VMs: hours'
	@echo 'make mutate [FUZZ="--seconds 60"] hostile debug information, read by gdb in the sandbox'
	@echo 'make fuzz  [FUZZ="--seconds 60"] what reads bytes of strangers, guided by coverage'
	@echo 'make sbom                       dist/vm-autopsy.cdx.json: what it stands on'
	@echo 'make audit                      whether any of that is known to be vulnerable; needs a network'
	@echo 'make lint | bench | lab | dist | clean'

drill: packages-for-drill $(VENV)/installed
	$(COMPILE)
	$(BIN)/autopsy drill $(SCENARIO)

# What it needs is made side by side: the linters compute while packages come over the network.
test:
	@$(MAKE) --no-print-directory --jobs 4 --output-sync=target lint lab $(AXE)
	$(COMPILE) tests tools
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST) || { echo 'What failed beside others is run once more, alone:' >&2; \
	  $(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(PYTEST); }

soak: packages-for-tests lab $(VENV)/installed-for-tests
	$(COMPILE) tests tools
	AUTOPSY_SOAK=1 $(BIN)/python -m pytest $(WORKERS) -m "live or soak" $(PYTEST)
	$(BIN)/python tools/soak.py $(SOAK)

soak-watch: packages-for-tests lab $(VENV)/installed-for-tests
	$(BIN)/python tools/watch/soak.py $(SOAK_WATCH)

fuzz: $(VENV)/installed-for-tests
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz
	$(BIN)/python tools/fuzz.py $(FUZZ)

mutate: packages-for-tests $(VENV)/installed-for-tests
	$(BIN)/python tools/mutate_elf.py $(FUZZ)

case: $(VENV)/installed
	$(BIN)/python tools/case.py "$(BUNDLE)" $(if $(NAME),--name "$(NAME)")

sbom: $(VENV)/installed
	@mkdir -p dist
	$(BIN)/python tools/sbom.py >dist/vm-autopsy.cdx.json

audit: $(VENV)/installed-for-tests
	$(BIN)/python tools/audit.py

lint: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/installed-for-tests packages-for-tests lab
	$(COMPILE) tests tools
	$(BIN)/python tools/bench.py

lab: packages-for-tests
	.ci/lab

dist: $(VENV)/installed-for-tests
	$(BIN)/python -m build --no-isolation --outdir dist

deb rpm: $(VENV)/installed-for-tests
	@.ci/packages $(FOR_PACKAGES)
	BIN=$(BIN) packaging/build $@

portable: $(VENV)/installed-for-tests
	@.ci/packages $(FOR_PORTABLE)
	BIN=$(BIN) packaging/portable

packages-trial: deb rpm
	@.ci/packages $(FOR_TRIAL)
	packaging/trial

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# What tells whether the report can be read by everybody.
$(AXE): | packages-for-tests
	npm install --silent --no-audit --no-fund --prefix build axe-core@4

packages-for-drill:
	@.ci/packages $(FOR_DRILL)

packages-for-tests:
	@.ci/packages $(FOR_TESTS)

# The newest Python that can make a virtual environment; on a bare Debian, its own is completed first.
$(VENV)/bin/python:
	@find_python() { for each in python3.14 python3.13 python3.12 python3.11 python3; do \
	  if $$each -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo $$each; return; fi; done; return 1; }; \
	find_python >/dev/null || .ci/packages python3-venv; \
	python=$$(find_python) || { echo 'autopsy needs Python 3.11 or newer, with venv' >&2; exit 1; }; \
	$$python -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip uninstall -qq --disable-pip-version-check --yes autopsy # another project's, or ours of old
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[heap]'
	touch $@

# Dependency groups need a pip of 2025.
$(VENV)/installed-for-tests: pyproject.toml | $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group test --group lint
	touch $@
