"""Every figure on the page comes from the versions behind what it shows."""

import dataclasses
import re

import pytest
from html_page import Page
from synthetic_run import evaluate_synthetic, make_synthetic_run, train_synthetic

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.filter.filter_lists import filter_lists
from perpo_pipeline.report.inputs import open_inputs
from perpo_pipeline.report.training_log import read_trained
from perpo_pipeline.report.write_report import report
from perpo_pipeline.run import Run


def _with_margin(run: Run, min_margin: float) -> Run:
    """The run as if somebody had written another min_margin into its file."""
    changed = run.config.filter.model_copy(update={"min_margin": min_margin})
    config = run.config.model_copy(update={"filter": changed})
    return dataclasses.replace(run, config=config)


def _text(html: str) -> str:
    """What a reader sees while no tip is open."""
    seen = re.sub(r'<span class="tip".*?</span>', "", html)
    return " ".join("".join(Page(seen).text).split())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Adapters trained on the lists of min_margin 0.85; then the lists are filtered with 0.6."""
    run = make_synthetic_run(
        tmp_path_factory.mktemp("mixed"), num_prompts=24, methods=("perpo", "dpo"), min_margin=0.85
    )
    older = run.latest("preferences", "train")
    changed = dataclasses.replace(_with_margin(run, 0.6), allow_stale=True)
    newer = filter_lists(changed, "train")
    assert 0 < older.manifest["rows"] < newer.manifest["rows"]
    version = report(changed)
    return changed, older, newer, (version.path / "report.html").read_text(encoding="utf-8")


def test_the_lists_of_an_adapter_are_those_that_it_was_trained_on(mixed):
    run, older, newer, _ = mixed
    inputs = open_inputs(run)
    assert set(inputs.lists) == {"perpo", "dpo"}
    assert {version.fingerprint for version in inputs.lists.values()} == {older.fingerprint}
    assert inputs.preferences.fingerprint == older.fingerprint != newer.fingerprint


@pytest.mark.parametrize(
    ("settings", "is_whole"),
    [({}, True), ({"list_size": 4}, False), ({"drop_unparsed": True}, False)]
    + [({"strategy": name}, name == "lists") for name in ("lists", "m3po")],
)
def test_lists_without_some_samples_are_not_called_lists_of_all(mixed, settings, is_whole):
    run, older, _, _ = mixed
    adapter = next(iter(open_inputs(run).adapters.values()))
    manifest = {**older.manifest, "settings": {**older.manifest["settings"], **settings}}
    assert read_trained(adapter, dataclasses.replace(older, manifest=manifest)).is_whole == is_whole


def test_each_number_of_lists_on_the_page_is_that_of_the_adapter(mixed):
    _, older, newer, html = mixed
    kept, other = older.manifest["rows"], newer.manifest["rows"]
    text = _text(html)
    assert f"PerPO trained on {kept} lists of 6 samples" in text
    for method in ("perpo", "dpo"):
        assert Page(html).row("data-training", method)[1:4] == [str(kept), "0.85", "60"]
    assert f"of the {kept} lists that PerPO was trained on" in text
    assert f"{kept} of 24 lists are kept for training" in text
    assert "the smallest allowed margin, 0.85" in text and f"kept: {kept}" in text
    assert older.fingerprint in text and newer.fingerprint not in text
    for claim in (f"{other} lists", f"kept: {other} ", "margin, 0.6"):
        assert claim not in text, claim


def test_mixed_versions_are_refused_unless_they_are_allowed(mixed):
    run, *_ = mixed
    with pytest.raises(ArtifactError, match=r"other preferences[^.]*0\.85, now 0\.6"):
        report(Run(run.config, quiet=True))


def test_a_page_of_mixed_versions_opens_with_which_parts_are_of_which_settings(mixed):
    *_, html = mixed
    banner = html[html.index('id="stale"') : html.index('id="headline"')]
    assert "Not all parts of this page belong together" in banner
    assert "0.85" in banner and "0.6" in banner and "adapter/perpo" in banner


@pytest.mark.parametrize(
    "section", ["headline", "table", "paired", "pictures", "lists", "training"]
)
def test_every_section_of_a_mixed_part_says_so(mixed, section):
    *_, html = mixed
    at = html.index(f'id="{section}"')
    start = html[at : at + 1200]
    assert 'class="stale"' in start and "preferences" in start


def test_figures_of_an_older_version_carry_its_settings(mixed):
    *_, html = mixed
    samples = html[html.index('id="samples"') : html.index('id="training"')]
    assert "preferences/train: an older version than the run" in samples
    assert "made with filter.min_margin 0.85, the configuration says 0.6" in samples


def test_a_consistent_run_has_neither_banner_nor_marks(tmp_path):
    run = make_synthetic_run(tmp_path, num_prompts=8, methods=("perpo",))
    html = (report(run).path / "report.html").read_text(encoding="utf-8")
    assert 'id="stale"' not in html and 'class="stale"' not in html


def test_adapters_of_different_lists_are_shown_as_such(tmp_path):
    run = make_synthetic_run(tmp_path, num_prompts=24, methods=("perpo", "dpo"))
    changed = _with_margin(run, 0.9)
    filter_lists(changed, "train")
    train_synthetic(changed, "dpo")
    evaluate_synthetic(changed, ["dpo"])
    html = (report(dataclasses.replace(changed, allow_stale=True)).path / "report.html").read_text()
    rows = {m: Page(html).row("data-training", m)[2] for m in ("perpo", "dpo")}
    assert rows == {"perpo": "0.6", "dpo": "0.9"}
    assert "These models were trained on different lists" in _text(html)
