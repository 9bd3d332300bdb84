"""Pretraining: packed rows equal separate conversations; a killed run ends with equal weights."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.testbed.scenes import SceneObject, referring_scene
from tools.testbed.learner import Learner
from tools.testbed.measure import prompt_text
from tools.testbed.model import build_config, build_model, build_processor
from tools.testbed.packing import (
    IGNORE,
    PackedRows,
    RowWriter,
    Targets,
    box_text,
    packed_attention,
    patch_labels,
    picked_box,
)
from tools.testbed.pretrain import RECIPES, Recipe, learning_rate, main, parse_options

TINY = ["--preset", "small", "--rows", "2", "--slots", "2", "--workers", "0", "--threads", "1"]
TINY += ["--vision-steps", "2", "--easy-steps", "1", "--eval-every", "100", "--save-every", "100"]


@pytest.fixture(scope="module")
def processor():
    return build_processor("small")


def packed_rows(processor, rows, **changes):
    given = {
        "preset": "small",
        "patch": 8,
        "seed": 5,
        "rows": rows,
        "slots": 3,
        "targets": Targets(),
        "first_step": 0,
        "steps": 9,
        "easy_steps": 0,
    }
    return PackedRows(RowWriter(processor.tokenizer, 64), **{**given, **changes})


def asked_in(processor, batch, row, slot):
    """The expression, the ids before the answer, and the answer in one packed slot."""
    places = (batch.labels[row, slot] != IGNORE).nonzero().flatten()
    opening = batch.slot_ids[row, slot, : int(places[0]) + 1].tolist()
    expression = processor.tokenizer.decode(opening).removesuffix(" ASSISTANT: ").strip()
    return expression, opening, batch.labels[row, slot, places].tolist()


def test_packed_pieces_are_the_chat_templates_ids(processor):
    batch, writer = packed_rows(processor, 4).batch(0), RowWriter(processor.tokenizer, 64)
    for row in range(4):
        scene = referring_scene(5, row)
        for slot in range(3):
            expression, opening, answer = asked_in(processor, batch, row, slot)
            prompt = prompt_text(processor, expression)
            single = processor(text=prompt, images=scene.image, return_tensors="pt")
            ids = single["input_ids"][0].tolist()
            assert writer.prefix_ids + opening == ids
            assert torch.equal(single["pixel_values"][0], batch.pixel_values[row])
            box = next(q.target for q in scene.questions if q.expression == expression)
            truth = box_text(scene.objects[box].box_xyxy_norm)
            whole = prompt.replace("<image>", "<image>" * 64) + truth + "</s>"
            assert processor.tokenizer(whole)["input_ids"] == ids + answer


def test_packed_log_probabilities_equal_separate_conversations(processor):
    learner = Learner("small", 0, processor).eval()
    plain = build_model(build_config("small", processor.tokenizer), 0)
    plain.load_state_dict(learner.model.state_dict())
    plain.eval()
    batch = packed_rows(processor, 2).batch(0)
    keep = batch.labels != IGNORE
    with torch.no_grad():
        features = learner.image_features(batch.pixel_values)
        packed = learner.answer_logits(features, batch.slot_ids, keep).log_softmax(-1)
        at = 0
        for row in range(2):
            for slot in range(3):
                _, opening, answer = asked_in(processor, batch, row, slot)
                ids = learner.prefix_ids.tolist() + opening + answer
                logits = plain(
                    input_ids=torch.tensor([ids]), pixel_values=batch.pixel_values[row : row + 1]
                ).logits[0, -len(answer) - 1 : -1]
                difference = logits.log_softmax(-1) - packed[at : at + len(answer)]
                assert difference.abs().max() < 1e-5
                at += len(answer)
    assert at == len(packed)


def test_packed_attention_equals_masked_dense_attention():
    prefix, slot, slots = 5, 3, 2
    length = prefix + slot * slots
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, length, 4).unbind(0)
    group = torch.cat([torch.zeros(prefix), torch.arange(1, slots + 1).repeat_interleave(slot)])
    sees = (group[:, None] == group[None]) | (group[None] == 0)
    sees &= torch.ones(length, length).tril().bool()
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=sees)
    packed = packed_attention(query, key, value, prefix, slot)
    assert (dense - packed).abs().max() < 1e-6


def test_easy_steps_ask_no_relations(processor):
    rows = packed_rows(processor, 8, slots=8, easy_steps=1)
    texts = processor.tokenizer.batch_decode(rows.batch(0).slot_ids.flatten(0, 1))
    later = processor.tokenizer.batch_decode(rows.batch(1).slot_ids.flatten(0, 1))
    assert not [text for text in texts if " the " in text]
    assert [text for text in later if " the " in text]


def test_processes_share_the_rows_of_a_step(processor):
    whole = packed_rows(processor, 4).batch(1)
    parts = [packed_rows(processor, 4, share=(rank, 2)).batch(1) for rank in range(2)]
    for rank, part in enumerate(parts):
        assert torch.equal(part.slot_ids, whole.slot_ids[rank::2])
        assert torch.equal(part.labels, whole.labels[rank::2])


def test_misaligned_targets_are_wrong_as_often_as_configured():
    scene, rng = referring_scene(0, 0), np.random.default_rng(0)
    truth = [o.box_xyxy_norm for o in scene.objects]
    picked = [picked_box(scene, 0, 1, Targets(0.25, 0.0), rng) for _ in range(2000)]
    share = np.mean([np.allclose(box, truth[1]) for box in picked])
    assert 0.21 < share < 0.29  # four standard errors about 0.25
    assert all(np.allclose(box, truth[0]) or np.allclose(box, truth[1]) for box in picked)


def test_jitter_has_the_given_width_and_keeps_boxes_ordered():
    scene, rng = referring_scene(0, 0), np.random.default_rng(0)
    x1, _, x2, _ = scene.objects[0].box_xyxy_norm
    picked = np.array([picked_box(scene, 0, 1, Targets(0.0, 0.1), rng) for _ in range(2000)])
    assert (picked[:, 0] <= picked[:, 2]).all()
    assert (picked[:, 1] <= picked[:, 3]).all()
    assert np.std(picked[:, 0]) == pytest.approx(0.1 * (x2 - x1), rel=0.1)


def test_patches_name_the_object_that_covers_them():
    """A red square (class 1 + 1 * 6) over the upper left 16 px of 64 covers patches 0, 1, 8, 9."""
    scene = referring_scene(0, 0)
    square = SceneObject("square", "red", 0.125, 0.125, 0.125, 0.125)
    labels = patch_labels(type(scene)(scene.image, (square,), ()), "small", 8)
    covered = [0, 1, 8, 9]
    assert labels[covered].tolist() == [[7, 0, 0, 25, 25]] * 4
    assert (np.delete(labels, covered, axis=0) == 0).all()


def test_learning_rate_warms_up_and_ends_low():
    recipe = Recipe(vision_steps=300, clean_steps=1000, learning_rate=1.0, misaligned_steps=100)
    assert learning_rate("clean", 0, recipe) == pytest.approx(1 / 200)
    assert learning_rate("clean", 299, recipe) == 1.0
    assert learning_rate("clean", 300, recipe) == pytest.approx(1 / 200)
    assert learning_rate("clean", 800, recipe) == pytest.approx(0.5)
    assert learning_rate("clean", 1299, recipe) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "page", ["tools/README.md", "src/perpo_pipeline/testbed/weights/README.md"]
)
def test_the_documented_commands_are_parsed(page):
    text = (Path(__file__).parents[3] / page).read_text()
    (command,) = re.findall(r"(?m)-m tools\.testbed\.pretrain (.*--out DIR)", text)
    options = parse_options(command.split())
    assert (options.preset, options.threads, options.compile) == ("small", 1, True)
    assert RECIPES["small"] == Recipe() and options.clean_steps is None


def state_of(folder, phase):
    return torch.load(folder / f"{phase}.pt", weights_only=True)["learner"]


def stop_after(monkeypatch, steps):
    """Simulate a kill directly after the save at `steps`."""
    from tools.testbed import pretrain

    save = pretrain.save_checkpoint

    def save_and_die(job, done):
        save(job, done)
        if done == steps:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "save_checkpoint", save_and_die)


@pytest.fixture
def quick_figures(monkeypatch):
    from tools.testbed import pretrain

    monkeypatch.setattr(pretrain, "EVAL_EXAMPLES", 1)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch, quick_figures):
    command = [*TINY, "--clean-steps", "4", "--misaligned-steps", "2", "--save-every", "3"]
    main([*command, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            main([*command, "--out", str(tmp_path / "cut")])
    main([*command, "--out", str(tmp_path / "cut")])
    for phase in ("clean", "misaligned"):
        whole, cut = state_of(tmp_path / "whole", phase), state_of(tmp_path / "cut", phase)
        assert all(torch.equal(whole[name], cut[name]) for name in whole)
    record = json.loads((tmp_path / "cut/base/testbed.json").read_text())
    assert (record["preset"], record["phase"]) == ("small", "misaligned")
    card = (tmp_path / "cut/base/README.md").read_text()
    assert "`python -m tools.testbed.pretrain --preset small --device cpu --out DIR`" in card


def test_a_checkpoint_with_other_settings_is_refused(tmp_path, quick_figures):
    command = [*TINY, "--clean-steps", "1", "--phase", "clean", "--out", str(tmp_path)]
    main(command)
    with pytest.raises(ConfigError, match="learning_rate"):
        main([*command, "--learning-rate", "0.5"])
