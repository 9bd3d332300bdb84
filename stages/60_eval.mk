# test prompts + model (+ adapter) -> predictions and metrics, one per model and image condition
METRICS := $(EVALUATIONS:%=$(DATA)/metrics/%/current)

.PHONY: eval
eval: $(METRICS)

$(METRICS): $(DATA)/prompts/$(EVAL_SPLIT)/current $(SETTINGS)
$(foreach a,$(EVALUATED_ADAPTERS),$(foreach file,/current -other-image/current -blank-image/current,\
  $(eval $(DATA)/metrics/$(a)$(file): $(DATA)/adapter/$(a)/current)))

$(DATA)/metrics/%/current:
	@$(PERPO) eval --config $(CONFIG) $(SETS) --evaluation $* > /dev/null
