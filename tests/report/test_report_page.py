"""The page of a synthetic run, read with an HTML parser."""

import dataclasses
import re
import shutil
import subprocess
from hashlib import sha256

import pytest
from html_page import Page
from synthetic_run import make_synthetic_run

from perpo_pipeline.drawing.marks import BEFORE, TRUTH
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.evaluate.summarise import summarise
from perpo_pipeline.report.inputs import open_inputs
from perpo_pipeline.report.paired import read_outcomes
from perpo_pipeline.report.write_report import report
from perpo_pipeline.run import make
from perpo_pipeline.store.artifacts import input_of
from perpo_pipeline.store.writing import Recipe

HOSTILE = "<script>alert(1)</script> & \"quoted\" <img src=x onerror='x'> {index}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_synthetic_run(tmp_path_factory.mktemp("run"), methods=("perpo", "dpo", "sft"))


@pytest.fixture(scope="module")
def version(run):
    return report(run)


@pytest.fixture(scope="module")
def html(version):
    return (version.path / "report.html").read_text(encoding="utf-8")


def _metrics(run, shown, split="test"):
    version = run.latest("metrics", f"{shown}@{split}")
    return {row["name"]: row for row in version.table().to_pylist()}


def _percent(row):
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def test_every_tag_is_closed_and_every_id_is_unique(html):
    page = Page(html)
    assert page.open == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used <= set(ids)


def test_the_page_loads_nothing_from_outside(html):
    page = Page(html)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "base"}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    for _, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attrs.get(name, "#").startswith(("#", "data:image/"))
    assert "http" not in html and "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


@pytest.mark.parametrize("method", ["base", "sft", "dpo", "perpo"])
def test_the_table_holds_the_metrics_of_the_artifacts(run, html, method):
    cells = Page(html).row("data-method", method)
    metrics = _metrics(run, method)
    shown = ("ap50", "ap75", "miou", "parse_rate")
    assert cells[1:5] == [_percent(metrics[name]) for name in shown]
    assert cells[5] == _percent(_metrics(run, f"{method}-other-image")["ap50"])
    assert cells[6] == _percent(_metrics(run, f"{method}-blank-image")["ap50"])
    assert cells[7] == "40"
    assert metrics["out_of_frame_rate"]["value"] == 0 and "out of frame" not in html


def test_boxes_out_of_the_frame_have_a_column_where_there_are_any(tmp_path):
    run = make_synthetic_run(tmp_path, num_prompts=8, methods=("perpo",))
    far = {"completion": "[0.50, 0.50, 1.50, 1.50]"}
    _rewritten(run, "base@test", lambda i, row: row | far if i < 2 else row)
    html = (report(run).path / "report.html").read_text(encoding="utf-8")
    rates = {m: _metrics(run, m)["out_of_frame_rate"] for m in ("base", "perpo")}
    assert [row["value"] for row in rates.values()] == [0.25, 0]
    for model, row in rates.items():
        assert Page(html).row("data-method", model)[5] == _percent(row)
        marks = re.findall(rf'<tr[^>]*data-method="{model}".*?</tr>', html, re.DOTALL)[0]
        assert re.findall(r"<td( class=\"best\")?>", marks)[4] == "", "neither rate is better"


def test_the_rows_have_the_order_of_the_papers_table(html):
    rows = [attrs["data-method"] for attrs, _ in Page(html).rows if "data-method" in attrs]
    assert rows == ["base", "sft", "dpo", "perpo", "oracle"]


def test_the_oracle_row_is_the_best_sample_of_each_list(run, html):
    scores = run.latest("scores", "train").table().to_pylist()
    best = {}
    for row in scores:
        best[row["prompt_id"]] = max(row["reward"], best.get(row["prompt_id"], 0))
    share = sum(reward >= 0.5 for reward in best.values()) / len(best)
    assert Page(html).row("data-method", "oracle")[1].startswith(f"{100 * share:.1f} [")


def test_the_paired_differences_equal_those_of_the_metrics(run, version):
    rows = {(row["metric"], row["worse"]): row for row in version.table().to_pylist()}
    assert set(rows) == {(m, w) for m in ("ap50", "mean_reward") for w in ("base", "sft", "dpo")}
    names = {"ap50": "ap50", "mean_reward": "miou"}
    for (metric, worse), row in rows.items():
        ours, theirs = (_metrics(run, v)[names[metric]]["value"] for v in ("perpo", worse))
        assert row["difference"] == pytest.approx(ours - theirs, abs=1e-12)
        assert row["low"] <= row["difference"] <= row["high"]
        assert (row["better"], row["n"], row["test"]) == ("perpo", 40, "paired bootstrap")
    assert (
        rows["ap50", "base"]["low"] > 0
    )  # right for 0.9 against 0.45 of 40 prompts: a true effect
    assert rows["ap50", "base"]["p_value"] < 0.05


def test_each_paired_difference_is_shown_with_its_p_value(version, html):
    text = " ".join("".join(Page(html).text).split())
    labels = {"base": "Base", "sft": "SFT", "dpo": "DPO"}
    for row in version.table().to_pylist():
        difference, low, high = (f"{100 * row[key]:+.1f}" for key in ("difference", "low", "high"))
        p = "p < 0.001" if row["p_value"] < 0.001 else f"p = {row['p_value']:.3f}"
        shown = f"PerPO − {labels[row['worse']]}: {difference} [{low}, {high}], {p}"
        assert shown in text


def test_the_headline_claims_only_what_the_intervals_support(run, html):
    text = " ".join("".join(Page(html).text).split())
    base, perpo = _metrics(run, "base")["ap50"], _metrics(run, "perpo")["ap50"]
    assert perpo["low"] > base["high"]
    assert f"PerPO raises AP@50 from {100 * base['value']:.1f} %" in text
    assert "intervals do not overlap" in text


def test_kept_and_dropped_lists_are_counted_by_reason(run, html):
    text = " ".join("".join(Page(html).text).split())
    counts = run.latest("preferences", "train").manifest["counts"]
    assert f"kept: {counts['kept']}" in text
    assert f"dropped: margin too small: {counts['dropped']['margin_too_small']}" in text


def test_each_picture_shows_the_ground_truth_and_both_predictions(html):
    page = Page(html)
    pictures = [attrs for tag, attrs in page.tags if tag == "figure" and "data-outcome" in attrs]
    assert 6 <= len(pictures) <= 12
    shown = html[html.index('id="pictures"') : html.index('id="lists"')]
    small = re.findall(r'<button type="button" class="picture".*?</button>', shown, re.DOTALL)
    assert len(small) == len(pictures)
    strokes = re.findall(r'<polygon[^>]*stroke="(#[0-9a-f]{6})"', "".join(small))
    assert strokes.count(TRUTH.colour) == len(pictures)
    without_box = shown.count('"nowrap">no box')
    assert strokes.count(BEFORE.colour) + without_box == len(pictures)


def test_every_artifact_is_in_the_lineage(run, html):
    text = "".join(Page(html).text)
    names = [
        ("prompts", "train"),
        ("samples", "train"),
        ("scores", "train"),
        ("preferences", "train"),
        ("adapter", "dpo"),
        ("predictions", "base@test"),
        ("metrics", "perpo-other-image@test"),
    ]
    for artifact, variant in names:
        assert f"{artifact} / {variant}" in text
        assert run.latest(artifact, variant).fingerprint in text


def test_the_same_inputs_are_up_to_date_and_give_the_same_page(run, version, html, capsys):
    assert report(run).path == version.path
    assert "up to date" in capsys.readouterr().err
    again = report(dataclasses.replace(run, out=run.config.data_root / "again"))
    assert again.path != version.path
    assert (again.path / "report.html").read_text(encoding="utf-8") == html


def test_hostile_text_is_shown_not_executed(tmp_path):
    run = make_synthetic_run(
        tmp_path, methods=("perpo",), expression=HOSTILE, title="<b>bold</b>", pictures=4
    )
    html = (report(run).path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any("onerror" in attrs for _, attrs in page.tags)
    assert '<script>alert(1)</script> & "quoted" <img src=x' in "".join(page.text)
    assert "<b>bold</b>" in "".join(page.text)


def test_without_pictures_and_lists_the_page_holds_no_image(tmp_path):
    run = make_synthetic_run(tmp_path, num_prompts=8, methods=("perpo",), pictures=0, lists=0)
    html = (report(run).path / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in html and 'id="lists"' not in html and 'id="pictures"' not in html
    used = {attrs["href"][1:] for tag, attrs in Page(html).tags if tag == "a"}
    assert used <= {attrs["id"] for _, attrs in Page(html).tags if "id" in attrs}


def test_every_answer_of_a_shown_list_has_its_reward_and_its_share_of_the_loss(run, html):
    preferences = run.latest("preferences", "train").table().to_pylist()
    chosen = sorted(preferences, key=lambda row: sha256(row["prompt_id"].encode()).digest())[:3]
    for at, row in enumerate(chosen, 1):
        start = html.index(f'id="list-{at}"')
        page = Page(html[start - 24 : html.index("</article>", start) + len("</article>")])
        shown = [cells for attrs, cells in page.rows if "data-rank" in attrs]
        assert [cells[1].strip() for cells in shown] == [f"{one:.2f}" for one in row["rewards"]]
        assert [cells[-1] for cells in shown] == row["completions"]
        more = sum(float(cells[-3].split()[0].rstrip("\xa0%")) for cells in shown)
        assert more == pytest.approx(100, abs=0.06 * len(shown))


def test_several_seeds_are_shown_as_their_mean_with_each_seed_below(tmp_path):
    run = make_synthetic_run(tmp_path, methods=("perpo", "sft"), seeds=(3, 4))
    version = report(run)
    page = Page((version.path / "report.html").read_text(encoding="utf-8"))
    seeds = [_metrics(run, f"perpo-seed{seed}")["ap50"] for seed in (3, 4)]
    mean = {key: (seeds[0][key] + seeds[1][key]) / 2 for key in ("value", "low", "high")}
    assert page.row("data-method", "perpo")[1] == _percent(mean)
    assert page.row("data-variant", "perpo-seed4")[1] == _percent(seeds[1])
    first = version.table().to_pylist()[0]
    base = _metrics(run, "base")["ap50"]["value"]
    assert (first["metric"], first["better"], first["worse"]) == ("ap50", "perpo", "base")
    assert first["difference"] == pytest.approx(mean["value"] - base, abs=1e-12)


SPLITS = ("test", "more", "far")


@pytest.fixture(scope="module")
def on_three(tmp_path_factory):
    root = tmp_path_factory.mktemp("splits")
    settings = {"methods": ("perpo", "dpo"), "splits": SPLITS, "out_of_domain": ("far",)}
    run = make_synthetic_run(root, num_prompts=24, **settings)
    version = report(run)
    return run, version, Page((version.path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("method", ["base", "dpo", "perpo"])
def test_all_test_sets_stand_side_by_side_those_out_of_domain_apart(on_three, method):
    run, _, page = on_three
    assert page.open == []
    rows = [cells for attrs, cells in page.rows if attrs.get("data-sets") == f"AP@50 {method}"]
    shown = [[" ".join(cell.split()) for cell in row[1:]] for row in rows]
    values = {split: _percent(_metrics(run, method, split)["ap50"]) for split in SPLITS}
    assert shown == [[values["test"], values["more"]], [values["far"]]]
    text = " ".join("".join(page.text).split())
    assert text.index("In domain AP@50") < text.index("Out of domain AP@50")
    assert page.row("data-method", method)[1] == values["test"]


def test_the_methods_are_compared_pair_by_pair_on_each_test_set(on_three):
    run, version, page = on_three
    rows = {(r["split"], r["metric"], r["worse"]): r for r in version.table().to_pylist()}
    assert len(rows) == 3 * 2 * 2
    found = [cells for attrs, cells in page.rows if attrs.get("data-sets") == "AP@50 PerPO − Base"]
    shown = ["".join(cell.split()) for row in found for cell in row[1:]]
    for split, cell in zip(SPLITS, shown, strict=True):
        row = rows[split, "ap50", "base"]
        ours, theirs = (_metrics(run, m, split)["ap50"]["value"] for m in ("perpo", "base"))
        assert row["difference"] == pytest.approx(ours - theirs, abs=1e-12) and row["n"] == 24
        assert cell.startswith(f"{100 * row['difference']:+.1f}[{100 * row['low']:+.1f},")


def test_the_artifacts_of_every_test_set_are_in_the_lineage(on_three):
    run, _, page = on_three
    text = "".join(page.text)
    for split in SPLITS:
        for artifact, variant in (("prompts", split), ("predictions", f"base@{split}")):
            assert f"{artifact} / {variant}" in text
            assert run.latest(artifact, variant).fingerprint in text


def _rewritten(run, name, change, **settings):
    """The run with its predictions `name` changed, and metrics that rest on the changed ones."""
    old = run.latest("predictions", name)
    rows = [change(i, row) for i, row in enumerate(old.table().to_pylist())]
    inputs = {name: input_of(old, name) for name in old.manifest["inputs"]}
    version = old.manifest["stage_version"]
    counted = {**old.manifest["settings"], "changed": True, **settings}
    recipe = Recipe("predictions", name, "eval", version, counted, inputs)
    made = make(run, recipe, lambda writer: writer.write_part(0, rows))
    measured = summarise(made.table(), inputs["prompts"].table())
    recipe = Recipe("metrics", name, "eval", version, {}, {"predictions": made})
    make(run, recipe, lambda writer: writer.write_part(0, measured))


def test_missing_answers_are_counted_where_there_are_any(tmp_path, html):
    run = make_synthetic_run(tmp_path, num_prompts=10, methods=("perpo",), splits=("test", "more"))
    nothing = {"completion": "", "reward": 0.0, "parse_ok": False, "box": None}

    def damage(i, row):
        if i < 2:
            return row | nothing | {"finish_reason": "unanswered"}
        if i == 2:
            return row | nothing | {"completion": "<think>a", "finish_reason": "length"}
        return row | {"finish_reason": "length"} if i == 3 else row

    _rewritten(run, "base@more", damage)
    page = Page((report(run).path / "report.html").read_text(encoding="utf-8"))
    assert page.row("data-missing", "base@more") == ["base@more", "2", "2", "1", "10"]
    assert not [1 for attrs, _ in page.rows if attrs.get("data-missing") == "perpo@more"]
    text = "".join(page.text)
    assert "Answers missing or cut off" in text and "reached eval.max_new_tokens" in text
    assert "Answers missing or cut off" not in html


def test_slices_of_eval_by_are_folded_tables_of_the_main_metric(tmp_path, html):
    run = make_synthetic_run(tmp_path, num_prompts=9, methods=("perpo",), by=("colour",))
    page = Page((report(run).path / "report.html").read_text(encoding="utf-8"))
    text = " ".join("".join(page.text).split())
    assert "AP@50, % on test by colour: 3 values" in text
    rows = {}
    for model in ("base", "perpo"):
        for row in run.latest("metrics", f"{model}@test").table().to_pylist():
            if row["slice_column"] == "colour" and row["name"] == "ap50":
                rows[row["slice_value"], model] = row
    for value, shown in (("red", "red"), ("blue", "blue"), (None, "(none)")):
        cells = page.row("data-slice", f"test colour {shown}")
        base, perpo = (rows[value, model] for model in ("base", "perpo"))
        expected = [_shown(base), _shown(perpo)]
        assert cells[1].startswith(expected[0]) and cells[2].startswith(expected[1])
        assert cells[3] == str(base["n"])
    assert 'id="slices"' not in html


def _shown(row):
    return f"{100 * row['value']:.1f}"


def test_without_splits_out_of_domain_the_test_sets_share_a_table(tmp_path):
    run = make_synthetic_run(tmp_path, num_prompts=8, methods=("perpo",), splits=("test", "more"))
    page = Page((report(run).path / "report.html").read_text(encoding="utf-8"))
    (cells,) = [cells for attrs, cells in page.rows if attrs.get("data-sets") == "AP@50 base"]
    text = "".join(page.text)
    assert len(cells) == 3 and "omain" not in text and "All test sets" in text


def test_one_test_set_has_no_section_for_all(html):
    assert "All test sets" not in html and "data-sets" not in html


def test_a_split_is_marked_out_of_domain_in_a_new_page(on_three):
    run, version, _ = on_three
    unmarked = run.config.eval.model_copy(update={"out_of_domain": []})
    changed = dataclasses.replace(run, config=run.config.model_copy(update={"eval": unmarked}))
    assert report(changed).fingerprint != version.fingerprint


def test_a_run_on_text_has_its_own_columns_and_the_smallest_distance_is_best(tmp_path):
    run = make_synthetic_run(tmp_path, task="ocr", expression="Read page {index} $x$")
    html = (report(run).path / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    metric = _metrics(run, "perpo")["edit_distance"]
    assert page.row("data-method", "perpo")[1] == (
        f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
    )
    assert "lowers edit distance" in html and "AP@50" not in html
    methods = ("base", "sft", "dpo", "perpo")
    values = [_metrics(run, v)["edit_distance"]["value"] for v in methods]
    first_cells = [
        re.search(rf'<tr[^>]*data-method="{v}".*?<td( class="best")?>', html, re.DOTALL)[1]
        for v in methods
    ]
    assert [cell is not None for cell in first_cells] == [v == min(values) for v in values]


def test_a_run_without_training_still_has_a_page(tmp_path):
    run = make_synthetic_run(tmp_path, methods=("perpo",))
    only_base = run.config.eval.model_copy(update={"models": ["base"]})
    run = dataclasses.replace(run, config=run.config.model_copy(update={"eval": only_base}))
    version = report(run)
    assert version.manifest["rows"] == 0
    assert "Paired comparison" not in (version.path / "report.html").read_text(encoding="utf-8")


def test_a_missing_artifact_is_named(tmp_path):
    run = make_synthetic_run(tmp_path, methods=("dpo",))
    shutil.rmtree(run.place("metrics", "dpo@test"))
    with pytest.raises(ArtifactError, match=r"metrics/dpo@test(.|\n)*--evaluation dpo@test"):
        report(run)


def test_predictions_of_other_prompts_are_refused(run):
    inputs = open_inputs(run)
    mixed = dataclasses.replace(inputs.main, prompts=inputs.sampled_prompts)
    with pytest.raises(ArtifactError, match="predictions of base"):
        read_outcomes(mixed)


@pytest.mark.browser
def test_nothing_is_wider_than_a_phone(html, tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    probe = """<script>
        document.body.style.width = "360px";
        document.title = "wide " + document.body.scrollWidth;
    </script>"""
    page = tmp_path / "page.html"
    page.write_text(html.replace("</body>", probe + "</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,2000"]
    shown = subprocess.run(
        [chromium, *flags, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert re.search(r"<title>wide (\d+)</title>", shown.stdout)[1] == "360"


def test_normal_forms_of_texts_are_named_beside_the_figures(tmp_path, html):
    run = make_synthetic_run(tmp_path, num_prompts=6, methods=("perpo",))
    for name in ("base@test", "perpo@test"):
        _rewritten(run, name, lambda _, row: row, normalise=["nfc", "whitespace"])
    run = dataclasses.replace(run, allow_stale=True)  # the file asks for no normal forms
    page = (report(run).path / "report.html").read_text(encoding="utf-8")
    said = "All texts are normalised before they are compared (nfc, whitespace)."
    assert said in page and said not in html
