"""The manual's page of settings."""

import re
from pathlib import Path

from perpo_pipeline.config.reference import SECTIONS
from tools.manual.settings_page import settings_page

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_has_every_section_and_links_to_pages_that_exist() -> None:
    page = settings_page()
    assert page.count("\n## ") == len(SECTIONS) and "docs/" not in page
    linked = re.findall(r"\]\(([\w-]+\.md)\)", page)
    assert len(linked) > 3 and all((DOCS / name).is_file() for name in linked)
