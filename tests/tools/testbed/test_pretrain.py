"""Pretraining: packed rows equal separate conversations; a killed run ends with equal weights."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perpo_pipeline.errors import ConfigError
from perpo_pipeline.testbed.pages import (
    PAGE_DOMAIN,
    PAGE_PROMPT,
    PageExample,
    PageLine,
    draw_page,
    page_example,
    page_preset,
)
from perpo_pipeline.testbed.scenes import Question, SceneObject, referring_scene
from tools.testbed.attention import full_attention, packed_attention
from tools.testbed.learner import Learner
from tools.testbed.measure import prompt_text
from tools.testbed.model import INSTRUCTION, build_config, build_model, build_processor
from tools.testbed.packing import (
    IGNORE,
    PackedRows,
    RowWriter,
    Targets,
    box_text,
    kinds_in_turn,
    patch_labels,
    picked_box,
)
from tools.testbed.page_errors import LOOK_ALIKES, Misreading, misread
from tools.testbed.page_rows import (
    CHARACTERS,
    PAGE_TOKENS,
    PageRows,
    PageWriter,
    answer_places,
    page_patches,
)
from tools.testbed.pretrain import main, parse_options, recipe_of
from tools.testbed.recipe import PHASES, RECIPES, Recipe, loss_weights, rate_factor
from tools.testbed.steps import Steps

TINY = ["--preset", "small", "--scenes", "2", "--pages", "2", "--slots", "2"]
TINY += ["--workers", "0", "--threads", "1"]
TINY += ["--vision-steps", "2", "--easy-steps", "1", "--eval-every", "100", "--save-every", "100"]

IMAGE_TOKENS = 144


@pytest.fixture(scope="module")
def processor():
    return build_processor("small")


def packed_rows(processor, **changes):
    given = {"preset": "small", "patch": 8, "seed": 5, "slots": 3, "targets": Targets()}
    writer = RowWriter(processor.tokenizer, IMAGE_TOKENS)
    return PackedRows(writer, **{**given, "easy_rows": 0, **changes})


def page_rows(processor, **changes):
    given = {"preset": "small", "patch": 8, "seed": 5, "easy": range(0), "misreading": None}
    return PageRows(PageWriter(processor.tokenizer, IMAGE_TOKENS), **{**given, **changes})


def asked_in(processor, batch, row, slot):
    """The expression, the ids before the answer, and the answer in one packed slot."""
    places = (batch.labels[row, slot] != IGNORE).nonzero().flatten()
    opening = batch.slot_ids[row, slot, : int(places[0]) + 1].tolist()
    expression = processor.tokenizer.decode(opening).removesuffix(" ASSISTANT: ").strip()
    return expression, opening, batch.labels[row, slot, places].tolist()


def test_packed_pieces_are_the_chat_templates_ids(processor):
    batch = packed_rows(processor).batch(range(4))
    writer = RowWriter(processor.tokenizer, IMAGE_TOKENS)
    for row in range(4):
        scene = referring_scene(5, row)
        for slot in range(3):
            expression, opening, answer = asked_in(processor, batch, row, slot)
            prompt = prompt_text(processor, INSTRUCTION + expression)
            single = processor(text=prompt, images=scene.image, return_tensors="pt")
            ids = single["input_ids"][0].tolist()
            assert writer.prefix_ids + opening == ids
            assert torch.equal(single["pixel_values"][0], batch.pixel_values[row])
            box = next(q.target for q in scene.questions if q.expression == expression)
            truth = box_text(scene.objects[box].box_xyxy_norm)
            whole = prompt.replace("<image>", "<image>" * IMAGE_TOKENS) + truth + "</s>"
            assert processor.tokenizer(whole)["input_ids"] == ids + answer


def test_packed_log_probabilities_equal_separate_conversations(processor):
    learner = Learner("small", 0, processor).eval()
    plain = build_model(build_config("small", processor.tokenizer), 0)
    plain.load_state_dict(learner.model.state_dict())
    plain.eval()
    batch = packed_rows(processor).batch(range(2))
    keep = batch.labels != IGNORE
    with torch.no_grad():
        features = learner.image_features(batch.pixel_values)
        packed = learner.scene_logits(features, batch.slot_ids, keep)[0].log_softmax(-1)
        at = 0
        for row in range(2):
            for slot in range(3):
                _, opening, answer = asked_in(processor, batch, row, slot)
                ids = learner.scene_prefix.tolist() + opening + answer
                logits = plain(
                    input_ids=torch.tensor([ids]), pixel_values=batch.pixel_values[row : row + 1]
                ).logits[0, -len(answer) - 1 : -1]
                difference = logits.log_softmax(-1) - packed[at : at + len(answer)]
                assert difference.abs().max() < 1e-5
                at += len(answer)
    assert at == len(packed)


def test_a_page_s_log_probabilities_equal_a_conversation_s(processor):
    learner = Learner("small", 0, processor).eval()
    plain = build_model(build_config("small", processor.tokenizer), 0).eval()
    batch = page_rows(processor).batch(range(2))
    keep = batch.labels != IGNORE
    with torch.no_grad():
        features = learner.image_features(batch.pixel_values)
        logits, rows, columns = learner.page_logits(features, batch.ids, keep)
        parts = logits.log_softmax(-1).split(keep.sum(-1).tolist())
        for index, part in enumerate(parts):
            page = draw_page(page_preset("small"), np.random.default_rng([PAGE_DOMAIN, 5, index]))
            prompt = prompt_text(processor, PAGE_PROMPT)
            inputs = processor(
                text=f"{prompt}{page.text}</s>", images=page.image, return_tensors="pt"
            )
            assert inputs["input_ids"][0, -len(part) :].tolist() == (
                batch.labels[index][keep[index]].tolist()
            )
            whole = plain(**inputs).logits[0, -len(part) - 1 : -1].log_softmax(-1)
            assert (whole - part).abs().max() < 1e-5
    assert rows.shape == columns.shape == (int(keep.sum()), 12)


def test_a_page_is_one_token_per_character_with_spaces_joined(processor):
    writer = PageWriter(processor.tokenizer, IMAGE_TOKENS)
    for index in range(60):
        text = page_example(5, index).text
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert writer.answer_ids(text) == [*ids, writer.eos_id]
        assert len(ids) == len(text) - text.count(" ")
        assert len(ids) < PAGE_TOKENS


def test_patches_and_points_name_the_characters_in_them():
    """Two lines of 6 px per character from x = 2, 8 px high: centres at x 5, 11, 17, 23; y 4, 20.

    The patches of 8 px are 0 to 2 in a row, so B at 11 stands alone in the second one; C at 23
    shares the third with the space at 17, which counts as none.
    """
    lines = (PageLine("AB C", 0, 2, 0, 6, 8), PageLine("DE", 0, 2, 16, 3, 8))
    page = PageExample(Image.new("RGB", (96, 96)), "AB C\nDE", lines, 1)
    kinds = {c: CHARACTERS.index(c) + 1 for c in "ABCDE"}
    patches = page_patches(page, 8)
    assert patches[:3].tolist() == [
        [kinds["A"], 0, 0, 0],
        [kinds["B"], 0, 0, 1],
        [kinds["C"], 0, 0, 3],
    ]
    assert patches[24].tolist() == [kinds["D"], kinds["E"], 1, 0]
    left = np.delete(patches, [0, 1, 2, 24], axis=0)
    assert (left == [0, 0, IGNORE, IGNORE]).all()
    none = [IGNORE, IGNORE]
    assert answer_places(page, 8).tolist() == [[0, 0], [0, 1], [0, 2], none, [2, 0], [2, 0], none]


def test_easy_pages_are_short_and_have_one_column(processor):
    rows = page_rows(processor, easy=range(10, 20))
    short = (rows.batch(range(10, 20)).labels != IGNORE).sum(-1)
    whole = (rows.batch(range(20, 30)).labels != IGNORE).sum(-1)
    assert short.max() < 49
    assert whole.min() > 30 and whole.float().mean() > 1.5 * short.float().mean()


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


def test_full_attention_equals_dense_attention():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 2, 7, 4).unbind(0)
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    assert (dense - full_attention(query, key, value)).abs().max() < 1e-6


def test_easy_rows_ask_no_relations(processor):
    rows = packed_rows(processor, slots=8, easy_rows=8)
    easy, later = rows.batch(range(8)), rows.batch(range(8, 16))
    texts = processor.tokenizer.batch_decode(easy.slot_ids.flatten(0, 1))
    assert not [text for text in texts if " the " in text]
    texts = processor.tokenizer.batch_decode(later.slot_ids.flatten(0, 1))
    assert [text for text in texts if " the " in text]


def test_rows_ask_each_kind_equally_often():
    kinds = ["extreme", "extreme", "relation", "extreme", "attribute", "relation"]
    questions = [Question(str(k), 0, 1, kind) for k, kind in enumerate(kinds)]
    asked = [question.expression for question in kinds_in_turn(questions)]
    assert asked == ["0", "2", "4", "1", "5", "3"]


def test_processes_share_the_rows_of_a_step(processor):
    kinds = [(packed_rows(processor), 4), (page_rows(processor), 2)]
    whole = Steps(kinds, range(9)).batch(1).parts
    assert torch.equal(whole[0].slot_ids, packed_rows(processor).batch(range(4, 8)).slot_ids)
    for rank in range(2):
        scenes, pages = Steps(kinds, range(9), (rank, 2)).batch(1).parts
        assert torch.equal(scenes.slot_ids, whole[0].slot_ids[rank::2])
        assert torch.equal(scenes.labels, whole[0].labels[rank::2])
        assert torch.equal(pages.labels, whole[1].labels[rank::2])


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


TWO_COLUMNS = PageExample(
    Image.new("RGB", (96, 96)),
    "AB\nCD\nEF\nGH",
    tuple(
        PageLine(t, c, 40 * c, 12 * r, 6, 10)
        for t, c, r in (("AB", 0, 0), ("CD", 0, 1), ("EF", 1, 0), ("GH", 1, 1))
    ),
    2,
)


@pytest.mark.parametrize(
    ("errors", "text"),
    [
        (Misreading(), "AB\nCD\nEF\nGH"),
        (Misreading(across=1.0), "AB EF\nCD GH"),
        (Misreading(skip=1.0), "AB\nCD\nEF"),
        (Misreading(repeat=1.0), "AB\nCD\nEF\nGH\nGH"),
        (Misreading(swap=1.0), "AB\nCD\nGH\nEF"),
        (Misreading(look_alike=1.0), "A8\nCD\nEF\n6H"),
    ],
)
def test_each_error_of_reading_does_what_its_name_says(errors, text):
    assert misread(TWO_COLUMNS, errors, np.random.default_rng(0)) == text


def test_characters_are_confused_as_often_as_configured():
    assert all(LOOK_ALIKES[other] == c for c, other in LOOK_ALIKES.items())
    page = replace(TWO_COLUMNS, lines=(replace(TWO_COLUMNS.lines[0], text="0" * 2000),), columns=1)
    text = misread(page, Misreading(look_alike=0.25), np.random.default_rng(0))
    assert set(text) == {"0", "O"}
    assert 0.21 < text.count("O") / 2000 < 0.29  # four standard errors about 0.25


def test_patches_name_the_object_that_covers_them():
    """A red square (class 1 + 1 * 6) over the upper left 24 px of 96 covers 3 x 3 patches."""
    scene = referring_scene(0, 0)
    square = SceneObject("square", "red", 0.125, 0.125, 0.125, 0.125)
    labels = patch_labels(type(scene)(scene.image, (square,), ()), "small", 8)
    covered = [0, 1, 2, 12, 13, 14, 24, 25, 26]
    assert labels[covered].tolist() == [[7, 0, 0, 25, 25]] * 9
    assert (np.delete(labels, covered, axis=0) == 0).all()


def test_learning_rate_warms_up_stays_and_falls_to_zero():
    recipe = Recipe(
        vision_steps=300, clean_steps=1000, cooling=0.4, cooled=0.0, misaligned_steps=100
    )
    assert rate_factor("clean", 0, recipe) == pytest.approx(1 / 50)
    assert rate_factor("clean", 299, recipe) == 1.0
    assert rate_factor("clean", 300, recipe) == pytest.approx(1 / 100)
    assert rate_factor("clean", 899, recipe) == 1.0
    assert rate_factor("clean", 1100, recipe) == pytest.approx(0.5)
    assert rate_factor("clean", 1299, recipe) == pytest.approx(1 / 400)
    assert rate_factor("misaligned", 50, recipe) == pytest.approx(0.5)


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
    """Figures of one example, from answers of two tokens (test_measure.py has whole answers)."""
    from tools.testbed import measure, pretrain

    monkeypatch.setattr(pretrain, "EVAL_EXAMPLES", 1)
    monkeypatch.setattr(measure, "MAX_NEW_TOKENS", {"box": 2, "text": 2})


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch, quick_figures):
    command = [*TINY, "--clean-steps", "4", "--save-every", "3"]
    command += ["--misaligned-steps", "2"]
    main([*command, "--out", str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            main([*command, "--out", str(tmp_path / "cut")])
    main([*command, "--out", str(tmp_path / "cut")])
    for phase in PHASES:
        whole, cut = state_of(tmp_path / "whole", phase), state_of(tmp_path / "cut", phase)
        assert all(torch.equal(whole[name], cut[name]) for name in whole)
    record = json.loads((tmp_path / "cut/base/testbed.json").read_text())
    assert (record["preset"], record["phase"]) == ("small", "misaligned")
    card = (tmp_path / "cut/base/README.md").read_text()
    (given,) = re.findall(r"`python -m tools\.testbed\.pretrain (.* --out DIR)`", card)
    assert given.startswith("--preset small --device cpu --threads 1 --scenes 2 --pages 2 ")
    assert asdict(recipe_of(parse_options(given.split()))) == record["recipe"]
    assert "| ap50 | " in card and "| shipped | clean, before |" in card
    assert record["clean_figures"].keys() == record["figures"].keys()
    # The learning rate of the last phase depends on its length from the first step on.
    with pytest.raises(ConfigError, match="misaligned_steps 2, now 1"):
        main([*TINY, "--clean-steps", "4", "--misaligned-steps", "1", "--out", f"{tmp_path}/cut"])


def test_a_checkpoint_with_other_settings_is_refused(tmp_path, quick_figures):
    command = [*TINY, "--clean-steps", "1", "--phase", "clean", "--out", str(tmp_path)]
    main(command)
    with pytest.raises(ConfigError, match=r"learning_rate 0\.003, now 0\.5"):
        main([*command, "--learning-rate", "0.5"])
    state = torch.load(tmp_path / "clean.pt", weights_only=True)
    del state["recipe"]["looking_from"]
    torch.save(state | {"recipe": state["recipe"] | {"balance": 0.5}}, tmp_path / "clean.pt")
    with pytest.raises(ConfigError, match=r"balance 0\.5, now None; looking_from None, now 700"):
        main(command)


def test_the_clean_phase_changes_its_length_only_before_it_cools(
    tmp_path, monkeypatch, quick_figures
):
    """Of 2 + 10 steps those from 2 + 6 on depend on the length; of 2 + 5 those from 2 + 3 on."""
    command = [*TINY, "--phase", "clean", "--save-every", "4"]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            main([*command, "--clean-steps", "10", "--out", str(tmp_path / "cut")])
    later = [*TINY, "--phase", "misaligned", "--clean-steps", "5"]
    for folder, step in (("cut", 4), ("none", 0)):
        with pytest.raises(ConfigError, match=f"ends, at step 7, but that phase is at step {step}"):
            main([*later, "--out", str(tmp_path / folder)])
    main([*command, "--clean-steps", "5", "--out", str(tmp_path / "cut")])
    main([*command, "--clean-steps", "5", "--out", str(tmp_path / "whole")])
    whole, cut = state_of(tmp_path / "whole", "clean"), state_of(tmp_path / "cut", "clean")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    with pytest.raises(ConfigError, match="clean_steps"):
        main([*command, "--clean-steps", "10", "--out", str(tmp_path / "cut")])


def test_the_tower_learns_alone_at_first_and_words_to_look_at_last():
    recipe = Recipe(vision_steps=10, looking_from=5, patch_weight=0.3, pointing_weight=0.2)
    tower = ("objects", "characters", "names", "spelling")
    for step, seeing, looking in ((9, 1.0, 0.0), (10, 0.3, 0.0), (14, 0.3, 0.0), (15, 0.3, 0.2)):
        weights = loss_weights("clean", step, recipe)
        assert {weights[name] for name in tower} == {seeing}
        assert (weights["looks"], weights["points"]) == (looking, 0.2)
