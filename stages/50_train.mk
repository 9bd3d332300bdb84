# preferences + model -> reference log-probabilities (once), one adapter per method (and seed)
.PHONY: train
perpo_train = @$(PERPO) train --config $(CONFIG) $(SETS) --method $(1) > /dev/null
