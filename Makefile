# Users: make run, make test. Developers: make check, e2e, bench, synth. CI calls these and nothing else.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
.DEFAULT_GOAL := help
.PHONY: help setup run check test e2e bench synth

help:  ## what each target does
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMP)/python: pyproject.toml clients/python/pyproject.toml
	@echo "setting up $(VENV) (a minute the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e 'clients/python[call]' -e '.[test]'
	@mkdir -p $(STAMP) && touch $@

setup: $(STAMP)/python  ## make .venv with everything the product needs on a laptop
