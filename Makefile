# Every target sets itself up: the first one makes .venv from the lock file, and nothing is installed outside it.

ENV           = coinrun
PRESET        =
SEED          =
SEEDS         =
NAME          =
EXPERT_FRAMES =
WITHIN        =
FRAMES        =
POLICY        =
CHECKPOINT    =
EPISODES      =
SIZE          =
ONLY          =
MINUTES       =
FULL          =
ARGS          =
ACCEL        ?= auto
PYTHON       ?=

UV_VERSION    = 0.13.8

# The accelerator decides the lock file. `auto` is cuda where a GPU answers, otherwise cpu.
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -m1 -o '^GPU')
ifeq ($(ACCEL),auto)
accel := $(if $(GPU),cuda,cpu)
else ifneq ($(filter $(ACCEL),cpu cuda tpu),)
accel := $(ACCEL)
else
$(error ACCEL=$(ACCEL) is unknown: use auto, cpu, cuda or tpu)
endif
ifeq ($(ACCEL),cpu)
export JAX_PLATFORMS = cpu
endif
ifneq ($(GPU),)
ifneq ($(accel),cuda)
$(warning this machine has a GPU that ACCEL=$(ACCEL) leaves unused: ACCEL=cuda uses it)
endif
endif

# XLA:CPU takes the memory of its temporaries anew at each step: in large pages that costs a tenth (docs/performance.md).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

lock  := $(if $(filter cuda,$(accel)),requirements-cuda.lock,requirements.lock)
stamp := .venv/.installed-$(accel)
pip   := .venv/bin/python -m pip --disable-pip-version-check
run    = exec .venv/bin/lamjax $(strip $(1))
option = $(if $($(1)),--$(2) $($(1)))
common = --env $(ENV) $(call option,SEED,seed)

.PHONY: help setup train test bench accelerator experiment linear linear-grid lint format docs record expert eval report lock clean

help:  ## list the targets (the default)
	@echo "Usage: make <target> [VARIABLE=value ...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15
	@echo "Variables (ENV=$(ENV) unless given):"
	@echo "  train    ENV PRESET=paper|reference|cpu|smoke SEED SEEDS NAME EXPERT_FRAMES WITHIN=10m"
	@echo "  record   ENV POLICY=expert|planner|random|PATH FRAMES SEED      expert   ENV PRESET FRAMES SEED"
	@echo "  eval     ENV CHECKPOINT=expert|planner|PATH EPISODES SEED       report   ENV NAME"
	@echo "  experiment NAME=vq_ablation|noise|... (docs/experiments.md)"
	@echo "  all      ARGS=\"--any.option value\" ACCEL=auto|cpu|cuda|tpu PYTHON=python3.12"

setup: $(stamp)  ## make .venv from the lock file and install lamjax into it

train: setup  ## record, learn, decode and report: a whole run in runs/<ENV>/<NAME>
	$(call run,train $(common) $(call option,PRESET,preset) $(call option,NAME,name) $(call option,SEEDS,seeds) $(call option,EXPERT_FRAMES,expert-frames) $(call option,WITHIN,within) $(ARGS))

test: setup  ## run the test suite
	exec .venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --max-worker-restart 0 $(ARGS)

bench: setup  ## measure the throughput of each part (SIZE=cpu|paper ONLY="stage1 linear")
	exec .venv/bin/python -m benchmarks $(call option,SIZE,size) $(call option,ONLY,only) $(ARGS)

accelerator: setup  ## measure a GPU or TPU, the most valuable first (MINUTES=9; ARGS=--dry tries it on a CPU)
	exec .venv/bin/python -m benchmarks.accelerator $(call option,MINUTES,minutes) $(ARGS)

experiment: setup  ## answer a question with five seeds, NAME=vq_ablation; without NAME list them
	exec .venv/bin/python -m experiments $(NAME) $(ARGS)

linear: setup  ## reproduce the linear theory's figures (FULL=1: every point, three seeds)
	exec .venv/bin/python -m experiments.linear_lam.run $(if $(FULL),--full) $(ARGS)

linear-grid: setup  ## check the theory on a non-linear model (FULL=1: the paper's updates)
	exec .venv/bin/python -m experiments.linear_lam.grid $(if $(FULL),--full) $(ARGS)

lint: setup  ## check style, formatting and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup  ## repair what lint finds, where it can be repaired
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: setup .venv/.installed-docs  ## build the site in site/, strictly: a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --clean --quiet $(ARGS)

record: setup  ## record trajectories of a policy
	$(call run,record $(common) $(call option,POLICY,policy) $(call option,FRAMES,frames) $(ARGS))

expert: setup  ## train an expert to record from, with PPO from scratch
	$(call run,expert $(common) $(call option,PRESET,preset) $(call option,FRAMES,frames) $(ARGS))

eval: setup  ## evaluate a checkpoint or the shipped expert
	$(call run,eval $(common) $(call option,CHECKPOINT,checkpoint) $(call option,EPISODES,episodes) $(ARGS))

report: setup  ## write the report of a run again (the newest unless NAME is given)
	$(call run,report --env $(ENV) $(if $(NAME),--run runs/$(ENV)/$(NAME)) $(ARGS))

lock: setup  ## pin requirements.in anew (ARGS=--upgrade: to the newest versions)
	$(pip) install -q uv==$(UV_VERSION)
	echo 'numpy>=2' | $(compile) requirements.in -o requirements.lock
	echo 'numpy>=2' | $(compile) docs/requirements.in -c requirements.lock -o docs/requirements.lock
	echo 'jax[cuda12]' >.venv/cuda.in
	echo 'numpy>=2' | $(compile) requirements.in .venv/cuda.in -c requirements.lock -o requirements-cuda.lock
compile = .venv/bin/uv pip compile -q --universal --python-version 3.11 --fork-strategy fewest --no-annotate \
	--custom-compile-command "make lock" --override /dev/stdin $(ARGS)

.venv/.installed-docs: docs/requirements.lock $(stamp)
	@$(pip) install -q --no-deps -r $<
	@touch $@

clean:  ## remove .venv, caches and build products; data/ and runs/ stay
	rm -rf .venv .jax_cache build dist site src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

supported = import sys; sys.exit(sys.version_info[:2] not in {(3, 11), (3, 12)})
from_lock = $(shell sed -n 's/^$(1)==\([^ ]*\).*/$(1)==\1/p' $(lock))

$(stamp): $(lock) setup.cfg pyproject.toml
	@for python in $(or $(PYTHON),python3 python3.12 python3.11); do \
	  "$$python" -c '$(supported)' 2>/dev/null && break; python=; done; \
	if [ -z "$$python" ]; then \
	  echo "lamjax needs Python 3.11 or 3.12: install python3.12 or name one with PYTHON=/path/to/python3.12." >&2; exit 2; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$$python has no venv module: install it (Debian, Ubuntu: the package python3-venv)." >&2; exit 2; fi; \
	.venv/bin/python -c 'import pip; $(supported)' 2>/dev/null || "$$python" -m venv --clear .venv
	@echo "Installing $(lock) into .venv (once, about a minute) ..."
	@$(pip) install -q --no-deps '$(call from_lock,setuptools)'
	@$(pip) install -q --no-deps --no-build-isolation -r $(lock) -e .
ifeq ($(accel),tpu)
	@$(pip) install -q 'jax[tpu]$(patsubst jax%,%,$(call from_lock,jax))'
endif
ifeq ($(accel),cuda)
	@.venv/bin/python -c 'import jax; jax.default_backend() == "gpu" or print("warning: JAX cannot use the GPU: it needs an NVIDIA driver of version 525 or newer.")'
endif
	@touch $@
