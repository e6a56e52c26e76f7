# Every target makes its own environment in .venv; nothing has to be installed by hand but Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the demo needs, and all that the tests and tools need: in one environment.
DEMO_STAMP := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
# Bytecode of what is imported is written at the first import; of the rest it is never needed. Containers often forbid to write
# it: then each of some hundred processes compiles torch and transformers again.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
# The tests read CLIP's vocabulary and tokenizer in the wheel of open_clip. Not beside the other packages: without torchvision
# it cannot be imported, and would be found all the same.
OPEN_CLIP := $(VENV)/open_clip_torch
RESULTS := benchmarks/results
BENCH := $(BIN)/python -m benchmarks
TEST_PROCESSES ?= 2
# One thread a test process: two processes share two cores. Each begins with half of the files, so that what a file prepares is
# mostly prepared once.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
PYTEST := $(TEST_ENVIRONMENT) $(BIN)/pytest

.DEFAULT_GOAL := help
.PHONY: help install demo test tests test-ci test-slow lint format bench clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(STAMP) ## Make the environment in .venv, with all tools

$(BIN)/pip:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[study,report]'
	touch $@

$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps --upgrade --target $(OPEN_CLIP) open_clip_torch
	$(INSTALL) --no-deps axe-playwright-python==0.1.8
	touch $@ $(DEMO_STAMP)

demo: $(DEMO_STAMP) ## Run the study of 21 runs on the small embedded model: tables, figures and report
	$(BIN)/attndrift demo

# Beside the tests: mypy alone keeps one core of two busy for a minute.
lint: $(STAMP) ## Check style, types, which package imports which, and that the site can be built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: $(STAMP) ## Lint, types and the tests (real images where ATTNDRIFT_DATA names their folder)
	$(MAKE) --no-print-directory --jobs=2 lint tests

tests: $(STAMP) ## The tests alone
	$(PYTEST) -n $(TEST_PROCESSES) --dist worksteal -m "not slow"

# What passes only when it is tried again is seen: its failure stands above, with its traceback, and its name below.
test-ci: export ATTNDRIFT_REQUIRE = 1
test-ci: $(STAMP) ## Of the slow tests: Ray, S3, SLURM, torchrun, a hub, a package from outside, kills, the README, a run's checkpoint, Chromium; none is skipped
	$(PYTEST) -m ci || { test $$? -eq 1 && echo "test-ci: what failed is tried once more" && \
	  $(PYTEST) -m ci --last-failed -rfEp && echo "test-ci: the tests named PASSED above failed at first"; }

test-slow: $(STAMP) ## All tests that take minutes
	$(PYTEST) -m slow

format: $(STAMP) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure costs as ratios: an hour or two alone on the machine; benchmarks/README.md
	$(BENCH).commands --output $(RESULTS)/commands.json
	$(BENCH).capture --model config:vit-base-patch32 --batch 32 --pairs 18 --output $(RESULTS)/capture-b32.json
	$(BENCH).capture --model config:vit-large-patch14-336 --batch 8 --pairs 4 --output $(RESULTS)/capture-l14.json
	$(BENCH).drift --output $(RESULTS)/drift.json
	$(BENCH).train --kind plain --kind observed --pairs 12 --output $(RESULTS)/train-observed.json
	$(BENCH).train --output $(RESULTS)/train.json
	$(BENCH).step_costs --output $(RESULTS)/step_costs.json --table src/attndrift/study/step_costs.json
	$(BENCH).study --pairs 2 --output $(RESULTS)/study.json
	$(BENCH).study --epochs 20 --no-script --output $(RESULTS)/study-20-epochs.json
	$(BENCH).analysis --output $(RESULTS)/analysis.json
	$(BENCH).ray_workers --output $(RESULTS)/ray_workers.json

clean: ## Remove the environment and caches
	rm -rf $(VENV) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
