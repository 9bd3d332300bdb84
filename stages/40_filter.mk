# scores -> preferences (the lists worth learning from) and those dropped
.PHONY: filter
perpo_filter = @$(PERPO) filter --config $(CONFIG) $(SETS) > /dev/null
