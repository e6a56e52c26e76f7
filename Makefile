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
# Models of timm and open_clip, and Lightning: beside the torch that the torchvision they need was built for.
BACKBONES := .venv-backbones
BACKBONES_STAMP := $(BACKBONES)/.installed
RESULTS := benchmarks/results
BENCH := $(BIN)/python -m benchmarks
TEST_PROCESSES ?= 2
# One thread a test process: two processes share two cores. Each begins with half of the files, so that what a file prepares is
# mostly prepared once.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg
PYTEST := $(TEST_ENVIRONMENT) $(BIN)/pytest
BY_FILE := -n $(TEST_PROCESSES) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install demo test tests test-ci test-slow test-backbones lint format bench bench-quick clean

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

# Many of these tests wait for others: two processes take half of the time. A file stays with one of them, with all that it
# starts. What failed beside others is tried again alone; its failure stands above, with its traceback, and its name below.
test-ci: export ATTNDRIFT_REQUIRE = 1
test-ci: $(STAMP) ## Of the slow tests: Ray, S3, SLURM, torchrun, a hub, a package from outside, kills, the README, a run's checkpoint, Chromium; none is skipped
	$(PYTEST) $(BY_FILE) -m ci || { test $$? -eq 1 && echo "test-ci: what failed is tried once more" && \
	  $(PYTEST) -m ci --last-failed -rfEp && echo "test-ci: the tests named PASSED above failed at first"; }

test-slow: $(STAMP) ## All tests that take minutes
	$(PYTEST) $(BY_FILE) -m "slow and not backbones"

$(BACKBONES_STAMP): pyproject.toml
	$(PYTHON) -m venv $(BACKBONES)
	$(BACKBONES)/bin/python -m pip install --quiet --no-compile --no-cache-dir torch==2.14.1 torchvision==0.29.1 \
	  --editable '.[study,report,backbones]' pytest pytest-timeout hypothesis
	touch $@

# The table stands at the end.
test-backbones: $(BACKBONES_STAMP) ## Models of timm and open_clip in every cell of the matrix, and Lightning: an environment of its own, 5.6 GB
	$(TEST_ENVIRONMENT) $(BACKBONES)/bin/python -m pytest -m "not slow" tests/attention/test_families.py \
	  tests/guard/test_timm_classifier.py tests/drift/test_monitor_lightning.py tests/drift/test_projection_in_tower.py
	$(TEST_ENVIRONMENT) $(BACKBONES)/bin/python -m pytest -m backbones tests/backbones

format: $(STAMP) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure costs as ratios: an hour or two alone on the machine; benchmarks/README.md
	test -f studies/demo/study.json || $(BIN)/attndrift demo
	$(BENCH).commands --study studies/demo --output $(RESULTS)/commands.json
	$(BENCH).scale --output $(RESULTS)/scale.json
	$(BENCH).capture --model config:vit-base-patch32 --batch 32 --pairs 18 --output $(RESULTS)/capture-b32.json
	$(BENCH).capture --model config:vit-large-patch14-336 --batch 8 --pairs 4 --output $(RESULTS)/capture-l14.json
	$(BENCH).drift --output $(RESULTS)/drift.json
	$(BENCH).knn --output $(RESULTS)/knn.json
	$(BENCH).transfer_sets --output $(RESULTS)/transfer_sets.json
	$(BENCH).train --kind plain --kind observed --pairs 12 --output $(RESULTS)/train-observed.json
	$(BENCH).train --output $(RESULTS)/train.json
	$(BENCH).step_costs --output $(RESULTS)/step_costs.json --table src/attndrift/study/step_costs.json
	$(BENCH).study --pairs 2 --output $(RESULTS)/study.json
	$(BENCH).study --epochs 20 --no-script --output $(RESULTS)/study-20-epochs.json
	$(BENCH).analysis --output $(RESULTS)/analysis.json
	$(BENCH).ray_workers --output $(RESULTS)/ray_workers.json

bench-quick: $(STAMP) ## Measure what users wait for and the observed forward pass, in five minutes; print the other results with date and commit
	test -f studies/demo/study.json || $(BIN)/attndrift demo
	$(BENCH).commands --study studies/demo --output $(RESULTS)/commands.json
	$(BENCH).capture --model config:vit-base-patch32 --batch 32 --pairs 6 --output $(RESULTS)/capture-b32.json
	$(BENCH).result $(filter-out %/commands.json %/capture-b32.json %/faults.json,$(wildcard $(RESULTS)/*.json))

clean: ## Remove the environment and caches
	rm -rf $(VENV) $(BACKBONES) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
