# The run that CONFIG describes under SET: the graph of its artifacts, and the stages' commands. The project's Makefile
# includes this file, and so does that of a folder that `perpo init` wrote. They say
#   PERPO   the program           CONFIG, SET   the run's file, and settings that replace the file's
#   CODE    the program's source  INSTALLED     what must have been made before the program can be called (may be empty)

RULES := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
$(if $(filter 1,$(words $(CONFIG))),,$(error CONFIG='$(CONFIG)' is not one word, and Make has no way to quote a path: use `perpo run`))
PLAN  := data/.plans/$(subst /,__,$(subst _,_u,$(CONFIG))).mk
GRAPH := $(CODE)/commands/make_rules.py $(wildcard $(CODE)/status/*.py)
STAGE_GOALS := all prepare sample score filter train eval report

# OpenMP threads sleep while they wait: spinning costs six times the processor time beside other work.
export OMP_WAIT_POLICY ?= PASSIVE

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := all
.NOTPARALLEL:  # two trainings at the same time would compute the reference twice
.PHONY: all rounds-shown

QUOTED     = '$(subst ','\'',$(1))'
SETS      := $(foreach setting,$(SET),--set $(call QUOTED,$(setting)))
LAST_SET  := $(PLAN:.mk=.set)

ifneq ($(filter $(STAGE_GOALS),$(or $(MAKECMDGOALS),all)),)
# Make compares times of files, so a file keeps the last SET: it is written when SET changes.
ifneq ($(file <$(LAST_SET)),$(SETS))
$(shell mkdir -p $(dir $(LAST_SET)))
$(file >$(LAST_SET),$(SETS))
endif
endif

# The plan has a rule for each call of a stage; it is made from the YAML file and SET.
# Make calls the stages after any change that may change a result; the fingerprint decides there.
SETTINGS := $(CONFIG) $(INSTALLED) $(wildcard $(LAST_SET)) \
  $(shell find $(CODE) -name '*.py' -o -name '*.safetensors')

ifneq ($(filter $(STAGE_GOALS),$(or $(MAKECMDGOALS),all)),)
include $(PLAN)
include $(sort $(wildcard $(RULES)/[0-9]*.mk))
all: $(or $(ALL),report-shown)

rounds-shown: $(SETTINGS)  # for a file with the section `rounds`
	@$(PERPO) iterate --config $(CONFIG) $(SETS)
endif

$(PLAN): $(CONFIG) $(INSTALLED) $(wildcard $(LAST_SET)) $(GRAPH)
	@mkdir -p $(@D)
	@$(PERPO) make-rules --config $(CONFIG) $(SETS) > $@.part && mv $@.part $@
