# test prompts + model (+ adapter) -> predictions and metrics, one per model, split and image condition
METRICS := $(foreach m,$(EVALUATED),$(EVALUATIONS_$(m):%=$(DATA)/metrics/%/current))

.PHONY: eval
eval: $(METRICS)

# One call makes all evaluations of a model, so the model is loaded once.
define EVALUATE
$(EVALUATIONS_$(1):%=$(DATA)/metrics/%/current) &: $(EVAL_SPLITS:%=$(DATA)/prompts/%/current) \
  $(patsubst %,$(DATA)/adapter/%/current,$(filter-out base,$(1))) $(SETTINGS)
	@$$(PERPO) eval --config $$(CONFIG) $$(SETS) $(EVALUATIONS_$(1):%=--evaluation %) > /dev/null
endef
$(foreach m,$(EVALUATED),$(eval $(call EVALUATE,$(m))))
