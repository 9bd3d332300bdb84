# samples + truth -> scores
SCORES := $(DATA)/scores/$(SAMPLE_SPLIT)/current

.PHONY: score
score: $(SCORES)

$(SCORES): $(SAMPLES) $(SETTINGS)
	@$(PERPO) score --config $(CONFIG) $(SETS) > /dev/null
