# everything above -> one HTML page
REPORT := $(DATA)/report/default/current
STARTED := $(shell mkdir -p data/.plans && touch data/.plans/started)

.PHONY: report report-shown
report: $(REPORT)

$(REPORT): $(METRICS) $(TRAINED) $(SCORES) $(PREFERENCES) $(SETTINGS)
	@$(PERPO) report --config $(CONFIG) $(SETS) > /dev/null

report-shown: $(REPORT)
	@if [ data/.plans/started -nt $(REPORT) ]; then echo "everything is up to date, nothing was run"; fi
	@page="$(DATA)/report/default/$$(cat $(REPORT))/report.html"; \
	  test -f "$$page" || { echo "make: $$page is gone: remove $(REPORT) and try again" >&2; exit 2; }; \
	  echo "report: $$page"
