# make train    set everything up in .venv, train the tiny model, evaluate it, write runs/<name>/report.html
# make test     set everything up, check style, types and layers, run the tests
# make test-long the tests that `make test` leaves out for their length: real servers, repeated kills, many processes
# make test-portable run the tests of numbers as other processors would compute them (runs/test-portable has the logs)
# make notebooks set everything up, run all notebooks by papermill; copies with outputs in experiments/results/notebooks
# make bench    set everything up, time a training step beside TRL's and over its sizes: experiments/benchmarks/results
# make evidence set everything up, make the figures and tables of docs/evidence.md from experiments/evidence/results
# make real     set everything up, download a pretrained model's weights (93 MB; MODEL=qwen: 1.1 GB), make a Qwen2.5-VL of
#               them and check it: experiments/real/README.md
# make foreign  set everything up, make two data sets of other people's pictures, show them, train the tiny model on each:
#               experiments/foreign/README.md (ARGS="runs_dir=runs/seed-1 seed=1": again, elsewhere)
# make test-real the tests with the smaller one of these models; downloads it where `make real` has not
#
# make train ARGS="name=seed-1 seed=1"                     settings, as `rethinker train` takes them; a new name for a new run
# make train ARGS=--resume                                resume a stopped run
# make test PYTEST_ARGS="-k replay"                       options for pytest
# make setup EXTRA=gpu                                    NVIDIA GPUs: vllm and a CUDA build of torch (default: cpu)
# make setup PIP_ARGS="--extra-index-url URL"             options for pip

PYTHON ?= $(firstword $(shell command -v python3.11) $(shell command -v python3.12) python3)
VENV ?= .venv
# What a set-up chose once stays chosen: `make train` after `make setup EXTRA=gpu` must not go back to the CPU build.
EXTRA ?= $(or $(shell cat $(VENV)/.rethinker-extra 2>/dev/null),cpu)
CONFIG ?= experiments/tiny.yaml
ARGS ?=
PIP_ARGS ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
MODEL ?= smollm2

BIN := $(VENV)/bin
RUN_READY := $(VENV)/.rethinker-$(EXTRA)-ready
DEV_READY := $(VENV)/.rethinker-$(EXTRA)-dev-ready
REAL_READY := $(VENV)/.rethinker-$(EXTRA)-real-ready
INSTALL := $(PYTHON) scripts/install.py --venv $(VENV) --extra $(EXTRA) --pip-args="$(PIP_ARGS)"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup setup-dev train test test-long test-portable notebooks bench evidence real foreign test-real lint format doctor clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

$(RUN_READY): pyproject.toml scripts/install.py scripts/repair_torchvision.py
	@$(INSTALL)
	@touch $@

$(DEV_READY): pyproject.toml scripts/install.py scripts/repair_torchvision.py
	@$(INSTALL) --dev
	@touch $(RUN_READY) $@

$(REAL_READY): pyproject.toml scripts/install.py scripts/repair_torchvision.py
	@$(INSTALL) --dev --real
	@touch $(RUN_READY) $(DEV_READY) $@

setup: $(RUN_READY)

setup-dev: $(DEV_READY)

train: $(RUN_READY)
	@$(BIN)/rethinker train $(CONFIG) $(ARGS)

test: lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline \
		$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-long: $(DEV_READY)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest -m long $(PYTEST_ARGS)

test-portable: $(DEV_READY)
	@scripts/test_portable.sh $(BIN)/python -n $(TEST_WORKERS) $(PYTEST_ARGS)

notebooks: $(DEV_READY)
	@$(BIN)/rethinker notebooks $(ARGS)

bench: $(DEV_READY)
	@$(BIN)/python experiments/benchmarks/bench.py $(ARGS)

evidence: $(RUN_READY)
	@$(BIN)/python experiments/evidence/analyse.py

real: $(REAL_READY)
	@$(BIN)/python experiments/real/make_data.py
	@$(BIN)/python experiments/real/make_vlm.py $(MODEL) --pip-args="$(PIP_ARGS)"
	@$(BIN)/python experiments/real/check_vlm.py $(MODEL)

foreign: $(DEV_READY)
	@$(BIN)/python experiments/foreign/make_foreign.py
	@$(BIN)/rethinker data inspect experiments/foreign/digits.yaml
	@$(BIN)/rethinker data inspect experiments/foreign/easy_vqa.yaml
	@$(BIN)/rethinker train experiments/foreign/digits.yaml $(ARGS)
	@$(BIN)/rethinker train experiments/foreign/easy_vqa.yaml $(ARGS)

test-real: $(REAL_READY)
	OMP_NUM_THREADS=2 HF_HUB_OFFLINE=1 WANDB_MODE=offline $(BIN)/python -m pytest -m real tests/test_real.py $(PYTEST_ARGS)

lint: $(DEV_READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

doctor: $(RUN_READY)
	@$(BIN)/rethinker doctor

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache *.egg-info
