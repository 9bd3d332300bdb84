# samples + truth -> scores
SCORES := $(DATA)/scores/$(SAMPLE_SPLIT)/current

.PHONY: score
score: $(SCORES)

$(SCORES): $(SAMPLES) $(CONFIG)
	@$(PERPO) score --config $(CONFIG) > /dev/null
