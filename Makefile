PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
LAB := $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json
STAMP := $(VENV)/.installed
TOOLS := $(BIN)/python -m tools
PYTEST := $(BIN)/python -m pytest

.PHONY: help book test refs serve lab clean

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

# Made anew only when the pinned packages or the package's own description change.
$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("iclbook needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" % v[:2])'
	@echo "== environment in $(VENV): some minutes, 2 GB"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

book: $(STAMP) ## run the chapters that changed, build the site, print its address
	$(TOOLS) book

# One thread for each of the two workers: more would wait for each other.
test: export OMP_NUM_THREADS := 1
test: export OPENBLAS_NUM_THREADS := 1
test: export MKL_NUM_THREADS := 1
test: $(STAMP) ## everything that is checked, in the order of what is quick to tell
	@echo "== 1/7 ruff"
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@echo "== 2/7 types"
	$(BIN)/mypy
	@echo "== 3/7 pages, contents, references and the ledger agree"
	$(TOOLS) check
	@echo "== 4/7 unit tests"
	$(PYTEST) -n 2 --durations 5 --ignore tests/reference --ignore tests/site
	@echo "== 5/7 nbval: every chapter against its reference"
	$(TOOLS) nbval
	$(TOOLS) budget
	@echo "== 6/7 the site, from what nbval ran"
	$(TOOLS) site
	@echo "== 7/7 the site in a browser"
	$(PYTEST) tests/site

refs: $(STAMP) ## write the references anew (one: make refs CHAPTER=linear/prompts)
	$(TOOLS) refs $(CHAPTER)

serve: $(STAMP) ## show the built site over http (PORT=8000)
	@test -f _build/html/index.html || { echo "There is no site yet: make book" >&2; exit 1; }
	@echo "http://localhost:$(PORT) (Ctrl-C ends it)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

lab: $(STAMP) ## open the chapters as notebooks in JupyterLab
	@$(BIN)/jupytext-config --settings-file $(LAB) set-default-viewer myst markdown
	$(BIN)/jupyter lab --notebook-dir book

clean: ## remove what was built and stored, keep the environment
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache
