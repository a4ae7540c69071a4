SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
PYTEST := $(PYTHON) -m pytest --timeout=300
SHELL_SCRIPTS = $(wildcard scripts/*.sh hooks/*.sh hooks/lib/*.sh) .ci/run

.PHONY: help venv lint test sessions faults crash mutants engines fuzz bench matrix demo clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do printf '  make %-8s %s\n' "$$name" "$$what"; done

venv: $(STAMP) ## the virtual environment in .venv

$(STAMP): pyproject.toml scripts/make-venv.sh tests/plugin/other_plugins.txt
	scripts/make-venv.sh $(VENV)
	touch $@

lint: venv ## ruff (check and format), mypy --strict, shellcheck, shfmt
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(VENV)/bin/shellcheck -o all $(SHELL_SCRIPTS)
	$(VENV)/bin/shfmt -i 2 -ci -d $(SHELL_SCRIPTS)

test: lint ## lint, then the tests; starts a private engine where there is none
	scripts/need.sh git=git curl=curl flock=util-linux ip=iproute2 sshd=openssh-server busybox=busybox-static ps=procps
	$(PYTEST) -m "not docker and not plain and not sessions and not fault and not crash" -n 3
	scripts/engine.sh up
	scripts/base-image.sh
	$(PYTEST) -m "docker and not fault and not crash and not engines" -n 3

sessions: venv ## every way in which a session can end green without proof, on one process and on workers, beside other plugins
	scripts/need.sh git=git
	$(PYTEST) tests/plugin -m "sessions and not plain" -n 3

faults: venv ## every fault that must never pass, injected for real, local and over ssh; a table in .faults/
	scripts/need.sh git=git curl=curl flock=util-linux ip=iproute2 iptables=iptables sshd=openssh-server logrotate=logrotate ps=procps
	scripts/engine.sh up
	scripts/base-image.sh
	$(PYTEST) tests/faults tests/e2e tests/hook -m fault -n 2

crash: venv ## promotions killed, disturbed and cut short at every command; a table in .crash/
	scripts/need.sh git=git curl=curl flock=util-linux ip=iproute2 iptables=iptables ps=procps
	scripts/engine.sh up
	scripts/base-image.sh
	$(PYTEST) tests/crash tests/hook -m crash -n 2

mutants: venv ## each guard taken out in a copy of the tree: the tests must notice
	scripts/need.sh git=git curl=curl flock=util-linux ip=iproute2 iptables=iptables sshd=openssh-server ps=procps
	scripts/engine.sh up
	scripts/base-image.sh
	$(PYTHON) -m tests.faults.mutants

engines: venv ## a gate and a promotion on other engines and builders (Debian 12, root); a table, and JSON in .engines/
	scripts/need.sh git=git curl=curl flock=util-linux ip=iproute2 iptables=iptables
	scripts/engine.sh up
	$(PYTHON) -m tests.engines

fuzz: venv ## the hook's variables, requests, policies and whole calls: 103,500 generated ones, none of which may do anything
	scripts/need.sh git=git
	FUZZ_INPUTS=34000 FUZZ_CALLS=500 $(PYTEST) --timeout=3600 tests/hook/test_fuzz.py -n 3

bench: venv ## a gate against the bare commands, a rerun, an unused plugin; a table, and JSON in .bench/
	scripts/need.sh git=git curl=curl flock=util-linux ip=iproute2 iptables=iptables sshd=openssh-server ps=procps
	scripts/engine.sh up
	scripts/base-image.sh
	$(PYTHON) -m bench

matrix: venv ## the plugin's tests on every Python from 3.10 to 3.13 found here, with the oldest and the newest pytest
	scripts/need.sh git=git
	$(PYTHON) scripts/matrix.py

demo: venv ## a gate, a promotion and a refusal on real parts
	scripts/need.sh git=git curl=curl flock=util-linux
	scripts/engine.sh up
	$(PYTHON) scripts/demo.py

clean: ## end the engine that was started here and remove everything that was made
	scripts/nginx-image.sh remove
	scripts/base-image.sh remove
	scripts/engines.sh down
	scripts/engine.sh down
	rm -rf .venv .engine .engines .demo .faults .crash .bench .imagefresh .cache dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
