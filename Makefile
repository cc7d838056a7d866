# Targets for people; `make` alone lists them.
VENV ?= $(or $(VIRTUAL_ENV),.venv)
PYTHON ?= python3.11
BIN := $(VENV)/bin
STAMP := $(VENV)/.vibematch-installed
PEERS := $(VENV)/.vibematch-benchmarks
OPTIMUM := build/optimum-venv
KSERVE := build/kserve-venv
AUDIT := build/audit-venv

.PHONY: help install demo test test-slow test-wheel test-deploy test-optimum test-kserve bench bench-2b bench-guard audit configs docs check format lock clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP)  ## Create the virtual environment and install everything into it

$(STAMP): pyproject.toml client/pyproject.toml client/vibematch/_scan.c constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ./client -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## Photos to matches from nothing; PHOTOS=DIR matches a folder of your own
	@$(BIN)/vibematch demo $(if $(PHOTOS),--photos "$(PHOTOS)")

test: $(STAMP)  ## The default test suite
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP)  ## The heavier tests
	$(BIN)/python -m pytest -m slow

test-wheel: $(STAMP)  ## The client's wheel, alone in an empty environment
	$(BIN)/python -m pytest -m slow tests/client/test_wheel.py

test-deploy: $(STAMP)  ## Deployment files, and the image's install script; needs promtool (apt install prometheus)
	$(BIN)/python -m pytest tests/deploy

test-optimum: $(STAMP) $(OPTIMUM)/.installed  ## Exported models in optimum, in an environment of its own
	OPTIMUM_PYTHON=$(abspath $(OPTIMUM))/bin/python $(BIN)/python -m pytest -m slow tests/export/test_ecosystem.py

test-kserve: $(STAMP) $(KSERVE)/.installed  ## KServe's own client against our server, in an environment of its own
	KSERVE_PYTHON=$(abspath $(KSERVE))/bin/python $(BIN)/python -m pytest -m slow tests/serving/test_other_clients.py

bench: $(PEERS)  ## Benchmarks beside other software, tiny backbone: 10 minutes, goes on where it was
	$(BIN)/python benchmarks/run.py tiny

bench-2b: $(PEERS)  ## The same with the 2B architecture: three hours, 24 GB of memory, 20 GB of disk
	$(BIN)/python benchmarks/run.py 2b

bench-guard: $(PEERS)  ## Have hot paths become slower than benchmarks/guard.json keeps? On a quiet machine
	$(BIN)/python benchmarks/guard.py --check

build/infinity-venv/.installed: benchmarks/serving_peers/requirements-infinity.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check -q -r $<
	@touch $@

$(PEERS): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[benchmarks]'
	@touch $@

audit: $(AUDIT)/.installed  ## Known vulnerabilities of the pinned packages
	$(AUDIT)/bin/python tests/audit/audit.py constraints.txt

build/%-venv/.installed: tests/%/requirements.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --disable-pip-version-check -q -r $<
	@touch $@

configs: $(STAMP)  ## Rewrite the configurations committed in model_repository/
	$(BIN)/python -c "from vibematch_export.repository import write_default_configs as w; w()"

docs: $(STAMP)  ## Rewrite docs/api.md from the client's docstrings
	$(BIN)/python docs/api_reference.py

check: $(STAMP)  ## Formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)  ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(STAMP)  ## Rewrite constraints.txt from what is installed
	@{ head -1 constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > constraints.new && mv constraints.new constraints.txt

clean:  ## Remove what is generated; trained runs stay
	rm -rf build dist client/build client/*.egg-info client/vibematch/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
