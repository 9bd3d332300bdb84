# scores -> preferences (the lists worth learning from) and those dropped
PREFERENCES := $(DATA)/preferences/$(SAMPLE_SPLIT)/current

.PHONY: filter
filter: $(PREFERENCES)

$(PREFERENCES): $(SCORES) $(SETTINGS)
	@$(PERPO) filter --config $(CONFIG) $(SETS) > /dev/null
