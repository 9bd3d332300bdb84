# preferences + model -> reference log-probabilities (once), one adapter per method (and seed)
TRAINED := $(ADAPTERS:%=$(DATA)/adapter/%/current)

.PHONY: train
train: $(TRAINED)

$(DATA)/adapter/%/current: $(PREFERENCES) $(SETTINGS)
	@$(PERPO) train --config $(CONFIG) $(SETS) --method $* > /dev/null
