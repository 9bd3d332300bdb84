"""Pages and cards: what is escaped, and a value that nobody gives is an error."""

from pathlib import Path

import jinja2
import pytest

from perpo_pipeline.templates import html_environment, markdown_environment


def test_html_is_escaped_and_markdown_is_not(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "page").write_text("{% if shown %}\n<b>{{ text }}</b>\n{% endif %}\n")
    for environment, expected in (
        (html_environment(tmp_path / "own", tmp_path), "<b>&lt;i&gt;</b>\n"),
        (markdown_environment(tmp_path), "<b><i></b>\n"),
    ):
        template = environment.get_template("page")
        assert template.render(shown=True, text="<i>") == expected
        with pytest.raises(jinja2.UndefinedError, match="text"):
            template.render(shown=True)
    (tmp_path / "own/page").write_text("first")
    assert html_environment(tmp_path / "own", tmp_path).get_template("page").render() == "first"
