# samples + truth -> scores
.PHONY: score
perpo_score = @$(PERPO) score --config $(CONFIG) $(SETS) > /dev/null
