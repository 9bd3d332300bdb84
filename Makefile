# perpo: `make all` runs a whole run, `make test` its tests. Both set up all they need.
#
#   make all RUN=demo      the run of configs/demo.yaml, from prompts to report (the default)
#   make all RUN=ci        the same graph in about two minutes; RUN=demo-ocr and RUN=ci-ocr read pages
#                          RUN=demo-rounds trains in rounds, as each file with a section `rounds`: `perpo iterate`
#   make all SET="train.lora.rank=8 filter.min_margin=0.4"
#                          the same with other settings than the file's; no blanks within a value
#   make test              all tests that need no accelerator
#   make test-distributed  those with several processes (Ray, DeepSpeed)
#   make test-vllm         those with the real vLLM, on the CPU, in an environment of its own
#   make test-versions     quick tests with other versions of Python, torch and transformers
#   make check-cuda        compiles the decoder layers for a CUDA card, without one (needs a CUDA build of torch)
#   make lint | types      ruff and import-linter | mypy
#   make docs              the manual, in site/
#   make bench             side-by-side benchmarks
#   make bench-gpu         the first nine minutes on a GPU: right, training, how fast (benchmarks/gpu/)
#   make acceptance MODEL=llava15 DATA=datasets
#                          does a real model do here what is published? (llava15, qwen25-vl, qwen3-vl, testbed)
#   make sweep SWEEP=configs/sweeps/demo.yaml
#                          many settings, methods and seeds; ARGS=--dry-run only counts them
#   make figures           all sweeps of configs/figures/, in hours on a CPU: pictures and tables in docs/figures/;
#                          QUICK=1 shows in a minute or two that it runs, in data/figures-quick/
#   make clean             remove data/RUN (RUN=demo by default); with CONFIG= or SET= the folder of that run (asks nothing)
#
# stages/ has the rules of a run and the command of each stage; `perpo make-rules` prints which file becomes which.

RUN    ?= demo
CONFIG ?= configs/$(RUN).yaml
SET    ?=
PYTHON ?= python3
VENV   ?= .venv
PERPO   = $(VENV)/bin/perpo
PIP     = $(VENV)/bin/python -m pip --disable-pip-version-check

CODE      := src/perpo_pipeline
INSTALLED := $(VENV)/.installed

# One word, as `run` in the files: it becomes a path, which `clean` removes.
ifneq ($(shell LC_ALL=C; case '$(subst ','\'',$(RUN))' in (''|[!A-Za-z0-9]*|*[!A-Za-z0-9._-]*) ;; (*) echo fits;; esac),fits)
$(error RUN='$(RUN)' is no name of a run: one word of letters, digits, '.', '_' and '-', as in $(basename $(notdir $(wildcard configs/*.yaml))))
endif
include stages/rules.mk
.PHONY: setup setup-vllm test test-distributed test-vllm test-versions check-cuda lint types docs bench bench-gpu acceptance sweep figures clean

, := ,
DEVELOP   := $(VENV)/.installed-dev
DISTRIBUTED_TESTS := tests/distributed
DISTRIBUTED := $(VENV)/.installed-distributed
DOCS := $(VENV)/.installed-docs
CUDA_VENV ?= $(VENV)
VLLM_TESTS := tests/with_vllm
VLLM_VENV ?= .venv-vllm
VLLM_PIP   = $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check
VLLM_INSTALLED := $(VLLM_VENV)/.installed

$(CONFIG):
	@echo "make: no such configuration: $(CONFIG); choose RUN= from: $(basename $(notdir $(wildcard configs/*.yaml)))" >&2; exit 2

setup: $(INSTALLED)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "perpo needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# Quiet for minutes, so it says what it does, about how long that takes, and where pip puts it.
# $(1) what, $(2) about how long on a fresh machine, $(3) pip, $(4) its arguments
define INSTALL
@echo "setup: installs $(1) in $(dir $@) (about $(2) the first time)" >&2; start=$$SECONDS; \
  $(3) install --quiet --constraint constraints.txt $(4) && \
  echo "setup: done after $$((SECONDS - start)) s" >&2
endef

$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call INSTALL,perpo with PyTorch and Transformers,1 to 3 minutes and 1.8 GB,$(PIP),--editable .)
	@touch $@

$(DEVELOP): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call INSTALL,perpo and what its tests need,1 to 4 minutes and 2.3 GB,$(PIP),--editable '.[dev]')
	@touch $@; test -e $(INSTALLED) || touch $(INSTALLED)

# One process per core with one thread each; the files are handed out in conftest.py's order.
test: $(DEVELOP)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --ignore $(VLLM_TESTS) --ignore $(DISTRIBUTED_TESTS) --numprocesses auto \
	  --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# One test after the other: each starts processes of its own.
test-distributed: $(DISTRIBUTED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest $(DISTRIBUTED_TESTS) $(PYTEST_ARGS)

$(DISTRIBUTED): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call INSTALL,perpo with DeepSpeed and Ray,1 to 5 minutes and 2.7 GB,DS_BUILD_OPS=0 $(PIP),--editable '.[dev$(,)deepspeed$(,)ray]')
	@touch $@; test -e $(INSTALLED) || touch $(INSTALLED)

setup-vllm: $(VLLM_INSTALLED)

test-vllm: $(VLLM_INSTALLED)
	PERPO_TEST_VLLM=1 PYTHONPATH=$(CURDIR)/$(VLLM_TESTS)/torchvision_on_cpu \
	  $(VLLM_VENV)/bin/python -m pytest $(VLLM_TESTS) $(PYTEST_ARGS)

$(VLLM_VENV)/bin/python:
	$(PYTHON) -m venv $(VLLM_VENV)

$(VLLM_INSTALLED): pyproject.toml constraints.txt $(VLLM_TESTS)/requirements.txt | $(VLLM_VENV)/bin/python
	$(call INSTALL,perpo and pytest,1 to 3 minutes and 1.8 GB,$(VLLM_PIP),--editable '.[openai]' pytest)
	$(call INSTALL,vLLM,a minute and 1 GB more,$(VLLM_PIP),--no-deps --requirement $(VLLM_TESTS)/requirements.txt)
	@touch $@

# ONLY="transformers-lowest highest" chooses; tools/versions.py has the list.
test-versions: $(DEVELOP)
	$(VENV)/bin/python -m tools.versions $(ONLY)

# CUDA_VENV: an environment with a CUDA build of torch and this package; CARD=sm_89 is another card.
check-cuda: $(if $(filter $(VENV),$(CUDA_VENV)),$(INSTALLED))
	$(CUDA_VENV)/bin/python -m tools.check_cuda $(if $(CARD),--card $(CARD)) $(ONLY)

lint: $(DEVELOP)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/lint-imports

types: $(DEVELOP)
	$(VENV)/bin/mypy

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet && echo "manual: site/index.html"

$(DOCS): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call INSTALL,what builds the manual,half a minute and 0.1 GB more,$(PIP),--editable '.[docs]')
	@touch $@; test -e $(INSTALLED) || touch $(INSTALLED)

bench: $(INSTALLED)
	$(VENV)/bin/python benchmarks/train_step.py --preset cpu

bench-gpu: $(INSTALLED)
	PYTHON=$(VENV)/bin/python bash benchmarks/gpu/run.sh

acceptance: $(INSTALLED)
	@$(VENV)/bin/python -m tools.acceptance $(or $(MODEL),$(error MODEL= is missing: llava15, qwen25-vl, qwen3-vl or testbed)) \
	  $(addprefix --data ,$(DATA)) $(SETS)

sweep: $(INSTALLED)
	@$(PERPO) sweep $(or $(SWEEP),$(error SWEEP= is missing, such as configs/sweeps/demo.yaml)) $(SETS) $(ARGS)

FIGURES ?= $(sort $(wildcard configs/figures/*.yaml))
QUICK_SETS := run=figures-quick prepare.train.num_prompts=16 prepare.validation.num_prompts=16 \
  prepare.test.num_prompts=16 sample.num_gpus=1
figures: $(INSTALLED)
	@$(PERPO) sweep $(or $(FIGURES),$(error there is no configs/figures/*.yaml)) \
	  $(if $(QUICK),--quick --figures data/figures-quick/figures $(QUICK_SETS:%=--set %),--figures docs/figures) $(SETS) $(ARGS)

# Another file, or SET, may name any run and any data_root; perpo knows which, and without it nothing is removed.
CLEANED = data/$(RUN)
ifneq ($(origin CONFIG)$(SET),file)
CLEANED = $(or $(shell $(PERPO) make-rules --config $(CONFIG) $(SETS) | sed -n 's/^DATA := //p'),$(error the folder of the \
  run of $(CONFIG) is not known (above is why), so nothing was removed: mend that, or remove the folder by hand))
endif
clean:
	rm -rf $(call QUOTED,$(CLEANED)) $(PLAN) $(LAST_SET)
