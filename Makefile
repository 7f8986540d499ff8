# Two commands: `make companion` and `make test`. Both create .venv when it is missing and are safe to repeat.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
.DEFAULT_GOAL := help
.PHONY: help companion test torture bench lab export outputs readme docs lint types

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 20

# an environment, and what it holds beside requirements.lock
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"expected Python 3.11 or newer; received {sys.version.split()[0]} (name another with PYTHON=...)")'
	@test -d $(1) || $(PYTHON) -m venv $(1)
	@echo "Installing the locked environment into $(1) (several GB the first time) ..."
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(2) -e .
	@touch $@
endef

$(INSTALLED): requirements.lock settings.ini setup.py pyproject.toml
	$(call install,.venv)

.venv-bench/.installed: requirements.lock settings.ini setup.py pyproject.toml tests/bench/peers.txt
	$(call install,.venv-bench,-r tests/bench/peers.txt)

companion: $(INSTALLED)  ## run every notebook through papermill -> runs/companion/index.html
	@$(BIN)/wssl companion

test: $(INSTALLED)  ## the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests
	@echo "All tests passed. The notebooks' own pages: make companion"

torture: $(INSTALLED)  ## injected faults and extreme numbers, by the hundred (17 minutes; ARGS=--record keeps them)
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture $(ARGS)

bench: .venv-bench/.installed  ## against other libraries, in ratios (15 minutes; ARGS=--record keeps them)
	@.venv-bench/bin/python -m tests.bench $(ARGS)

lab: $(INSTALLED)  ## JupyterLab, opened at nbs/index.ipynb
	@$(BIN)/jupyter lab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/nbs/index.ipynb

export: $(INSTALLED)  ## write wssl/*.py from the notebooks, clean them
	@$(BIN)/nbdev_export && $(BIN)/nbdev_clean

outputs: $(INSTALLED)  ## re-execute (quick) and store the outputs in the notebooks
	@$(BIN)/wssl companion --store-outputs

readme: $(INSTALLED)  ## README.md from nbs/index.ipynb
	@$(BIN)/wssl companion --readme

docs: $(INSTALLED)  ## the documentation site, offline, from the committed outputs -> _docs/html/index.html
	@$(BIN)/python -c "from wssl.companion.site import main; main()"

lint: $(INSTALLED)  ## ruff over notebooks, tests and package
	@$(BIN)/ruff format nbs tests && $(BIN)/ruff check nbs tests

types: $(INSTALLED)  ## pyright: callers in full, annotations inside the package
	@$(BIN)/pyright --pythonpath $(BIN)/python
