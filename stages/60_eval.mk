# test prompts + model (+ adapter) -> predictions and metrics, one per model, split and image condition.
# One call makes all evaluations of a model, so the model is loaded once.
.PHONY: eval
perpo_eval = @$(PERPO) eval --config $(CONFIG) $(SETS) $(1:%=--evaluation %) > /dev/null
