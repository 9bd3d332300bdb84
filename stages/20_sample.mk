# prompts + model -> samples
SAMPLES := $(DATA)/samples/$(SAMPLE_SPLIT)/current

.PHONY: sample
sample: $(SAMPLES)

$(SAMPLES): $(DATA)/prompts/$(SAMPLE_SPLIT)/current $(SETTINGS)
	@$(PERPO) sample --config $(CONFIG) $(SETS) > /dev/null
