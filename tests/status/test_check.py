"""Stages take only inputs that the configuration describes, through their whole lineage."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from status.made_run import configured, make_node

from perpo_pipeline import cli
from perpo_pipeline.commands.options import open_run
from perpo_pipeline.config.overrides import Override
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.run import Run
from perpo_pipeline.status.options import Options, options_of
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.store.current import set_current


def run_of(file: Path, **changed: Any) -> Run:
    return Run(configured(file, **changed), quiet=True)


def refusal(run: Run, artifact: str, variant: str = "train") -> ArtifactError:
    with pytest.raises(ArtifactError) as caught:
        run.latest(artifact, variant)
    return caught.value


def test_a_run_made_elsewhere_with_auto_is_taken_in_silence(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(file)
    assert run.latest("samples", "train").manifest["settings"]["backend"] == "vllm"
    run.latest("report")
    run.latest("metrics", "perpo-blank-image@test")
    assert capsys.readouterr().err == ""


def test_a_changed_setting_stops_every_stage_after_it_with_both_values(file: Path) -> None:
    run = run_of(file, filter__min_margin=0.4)
    for artifact, variant in (
        ("preferences", "train"),
        ("adapter", "perpo"),
        ("report", "default"),
    ):
        error = refusal(run, artifact, variant)
        assert error.what == (
            "preferences/train: made with filter.min_margin 0.8, the configuration says 0.4"
        )
        assert error.fix and "run: perpo filter, then" in error.fix
        assert "--allow-stale" in error.fix
    run.latest("scores", "train")


def test_the_earliest_stage_is_named_whatever_is_asked_for(file: Path) -> None:
    run = run_of(file, sample__temperature=0.7, train__lora__rank=8)
    asked = [("samples", "train"), ("preferences", "train"), ("adapter", "perpo")]
    for artifact, variant in asked:
        error = refusal(run, artifact, variant)
        assert "sample.temperature 0.5, the configuration says 0.7" in error.what
        assert error.fix and "run: perpo sample, then" in error.fix
    assert "2 inputs are not" in refusal(run, "adapter", "perpo").what
    assert "adapter/perpo: made with train.lora.rank 128, the configuration says 8" in (
        refusal(run, "metrics", "perpo@test").what
    )


def test_several_inputs_are_refused_in_one_error(file: Path) -> None:
    run = run_of(file, train__learning_rate=1.0, eval__max_new_tokens=9)
    with pytest.raises(ArtifactError) as caught:
        run.all_latest([("metrics", "base@test"), ("metrics", "perpo@test"), ("adapter", "sft")])
    lines = caught.value.what.splitlines()
    names = [line.split(":")[0].removeprefix("  - ") for line in lines[1:]]
    assert names == [
        "adapter/sft",
        "adapter/perpo",
        "predictions/base@test",
        "predictions/perpo@test",
    ]
    assert caught.value.fix and "run: perpo train, then" in caught.value.fix


def test_allow_stale_goes_on_says_so_and_records_it(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dataclasses.replace(run_of(file, filter__min_margin=0.4), allow_stale=True)
    made = make_node(run, ("adapter", "perpo"))
    run.latest("preferences", "train")
    said = "preferences/train: made with filter.min_margin 0.8, the configuration says 0.4"
    assert capsys.readouterr().err.count(f"--allow-stale: {said}\n") == 1
    assert options_of(made.path, made.manifest).stale == {
        "preferences/train filter.min_margin": "made with filter.min_margin 0.8, "
        "the configuration says 0.4"
    }
    error = refusal(run_of(file, filter__min_margin=0.4), "adapter", "perpo")
    assert said in error.what


def test_what_an_option_asked_for_is_taken_and_named_once(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = Options({"filter.min_margin": "--min-margin 0.4"})
    flagged = dataclasses.replace(run_of(file, filter__min_margin=0.4), options=asked)
    make_node(flagged, ("preferences", "train"))
    run = run_of(file)
    for _ in range(2):
        make_node(run, ("adapter", "perpo"))
    assert (
        capsys.readouterr().err.count(
            "takes preferences/train: made with filter.min_margin 0.4, the configuration says 0.8; "
            "--min-margin 0.4 asked for it\n"
        )
        == 1
    )
    later = run_of(file)
    later.latest("adapter", "perpo")
    assert "--min-margin 0.4 asked for it" in capsys.readouterr().err
    other = run_of(file, filter__max_lists=5)
    assert (
        "filter.max_lists 3000, the configuration says 5" in refusal(other, "adapter", "perpo").what
    )


def test_a_version_that_is_found_again_without_the_option_no_longer_has_it(file: Path) -> None:
    asked = Options({"filter.min_margin": "--min-margin 0.4"})
    edited = run_of(file, filter__min_margin=0.4)
    make_node(dataclasses.replace(edited, options=asked), ("preferences", "train"))
    make_node(edited, ("preferences", "train"))
    assert "the configuration says 0.8" in refusal(run_of(file), "preferences").what


def test_an_input_that_was_given_is_taken_and_explains_what_was_made_from_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = run_of(file, filter__min_margin=0.4)
    other = make_node(edited, ("preferences", "train")).path
    make_node(run_of(file), ("preferences", "train"))
    given = dataclasses.replace(
        run_of(file),
        inputs={"preferences": other},
        options=Options(inputs={"preferences": f"--preferences {other}"}),
    )
    make_node(given, ("adapter", "perpo"))
    said = capsys.readouterr().err
    assert f"takes preferences from {other}, as given: preferences/train made with " in said
    assert "filter.min_margin 0.4, the configuration says 0.8" in said
    for name in ("perpo@test", "perpo-blank-image@test"):
        make_node(run_of(file), ("predictions", name))
        make_node(run_of(file), ("metrics", name))
    make_node(run_of(file), ("report", "default"))
    assert f"takes adapter/perpo: made from --preferences {other}\n" in capsys.readouterr().err


def test_inputs_made_anew_stop_what_was_made_from_the_old_ones(file: Path) -> None:
    edited = run_of(file, filter__min_margin=0.4)
    make_node(edited, ("preferences", "train"))
    error = refusal(edited, "metrics", "perpo@test")
    assert error.what == (
        "adapter/perpo: made from other preferences than the run's now (min_margin 0.8, now 0.4)"
    )
    assert error.fix and "run: perpo train --method perpo, then" in error.fix
    edited.latest("metrics", "base@test")
    assert refusal(edited, "report", "default").what.startswith("3 inputs are not what")


def test_samples_of_other_prompts_are_refused(file: Path) -> None:
    edited = run_of(file, prepare__train__per_dataset=3)
    make_node(edited, ("prompts", "train"))
    error = refusal(edited, "scores")
    assert "samples/train: made from other prompts than the run's now" in error.what
    assert "(per_dataset 2, now 3)" in error.what


def test_inputs_with_other_failed_prompts_are_other_inputs(file: Path) -> None:
    manifest = run_of(file).latest("scores", "train").path / "manifest.json"
    text = manifest.read_text()
    own = run_of(file).latest("samples", "train").fingerprint
    manifest.write_text(text.replace(f'"identity": "{own}"', f'"identity": "{own}+0"'))
    assert "made from other samples" in refusal(run_of(file), "scores").what


def test_a_source_that_was_written_later_stops(file: Path) -> None:
    rows = file.parent / "rows.jsonl"
    rows.write_text(rows.read_text() + "\n")
    error = refusal(run_of(file), "samples")
    assert f"prompts/train: {rows} was written later" in error.what
    assert error.fix and "perpo prepare --split train" in error.fix
    run_of(file).latest("prompts", "test")
    found = open_version(file.parent / "r" / "prompts" / "train").path
    set_current(found.parent, found.name)  # as `perpo prepare` does where nothing has changed
    run_of(file).latest("report")


def test_another_model_and_other_files_of_the_same_model_are_seen(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perpo_pipeline.testbed import shipped_model_dir

    mine = tmp_path / "mine"
    shutil.copytree(shipped_model_dir(), mine)
    run_of(file, model__id=str(mine)).latest("samples", "train")  # a copy is the same model
    with (mine / "generation_config.json").open("a") as stream:
        stream.write("\n")
    error = refusal(run_of(file, model__id=str(mine)), "samples")
    assert f"made with model.id testbed, the configuration says {mine}" in error.what
    error = refusal(run_of(file, model__id="llava-hf/llava-1.5-7b-hf"), "samples")
    assert "the configuration says llava-hf/llava-1.5-7b-hf" in error.what
    edited = run_of(file, model__id=str(mine))
    make_node(edited, ("samples", "train"))
    with (mine / "generation_config.json").open("a") as stream:
        stream.write("\n\n")
    assert f"other files of the model {mine}" in refusal(edited, "samples").what


def test_a_hub_model_is_compared_by_its_id_and_commit(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perpo_pipeline.config.model import ModelConfig
    from perpo_pipeline.status.model import model_difference

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    old, new = "a" * 40, "b" * 40
    manifest = {"settings": {"model": f"org/vlm@{old}"}, "notes": {"model_id": "org/vlm"}}

    def found(**model: Any) -> str | None:
        other = model_difference(manifest, ModelConfig(**model), tmp_path / "cache")
        return other and str(other)

    assert found(id="org/vlm") is None and found(id="org/vlm", revision=old) is None
    assert found(id="org/other") == "model.id org/vlm, the configuration says org/other"
    assert (found(id="org/vlm", revision=new) or "").startswith("model.revision aaaaaaaaaaaa")
    refs = tmp_path / "models--org--vlm" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(old)
    assert found(id="org/vlm") is None
    (refs / "main").write_text(new)
    assert "the configuration says main (bbbbbbbbbbbb)" in (found(id="org/vlm") or "")


def test_another_version_of_a_stage_is_refused(file: Path) -> None:
    manifest = run_of(file).latest("scores", "train").path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"stage_version": 3', '"stage_version": 2'))
    error = refusal(run_of(file), "preferences")
    assert "scores/train: made by version 2 of `perpo score`, today's is 3" in error.what


def test_methods_that_the_configuration_no_longer_has_do_no_harm(file: Path) -> None:
    run = run_of(file, train__methods={"perpo": {"beta": 0.5}})
    run.latest("metrics", "perpo@test")
    found = refusal(run, "report", "default").what.splitlines()[1:]
    assert found == [
        f"  - report/default: made with other {what}"
        for what in (
            "models than the configuration names",
            "evaluations than the configuration names",
            "settings of train than the configuration says",
        )
    ]


def test_a_manifest_in_the_lineage_that_cannot_be_read_is_an_error_of_its_own(file: Path) -> None:
    version = open_version(file.parent / "r" / "scores" / "train")
    (version.path / "manifest.json").write_text("{")
    error = refusal(run_of(file), "preferences")
    assert "the manifest cannot be read" in error.what
    assert str(version.path) in str(error.where)


def test_samples_that_another_command_drew_with_an_adapter_are_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(file)
    manifest = run.latest("samples", "train").path / "manifest.json"
    record = '"inputs": {"adapter": {"artifact": "adapter", "variant": "perpo", "path": "x", '
    text = manifest.read_text().replace('"inputs": {', f'{record}"fingerprint": "y"}}, ')
    manifest.write_text(text)
    assert "samples/train: drawn with an adapter" in refusal(run_of(file), "samples").what


def test_samples_that_a_command_drew_with_an_adapter_on_purpose_are_taken(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(file)
    asked = Options(inputs={"adapter": "--adapter there"})
    make_node(dataclasses.replace(run, options=asked), ("samples", "train"))
    run_of(file).latest("scores", "train")
    assert "takes samples/train: made from --adapter there\n" in capsys.readouterr().err


def perpo(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments])
    return int(ended.value.code or 0), capsys.readouterr().err


def test_a_stage_names_the_whole_command_and_goes_on_with_allow_stale(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--config", str(file), "--set", "filter.min_margin=0.4")
    for stage in (("train", "--method", "perpo"), ("eval", "--evaluation", "perpo"), ("report",)):
        code, err = perpo(capsys, *stage, *given)
        assert code == 2
        assert "made with filter.min_margin 0.8, the configuration says 0.4" in err
        assert f"fix:   run: perpo filter {' '.join(given)}, then the stages after it " in err
        assert f"(perpo run {' '.join(given)} runs all of them); or take " in err
    code, err = perpo(capsys, "eval", "--config", str(file), "--set", "train.lora.rank=8")
    names = [line.split(":")[0] for line in err.splitlines() if line.startswith("  - ")]
    assert (code, names) == (2, ["  - adapter/sft", "  - adapter/perpo"])
    out = file.parent / "merged"
    merge = ("merge", "--adapter", str(file.parent / "r" / "adapter" / "perpo"), "--out", str(out))
    code, err = perpo(capsys, *merge, *given)
    assert code == 2 and "made with filter.min_margin 0.8" in err
    warmer = ("--config", str(file), "--set", "sample.temperature=1")
    for stage in (("measure", "best-of-n"), ("score",)):
        code, err = perpo(capsys, *stage, *warmer)
        assert code == 2 and "made with sample.temperature 0.5, the configuration says 1.0" in err
    code, err = perpo(capsys, "score", *warmer, "--allow-stale")
    assert (code, "--allow-stale: samples/train: made with" in err) == (0, True)
    assert "score train: up to date" in err


def test_a_command_records_what_it_was_given(file: Path) -> None:
    config = Path(file)
    run = open_run(
        config,
        ["train.lora.rank=8"],
        settings=[
            Override("filter.min_margin", 0.4, "--min-margin"),
            Override("filter.max_lists", None, "--max-lists"),
            Override(("prepare", "train"), {"source": "testbed", "num_prompts": 2}, "--split"),
        ],
        inputs={"scores": Path("elsewhere"), "samples": None},
    )
    assert run.options.as_json() == {
        "settings": {
            "filter.min_margin": "--min-margin 0.4",
            "prepare.train": "SOURCE testbed",
            "train.lora.rank": "--set train.lora.rank=8",
        },
        "inputs": {"scores": "--scores elsewhere"},
    }


def test_an_option_explains_its_own_setting_and_the_parts_of_it() -> None:
    options = Options({"train.methods.dpo.lora": "--set a", "prepare.train": "SOURCE jsonl"})
    assert options.setting("train.lora.rank", "", "dpo") == "--set a"
    assert options.setting("train.lora.rank", "", "dpo-seed2") == "--set a"
    assert options.setting("train.lora.rank", "", "perpo") is None
    assert options.setting("prepare.train.path", "", "train") == "SOURCE jsonl"
    assert options.setting("train.beta", "", "dpo") is None
    assert options.setting("prepare.trained.path", "", "trained") is None
    assert Options({"train.methods": "--set b"}).setting("train.beta", "", "perpo") == "--set b"


def test_an_option_of_one_method_explains_no_difference_of_another(file: Path) -> None:
    asked = Options({"train.methods.sft.epochs": "--set train.methods.sft.epochs=2"})
    make_node(dataclasses.replace(run_of(file), options=asked), ("adapter", "perpo"))
    edited = run_of(file, train__methods__perpo__beta=0.7)
    assert "train.beta 0.5, the configuration says 0.7" in refusal(edited, "adapter", "perpo").what


def test_an_option_explains_an_older_input_only_if_it_explains_all_of_its_lineage(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapter's lists, of --min-margin 0.4, are of samples that were warmer, too."""
    asked = Options({"filter.min_margin": "--set filter.min_margin=0.4"})
    flagged = dataclasses.replace(run_of(file, filter__min_margin=0.4), options=asked)
    for key in (("preferences", "train"), ("adapter", "perpo")):
        make_node(flagged, key)
    make_node(run_of(file), ("preferences", "train"))
    run_of(file).latest("adapter", "perpo")
    assert "--set filter.min_margin=0.4 asked for it" in capsys.readouterr().err
    rescored = run_of(file, score__reward="giou")
    assert "scores/train: made with score.reward" in refusal(rescored, "adapter", "perpo").what
    edited = run_of(file, sample__temperature=0.9)
    for key in (("samples", "train"), ("scores", "train"), ("preferences", "train")):
        make_node(edited, key)
    assert "adapter/perpo: made from other preferences" in refusal(edited, "adapter", "perpo").what
