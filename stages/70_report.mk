# everything above -> one HTML page
.PHONY: report report-shown
perpo_report = @$(PERPO) report --config $(CONFIG) $(SETS) > /dev/null

REPORT := $(DATA)/report/default/current
STARTED := $(shell mkdir -p data/.plans && touch data/.plans/started)

report-shown: sample score filter train eval report
	@if [ data/.plans/started -nt $(REPORT) ]; then echo "everything is up to date, nothing was run"; fi
	@page="$(DATA)/report/default/$$(cat $(REPORT))/report.html"; \
	  test -f "$$page" || { echo "make: $$page is gone: remove $(REPORT) and try again" >&2; exit 2; }; \
	  echo "report: $$page"
