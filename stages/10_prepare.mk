# data sources -> prompts, one artifact per split
PROMPTS := $(SPLITS:%=$(DATA)/prompts/%/current)

.PHONY: prepare
prepare: $(PROMPTS)

$(DATA)/prompts/%/current: $(SETTINGS) $(wildcard $(SOURCES))
	@$(PERPO) prepare --config $(CONFIG) $(SETS) --split $* > /dev/null
