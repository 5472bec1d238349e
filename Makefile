# Users: `make run`, `make test`. Developers: check, e2e, bench, synth. CI calls these targets and nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
PYTHONS ?= 3.12 3.13
FUZZ_S ?= 60
PATIENT := tests/chaos/test_ghosts.py tests/chaos/test_limits_without_redis.py  # chaos that mostly waits: it runs beside real calls
RELAY_TESTS := $(wildcard tests/integration/test_relay*.py tests/integration/test_turn*.py tests/integration/test_streams.py tests/integration/test_datapath.py)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
export PATH := $(PATH):$(CURDIR)/$(BIN)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
STYLE = $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet . && mkdir -p build && \
	{ $(BIN)/lint-imports --no-cache > build/lint-imports.log 2>&1 || { cat build/lint-imports.log; exit 1; }; }
TYPES = $(BIN)/mypy heliograph adapters functions media_fleet local admin clients/python/heliograph_client infra tests bench docs
.DEFAULT_GOAL := help
.PHONY: help setup run lint check format unit test test-pythons e2e bench synth lock deploy-rehearsal clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

$(STAMP)/python: pyproject.toml clients/python/pyproject.toml constraints.txt
	@echo "== setting up $(VENV): about a minute the first time"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e 'clients/python[call]' -e '.[test]'
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/infra: $(STAMP)/python
	@echo "== adding the CDK"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[infra]'
	@touch $@

$(STAMP)/system: | $(STAMP)/python
	@$(BIN)/python -m local.system chromium firefox-esr certutil turnserver redis-server aplay gcc
	@touch $@

$(STAMP)/web: clients/web/package-lock.json $(wildcard clients/web/src/*.ts) $(wildcard clients/web/demo/*) | $(STAMP)/python
	@echo "== building the web client"
	@$(BIN)/python -m local.system
	@cd clients/web && npm ci --silent --no-audit --no-fund && npm run --silent build
	@touch $@

$(STAMP)/demo: | $(STAMP)/python
	@$(MAKE) --no-print-directory --silent $(STAMP)/web || echo "== no web demo this time: the web client could not be built"
	@touch $@

$(STAMP)/speech: | $(STAMP)/python
	@command -v espeak-ng > /dev/null || $(BIN)/python -m local.system aplay || true  # the call itself says what is missing when nothing can speak
	@touch $@

$(STAMP)/fast: media_fleet/datapath/fast.c media_fleet/datapath/fast.h | $(STAMP)/python
	@$(BIN)/python -m media_fleet.datapath.build
	@touch $@

setup: $(STAMP)/python  ## make .venv with everything the product needs on a laptop

run: setup $(STAMP)/demo $(STAMP)/speech $(STAMP)/fast  ## the whole product on this laptop, one real call made; ONCE=1 ends after the call
	@$(BIN)/python -m local $(if $(ONCE),--once)

lint: setup  ## style, import rules, types
	@$(STYLE)
	@$(TYPES)

check: setup  ## lint, and unit and contract tests beside the types
	@$(STYLE)
	@$(TYPES) & types=$$!; code=0; $(BIN)/pytest tests/unit tests/contract || code=$$?; \
		wait $$types || code=$$?; exit $$code  # the tests mostly wait, the types mostly compute

format: setup  ## let ruff rewrite the code
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

test: $(STAMP)/python $(STAMP)/infra $(STAMP)/system $(STAMP)/web $(STAMP)/fast  ## every test but the end-to-end ones
	@cd clients/web && npm test --silent
	@mkdir -p build && : > build/test.log && : > build/fuzz_turn.log
	@nice -n 10 $(BIN)/python -m bench.fuzz_turn --seconds $(FUZZ_S) --workers 1 > build/fuzz_turn.log 2>&1 & fuzz=$$!; \
		$(BIN)/pytest tests/unit tests/contract tests/infra $(RELAY_TESTS) > build/test.log 2>&1 & beside=$$!; trap "kill $$beside $$fuzz" INT TERM; code=0; \
		$(BIN)/pytest tests/integration tests/performance $(RELAY_TESTS:%=--ignore=%) || code=$$?; \
		echo "== unit, contract and infra tests and those of the relay, which ran beside them"; wait $$beside || code=$$?; cat build/test.log; \
		echo "== the TURN server fuzzed for $(FUZZ_S) CPU seconds beside them"; wait $$fuzz || code=$$?; cat build/fuzz_turn.log; exit $$code  # tests mostly wait

test-pythons: $(PYTHONS:%=test-python-%)  ## unit and contract tests on each of PYTHONS (3.12 3.13) that this machine has

test-python-%:
	@found=; for python in python$* $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$*.*/bin/python; do \
		if "$$python" -c '' 2> /dev/null; then found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then echo "== Python $*: skipped, because neither PATH nor pyenv has it"; exit 0; fi; \
	echo "== Python $*: $$("$$found" --version)"; \
	test -x build/pythons/$*/bin/python || "$$found" -m venv build/pythons/$*; \
	build/pythons/$*/bin/python -m pip install --quiet -c constraints.txt -e 'clients/python[call]' -e '.[test]'; \
	build/pythons/$*/bin/pytest tests/unit tests/contract

e2e: $(STAMP)/python $(STAMP)/system $(STAMP)/web $(STAMP)/fast  ## real calls: the whole product, a real browser, killed services
	@mkdir -p build && $(BIN)/pytest $(PATIENT) > build/e2e.log 2>&1 & beside=$$!; trap "kill $$beside; exit 130" INT TERM; code=0; \
		$(BIN)/pytest tests/e2e || code=$$?; \
		echo "== chaos tests that mostly wait, which ran beside them"; wait $$beside || code=$$?; cat build/e2e.log; \
		$(BIN)/pytest tests/chaos $(PATIENT:%=--ignore=%) || code=$$?; exit $$code

bench: $(STAMP)/python $(STAMP)/system $(STAMP)/fast  ## side-by-side measurements, each prints a table
	@$(BIN)/python -m bench

synth: $(STAMP)/infra  ## the templates of all presets, looked at by cdk-nag and cfn-lint
	@$(BIN)/python -m infra.cdk.synth

lock: $(STAMP)/python  ## infra/cdk/functions.lock from constraints.txt: what ships in the functions' layers, with hashes
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile pyproject.toml --extra functions --constraints constraints.txt --quiet --output-file infra/cdk/functions.lock \
		--generate-hashes --only-binary :all: --python-platform aarch64-manylinux_2_28 --python-version 3.13 \
		--annotation-style line --custom-compile-command 'make lock' > /dev/null

deploy-rehearsal: $(STAMP)/infra  ## the CDK CLI deploys and destroys the stacks on two stand-ins for AWS; build/rehearsal.json says what held
	@$(BIN)/python -m infra.rehearsal

clean:  ## forget what was built; .local (the laptop's data) stays
	@rm -rf build clients/web/dist clients/web/node_modules $(STAMP)/web
