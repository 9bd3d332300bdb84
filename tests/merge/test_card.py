"""The model card of a real run: its header, its data and metrics, how to load the model."""

import ast
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from tiny_families import save_tiny_family
from tiny_models import save_tiny_llava

from perpo_pipeline.cli import main
from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.merge import folder as merged_folder
from perpo_pipeline.merge.card import _over_splits, model_card
from perpo_pipeline.merge.evaluations import Evaluation
from perpo_pipeline.merge.folder import CARD, RECORD
from perpo_pipeline.merge.merge_adapter import merge, trained_system_turn
from perpo_pipeline.run import Console
from perpo_pipeline.status.published import published
from perpo_pipeline.store.artifacts import open_version
from perpo_pipeline.vlm.chat_rendering import leaves_begin_token
from perpo_pipeline.vlm.chat_settings import UNSET
from perpo_pipeline.vlm.decoding import greedy_decode
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import prompt_image
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.processors import load_processor
from perpo_pipeline.vlm.prompts import encode_prompt

CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 6}
  test: {source: jsonl, path: data.jsonl, image_root: photos, task: grounding}
  more: {source: testbed, num_prompts: 2}
sample: {num_samples: 4, temperature: 1.0, max_new_tokens: 24, batch_size: 4}
filter: {min_margin: 0.01}
train:
  batch_size: 4
  learning_rate: 1.0e-3
  lora: {rank: 2, alpha: 4}
  methods: {perpo: {beta: 1.0}, sft: {}}
eval: {splits: [test, more], max_new_tokens: 24, batch_size: 4, conditions: [other-image]}
"""
QUIET = Console(quiet=True)


def perpo(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--quiet"])
    assert not ended.value.code


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run up to its metrics; its test prompts come from files."""
    folder = tmp_path_factory.mktemp("secret-place")
    before = Path.cwd()
    os.chdir(folder)
    try:
        (folder / "photos").mkdir()
        lines = []
        for number in range(3):
            Image.new("RGB", (64, 64), (90 * number, 0, 0)).save(f"photos/{number}.png")
            lines.append(
                json.dumps(
                    {"image": f"{number}.png", "expression": "red square", "gt_box": [8, 8, 32, 32]}
                )
            )
        Path("data.jsonl").write_text("\n".join(lines))
        Path("r.yaml").write_text(CONFIG)
        for stage in ("prepare", "sample", "score", "filter", "train", "eval"):
            perpo(stage, "--config", "r.yaml")
        yield folder / "data/r"
    finally:
        os.chdir(before)


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(run, tmp_path / "data/r")


@pytest.fixture
def card(run: Path, tmp_path: Path) -> str:
    merge(run / "adapter/perpo", tmp_path / "merged", console=QUIET)
    return (tmp_path / "merged" / CARD).read_text()


def current(run: Path, artifact: str, variant: str) -> str:
    return open_version(run / artifact / variant).fingerprint


def test_a_hub_reads_its_header(card: str) -> None:
    data = ModelCard(card).data.to_dict()
    assert data == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["perpo"],
    }


def test_a_base_folder_is_named_but_is_not_a_hub_id(run: Path, tmp_path: Path) -> None:
    from perpo_pipeline.testbed import shipped_model_dir

    base = shutil.copytree(shipped_model_dir(), tmp_path / "elsewhere/my-base")
    merge(run / "adapter/perpo", tmp_path / "merged", model=str(base), console=QUIET)
    text = (tmp_path / "merged" / CARD).read_text()
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert "`my-base`, exactly `sha256:" in text and "elsewhere" not in text


def test_the_data_are_listed_back_to_the_prompts(run: Path, card: str) -> None:
    for artifact in ("prompts", "samples", "scores", "preferences"):
        line = next(line for line in card.splitlines() if line.startswith(f"| {artifact} | train"))
        assert f"`{current(run, artifact, 'train')}`" in line
    assert "source testbed, split train, num_prompts 6" in card
    assert "num_samples 4, temperature 1.0" in card and "min_margin 0.01" in card


def test_the_share_of_earlier_lists_is_listed_and_their_place_is_not() -> None:
    settings = {"min_margin": 0.8, "keep_earlier": 0.5, "earlier": "/home/me", "max_margin": None}
    assert published(settings) == "min_margin 0.8, keep_earlier 0.5"


def test_a_removed_artifact_is_listed_with_its_fingerprint(copy: Path, tmp_path: Path) -> None:
    removed = current(copy, "samples", "train")
    shutil.rmtree(copy / "samples")
    merge(copy / "adapter/perpo", tmp_path / "merged", console=QUIET)
    text = (tmp_path / "merged" / CARD).read_text()
    assert f"| samples | train | `{removed}` | - | (removed since) |" in text
    assert current(copy, "prompts", "train") in text


def test_the_training_settings_can_be_read_back(card: str) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", card, re.S)
    settings: dict[str, Any] = yaml.safe_load(block)
    assert settings["beta"] == 1.0 and settings["learning_rate"] == 1e-3
    assert settings["lora"] == {"rank": 2, "alpha": 4} and settings["dtype"] == "float32"


def test_it_lists_the_adapter_packages_and_commit(run: Path, card: str) -> None:
    adapter = open_version(run / "adapter/perpo")
    assert f"Adapter `{adapter.fingerprint}`" in card
    version = adapter.manifest["packages"]["transformers"]
    assert f"| transformers | {version} | {version} |" in card
    commit = adapter.manifest["git_commit"] or "-"
    assert f"| git commit | {commit} |" in card


def test_its_metrics_are_those_of_the_run_and_of_its_base(run: Path, card: str) -> None:
    for variant in ("perpo", "base"):
        metrics = open_version(run / "metrics" / f"{variant}@test")
        block = card.split(f"metrics `{metrics.fingerprint}`")[1].split("```")[1]
        values = {row["name"]: row["value"] for row in metrics.table().to_pylist()}
        assert values.keys() >= {"ap50", "miou", "parse_rate"}
        for name, value in values.items():
            assert re.search(rf"^{name} .* {100 * value:.1f} %", block, re.M), (variant, name)
    assert current(run, "metrics", "sft@test") not in card


def test_the_model_and_its_base_stand_side_by_side_on_every_split(run: Path, card: str) -> None:
    lines = card.split("All test sets:\n```\n")[1].split("```")[0].splitlines()
    assert [line.split() for line in (lines[0], lines[-1])] == [
        ["ap50,", "%", "more", "test"],
        ["n", "2", "3"],
    ]
    for split in ("more", "test"):
        for model in ("perpo", "base"):
            version = open_version(run / "metrics" / f"{model}@{split}")
            assert f"(`{model}@{split}`, metrics `{version.fingerprint}`)" in card
    assert [line.split()[0] for line in lines[1:3]] == ["perpo", "base"]
    order = [card.index(f"(`{name}`") for name in ("perpo@more", "base@more", "perpo@test")]
    assert order == sorted(order)


def test_numbers_of_another_harness_are_no_test_set_of_the_table() -> None:
    def found(name: str, metric: str) -> Evaluation:
        row = {"name": metric, "value": 0.5, "n": 4, "dataset": "all", "split": "x"}
        return Evaluation("adapter", name, "0", [row])

    own = [found("perpo@a", "ap50"), found("perpo@b", "ap50")]
    harness = found("perpo@lmms-eval-pope", "pope/accuracy")
    shown = _over_splits([*own, harness, found("perpo-blank-image@a", "ap50")])
    assert shown.splitlines()[0].split() == ["ap50,", "%", "a", "b"] and "pope" not in shown
    assert _over_splits([own[0], harness]) == ""


def test_metrics_with_other_images_are_described(run: Path, card: str) -> None:
    fingerprint = current(run, "metrics", "perpo-other-image@test")
    assert (
        "This model, each question with the image of another prompt "
        f"(`perpo-other-image@test`, metrics `{fingerprint}`):"
    ) in card
    assert "This model (`perpo@test`, metrics" in card


def test_no_path_of_this_machine_is_published(card: str, tmp_path: Path) -> None:
    record = (tmp_path / "merged" / RECORD).read_text()
    for text in (card, record):
        for private in ("secret-place", str(Path.home()), str(tmp_path), "photos", os.sep + "tmp"):
            assert private not in text


def test_its_example_gives_the_answer_of_base_and_adapter(
    run: Path,
    card: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    row = open_version(run / "prompts/train").table().slice(0, 1).to_pylist()[0]
    image = prompt_image(row)
    image.save("photo.png")
    merge(run / "adapter/perpo", tmp_path / "adapter", adapter_only=True, console=QUIET)
    alone = (tmp_path / "adapter" / CARD).read_text()
    answers = []
    for text, folder in ((card, "merged"), (alone, "adapter")):
        (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
        block = block.replace("FOLDER or the id of this repository", str(tmp_path / folder))
        block = block.replace("photo.jpg", "photo.png")
        exec(block.replace("What is in the image?", row["prompt"]), {})  # noqa: S102
        answers.append(capsys.readouterr().out)
    adapter = open_version(run / "adapter/perpo").path
    vlm = load_vlm(resolve_model("testbed"), dtype="float32", device="cpu", adapter=adapter)
    (expected,) = greedy_decode(vlm, [encode_prompt(vlm, image, row["prompt"])], max_new_tokens=64)
    assert expected.finish_reason == "stop"
    assert answers == 2 * [expected.text + "\n"]
    assert "is on no hub" in alone and "base_model" not in ModelCard(alone).data.to_dict()
    assert "vllm serve BASE --dtype" in alone


def test_its_vllm_command_has_the_stored_dtype(run: Path, tmp_path: Path) -> None:
    """Without --dtype vLLM computes float32 models in 16 bits."""
    for dtype in ("float32", "bfloat16"):
        merge(run / "adapter/perpo", tmp_path / dtype, dtype=dtype, console=QUIET)
        assert f"vllm serve FOLDER --dtype {dtype} " in (tmp_path / dtype / CARD).read_text()
        assert '`"add_special_tokens": true`' in (tmp_path / dtype / CARD).read_text()


def test_metrics_made_after_the_merge_are_added_to_the_card(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / "metrics", tmp_path / "aside")
    out = tmp_path / "merged"
    merge(copy / "adapter/perpo", out, console=QUIET)
    assert "No metrics of this model were found" in (out / CARD).read_text()
    weights = (out / "model.safetensors").stat().st_mtime_ns
    shutil.move(tmp_path / "aside", copy / "metrics")
    merge(copy / "adapter/perpo", out, console=QUIET)
    renewed = (out / CARD).read_text()
    assert current(copy, "metrics", "perpo@test") in renewed
    assert (out / "model.safetensors").stat().st_mtime_ns == weights
    merge(copy / "adapter/perpo", out, console=QUIET)
    assert (out / CARD).read_text() == renewed


def test_metrics_in_use_are_published_not_the_newest(copy: Path, tmp_path: Path) -> None:
    """Of adapter and base: a newer version with other settings was made and then left."""

    def add(name: str, fingerprint: str) -> None:
        used = open_version(copy / "metrics" / name)
        newer = shutil.copytree(used.path, used.path.with_name(fingerprint))
        text = (newer / "manifest.json").read_text().replace(used.fingerprint, fingerprint)
        manifest = json.loads(text) | {"created_at": "2999-01-01T00:00:00Z"}
        (newer / "manifest.json").write_text(json.dumps(manifest))

    add("perpo@test", "f" * 16)
    add("base@test", "e" * 16)
    merge(copy / "adapter/perpo", tmp_path / "merged", console=QUIET)
    text = (tmp_path / "merged" / CARD).read_text()
    for name in ("perpo@test", "base@test"):
        assert f"(`{name}`, metrics `{current(copy, 'metrics', name)}`)" in text
    assert "f" * 16 not in text and "e" * 16 not in text
    (copy / "metrics/perpo@test/current").write_text("0" * 16)  # of another adapter, or gone
    merge(copy / "adapter/perpo", tmp_path / "newest", console=QUIET)
    assert f"(`perpo@test`, metrics `{'f' * 16}`)" in (tmp_path / "newest" / CARD).read_text()


def test_metrics_of_the_weights_before_a_new_training_are_not_published(
    copy: Path, tmp_path: Path
) -> None:
    """An adapter that was removed and trained again may have other weights, one fingerprint."""
    for name in ("perpo@test", "perpo@validation"):
        place = copy / "predictions" / name
        if place.is_dir():
            file = open_version(place).path / "manifest.json"
            manifest = json.loads(file.read_text())
            assert manifest["inputs"]["adapter"]["content"]
            manifest["inputs"]["adapter"]["content"] = "0" * 64
            file.write_text(json.dumps(manifest))
    merge(copy / "adapter/perpo", tmp_path / "merged", console=QUIET)
    text = (tmp_path / "merged" / CARD).read_text()
    assert current(copy, "metrics", "perpo@test") not in text
    with pytest.raises(ArtifactError, match="these metrics belong to adapter perpo"):
        given = [copy / "metrics/perpo@test"]
        merge(copy / "adapter/perpo", tmp_path / "given", metrics=given, console=QUIET)


@pytest.mark.parametrize("written", [0, 1])
def test_a_kill_while_the_card_is_renewed_freezes_no_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """The kill comes before the first or the second of its two files is in place."""
    merged_folder._write_card(tmp_path, {"files": {}}, "one")
    real, left = merged_folder._write_text, [written]

    def killed(file: Path, text: str) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(file, text)

    def update(text: str) -> str:
        return merged_folder.update_card(
            tmp_path, json.loads((tmp_path / RECORD).read_text()), text
        )

    for text in ("two", "three"):
        left[0] = written
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(merged_folder, "_write_text", killed)
            update(text)
    assert update("three") == "; README.md updated"
    assert (tmp_path / CARD).read_text() == "three" and update("three") == ""
    assert update("four") == "; README.md updated"
    (tmp_path / CARD).write_text("mine")
    assert update("five") == "; README.md was edited by hand and is kept"


def test_a_card_that_an_earlier_version_wrote_before_a_kill_is_not_taken_for_edited(
    tmp_path: Path,
) -> None:
    """It wrote the card first, so the record has the sha256 of the card before."""
    merged_folder._write_card(tmp_path, {"files": {}}, "one")
    (tmp_path / CARD).write_text("two")
    for said in ("; README.md updated", ""):
        record = json.loads((tmp_path / RECORD).read_text())
        assert merged_folder.update_card(tmp_path, record, "two") == said


def test_an_edited_card_is_kept(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    merge(copy / "adapter/perpo", out)
    (out / CARD).write_text("mine")
    shutil.rmtree(copy / "metrics")
    merge(copy / "adapter/perpo", out)
    assert (out / CARD).read_text() == "mine"
    assert "README.md was edited by hand and is kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variant", "message"),
    [("sft", "belong to adapter sft, not"), ("base", "belong to a model without an adapter")],
)
def test_metrics_of_another_model_are_refused(
    run: Path, tmp_path: Path, variant: str, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        merge(
            run / "adapter/perpo",
            tmp_path / "merged",
            metrics=[run / "metrics" / f"{variant}@test"],
            console=QUIET,
        )
    assert not (tmp_path / "merged").exists()


def test_given_metrics_replace_those_of_the_run(run: Path, tmp_path: Path) -> None:
    """Metrics of the adapter and of a file of answers; the card says which is which."""
    answers = tmp_path / "pages.jsonl"
    answers.write_text('{"completion": "a b", "gt_text": "a b"}\n')
    perpo("measure", "answers", str(answers), "--out", str(tmp_path / "own"))
    given = [run / "metrics/perpo@test", tmp_path / "own/metrics"]
    merge(run / "adapter/perpo", tmp_path / "merged", metrics=given, console=QUIET)
    text = (tmp_path / "merged" / CARD).read_text()
    assert f"This model (`perpo@test`, metrics `{current(run, 'metrics', 'perpo@test')}`" in text
    assert "does not record which model gave them (`pages`, metrics" in text


def small_card(
    arguments: dict[str, Any],
    system_turn: Any = None,
    recorded: Any = None,
    lora_rank: int | None = None,
    *,
    add_special_tokens: bool = False,
    **more: Any,
) -> str:
    """The card of an adapter with these settings, without data and metrics."""
    made = {"counts": {}, "packages": {}, "git_commit": None, "created_at": "today"}
    settings = {"method": "perpo", "preprocess": "processor", **more}
    manifest = {"settings": settings, "notes": {}, **made}
    adapter: Any = SimpleNamespace(manifest=manifest, variant="perpo", fingerprint="f")
    record = {"base_model": "b", "base_identity": "i", "base_is_directory": False, **made}
    record |= {"dtype": "float32", "made_at": "today", **(recorded or {})}
    return model_card(
        record,
        adapter,
        [],
        [],
        arguments,
        system_turn,
        lora_rank,
        add_special_tokens=add_special_tokens,
    )


def test_the_example_has_the_system_turn_and_arguments_of_training() -> None:
    """As a call that Python reads: the arguments of its `apply_chat_template`."""
    text = 'Say "it" in {words}.'
    given = {"enable_thinking": False, "mood": None}
    turn = {"role": "system", "content": text}
    found = small_card({}, turn, system_prompt=text, chat_template_kwargs=given)
    (call,) = re.findall(r"apply_chat_template\((.*?)\n\)\.to", found, re.DOTALL)
    call = ast.parse(f"f({call})", mode="eval").body
    assert isinstance(call, ast.Call)
    system, _ = call.args[0].elts
    assert ast.literal_eval(system) == turn
    arguments = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    assert given.items() <= arguments.items() and arguments["add_generation_prompt"] is True
    assert "as `chat_template_kwargs`" in found
    assert "chat_template_kwargs" not in small_card({})


@pytest.mark.parametrize(
    ("writes", "content"),
    [
        ("{{ message.content }}", "Be kind."),
        ("{{ message.content[0].text }}", [{"type": "text", "text": "Be kind."}]),
    ],
)
def test_the_system_turn_has_the_form_that_the_base_s_template_reads(
    tmp_path: Path, writes: str, content: Any
) -> None:
    base = save_tiny_family("qwen3_vl", tmp_path / "base")
    (base / "chat_template.jinja").write_text(
        f"{{% for message in messages %}}{writes}{{% endfor %}}"
    )
    processor = load_processor(base)
    found = trained_system_turn(processor, {"system_prompt": "Be kind."})
    assert found == {"role": "system", "content": content}
    assert trained_system_turn(processor, {}) is None


def test_a_begin_token_that_only_the_tokenizer_writes_must_be_asked_of_vllm(tmp_path: Path) -> None:
    """vLLM's server adds none to a chat by itself (tests/with_vllm/test_served_adapter.py)."""
    llava = load_processor(save_tiny_llava(tmp_path / "llava"))
    qwen = load_processor(save_tiny_family("qwen3_vl", tmp_path / "qwen"))
    assert leaves_begin_token(llava, UNSET) and not leaves_begin_token(qwen, UNSET)
    llava.chat_template = "<s>" + llava.chat_template
    assert not leaves_begin_token(llava, UNSET)
    kind = replace(UNSET, system_prompt="Be kind.")
    for first, leaves in (("", True), ("<s>", False)):
        llava.chat_template = (
            "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
            f"{first}{{% for m in messages %}}{{{{ m.content[0].text }}}}{{% endfor %}}"
        )
        assert leaves_begin_token(llava, kind) is leaves
    asks = '`"add_special_tokens": true`'
    assert asks in small_card({}, add_special_tokens=True) and asks not in small_card({})
    alone = {"recorded": {"form": "adapter"}, "add_special_tokens": True}
    assert asks in small_card({}, **alone, lora_rank=8)
    assert asks not in small_card({}, **alone), "vLLM would not apply it exactly"


def test_a_limited_image_size_is_set_where_the_model_is_loaded() -> None:
    card = small_card
    size = {"shortest_edge": 1568, "longest_edge": 3136}
    text = card({"size": size}, max_pixels=3136)
    assert f"AutoProcessor.from_pretrained(name, size={json.dumps(size)})" in text
    assert f"""--mm-processor-kwargs '{{"use_fast": false, "size": {json.dumps(size)}}}'""" in text
    assert "In training images were limited (`model.max_pixels: 3136`)" in text
    assert "pinpoints" not in text
    tiles = card({"image_grid_pinpoints": [[24, 48]]}, max_tiles=2)
    assert tiles.count("image_grid_pinpoints=[[24, 48]]") == 2, "for the model and its processor"
    assert 'a copy of FOLDER with `"image_grid_pinpoints": [[24, 48]]`' in tiles
    assert "limited" not in card({})


def test_an_adapter_of_a_quantised_base_or_with_its_own_code_says_what_it_needs() -> None:
    """The lines that load it load the base in full; vLLM's LoRA would, too."""
    text = small_card({}, recorded={"form": "adapter", "base_quantization": "nf4"})
    assert "load the base in\nfull, which is not quite the same" in text
    assert "nf4 with double quantisation" in text and "lora-modules" not in text
    assert "vLLM would add this adapter to the base in full" in text
    code = small_card({}, recorded={"form": "adapter", "own_code": True})
    assert "which is in the base's repository (`*.py`).\n" in code
    assert code.count("trust_remote_code=True") == 2
    assert "which is in this repository" in small_card({}, recorded={"own_code": True})
