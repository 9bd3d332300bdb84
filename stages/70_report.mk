# everything above -> one HTML page
REPORT := $(DATA)/report/default/current
MADE_AT := $(shell date +%s)

.PHONY: report report-shown
report: $(REPORT)

$(REPORT): $(METRICS) $(TRAINED) $(SCORES) $(PREFERENCES) $(CONFIG)
	@$(PERPO) report --config $(CONFIG) > /dev/null

report-shown: $(REPORT)
	@if [ "$$(stat -c %Y $(REPORT))" -lt $(MADE_AT) ]; then echo "everything is up to date, nothing was run"; fi
	@echo "report: $(DATA)/report/default/$$(cat $(REPORT))/report.html"
