"""The date of a run's prompts; apart from the sections, because models need it without pydantic."""

from datetime import date

TEMPLATE_DATE = date(2024, 7, 26)  # what Llama's template writes where it knows no clock
