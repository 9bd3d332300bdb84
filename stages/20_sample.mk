# prompts + model -> samples
.PHONY: sample
perpo_sample = @$(PERPO) sample --config $(CONFIG) $(SETS) > /dev/null
