# data sources -> prompts, one artifact per split
.PHONY: prepare
perpo_prepare = @$(PERPO) prepare --config $(CONFIG) $(SETS) --split $(1) > /dev/null
