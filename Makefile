# Every target makes its own environment in .venv; nothing has to be installed by hand but Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RESULTS := benchmarks/results
B32 := config:vit-base-patch32
L14 := config:vit-large-patch14-336
OBSERVED := --only time --kind plain --kind observed --pairs 12
TEST_PROCESSES ?= 2
# One thread a test process: two processes share two cores. Each begins with half of the files, so that what a file prepares is
# mostly prepared once.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

.DEFAULT_GOAL := help
.PHONY: help install demo test tests test-slow lint format bench clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## Make the environment in .venv

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(STAMP) ## Run the study of 21 runs on the small embedded model: tables, figures and report
	$(BIN)/attndrift demo

# Beside the tests: mypy alone keeps one core of two busy for a minute.
lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP) ## Lint, types and the tests (real images where ATTNDRIFT_DATA names their folder)
	$(MAKE) --no-print-directory --jobs=2 lint tests

tests: $(STAMP) ## The tests alone
	$(TEST_ENVIRONMENT) $(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal -m "not slow"

test-slow: $(STAMP) ## The tests that take minutes
	$(TEST_ENVIRONMENT) $(BIN)/pytest -m slow

format: $(STAMP) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure costs as ratios, two hours alone on the machine: benchmarks/results, docs/cost.md, docs/study-cost.md
	$(BIN)/attndrift bench startup --output $(RESULTS)/startup.json
	$(BIN)/attndrift bench capture --only time --model $(B32) --pairs 18 --output $(RESULTS)/capture-b32.json
	$(BIN)/attndrift bench capture --only time --model $(B32) --pairs 18 --return-freed --output $(RESULTS)/capture-b32-returned.json
	$(BIN)/attndrift bench capture --only time --only memory --model $(L14) --pairs 4 --output $(RESULTS)/capture-l14.json
	$(BIN)/attndrift bench capture --only time --model $(L14) --pairs 4 --return-freed --output $(RESULTS)/capture-l14-returned.json
	$(BIN)/attndrift bench capture --only probe --output $(RESULTS)/capture-probe.json
	$(BIN)/attndrift bench train $(OBSERVED) --output $(RESULTS)/train-observed.json
	$(BIN)/attndrift bench train --only time --pairs 5 --output $(RESULTS)/train.json
	$(BIN)/attndrift bench train --only profile --output $(RESULTS)/train-profile.json
	$(BIN)/attndrift bench growth --output $(RESULTS)/growth.json
	$(BIN)/attndrift bench study --pairs 2 --output $(RESULTS)/study.json
	$(BIN)/attndrift bench study --epochs 6 --no-script --output $(RESULTS)/study-epochs.json
	$(BIN)/attndrift bench study --epochs 20 --no-script --output $(RESULTS)/study-twenty.json
	$(BIN)/attndrift bench scale --output $(RESULTS)/scale.json
	$(BIN)/attndrift bench analysis --growth --pairs 2 --output $(RESULTS)/analysis.json
	$(BIN)/python scripts/plot_analysis_cost.py $(RESULTS)/analysis.json docs/images/analysis-cost.png
	$(BIN)/python scripts/cost_page.py

clean: ## Remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
