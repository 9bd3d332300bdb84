# data sources -> prompts, one artifact a split
PROMPTS := $(SPLITS:%=$(DATA)/prompts/%/current)

.PHONY: prepare
prepare: $(PROMPTS)

$(DATA)/prompts/%/current: $(SETTINGS) $(wildcard $(SOURCES))
	@$(PERPO) prepare --config $(CONFIG) --split $* > /dev/null
