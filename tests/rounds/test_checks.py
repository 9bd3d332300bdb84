"""What must hold before rounds: no prompt that is measured shows what the rounds are trained on."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.prepare.prepare_prompts import prepare
from perpo_pipeline.rounds.checks import check_apart, method_of
from perpo_pipeline.run import Run

ASKED = {"task": "vqa", "prompt": "Which is red?", "gt_text": "the first"}
SAID = [{"role": "user", "content": "Look."}, {"role": "assistant", "content": "I do."}]


def check(
    folder: Path, trained: Any, measured: Any, *, allow: bool = False, test: Any = None
) -> None:
    """`check_apart` of one prompt to train on and one of each split that is measured."""
    sources = {}
    test = test or {"image": "d.png"}
    for split, row in (("train", trained), ("validation", measured), ("test", test)):
        (folder / f"{split}.jsonl").write_text(json.dumps({**ASKED, **row}))
        sources[split] = {"source": "jsonl", "path": str(folder / f"{split}.jsonl")}
    for number, name in enumerate("abcd"):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{name}.png")
    config = {
        "run": "r",
        "data_root": str(folder / "data"),
        "prepare": sources,
        "eval": {"allow_train_images": allow},
    }
    run = Run(RunConfig.model_validate(config), quiet=True)
    check_apart(run.config, {split: prepare(run, split) for split in sources})


def test_an_image_of_several_counts_wherever_it_stands(tmp_path: Path) -> None:
    one, two = {"image": "a.png"}, {"images": ["a.png", "b.png"]}
    for trained, measured in ((one, two), (two, one), (two, {"images": ["c.png", "a.png"]})):
        with pytest.raises(InputError, match="1 prompts of 'validation' have the image of a"):
            check(tmp_path, trained, measured)
    check(tmp_path, two, {"images": ["c.png", "c.png"]})


def test_prompts_that_choose_a_round_are_not_those_that_are_reported(tmp_path: Path) -> None:
    one, two = {"image": "a.png"}, {"image": "b.png"}
    for allow, what in ((False, "image"), (True, "image and question")):
        with pytest.raises(InputError) as found:
            check(tmp_path, one, two, allow=allow, test=two)
        assert found.value.what.startswith(
            f"1 prompts of 'test' have the {what} of a prompt of 'validation', on which a round is "
            "chosen, first test.jsonl:1 ("
        )
        assert found.value.where == "prepare.validation and prepare.test"
    check(tmp_path, one, two, allow=True, test={**two, "prompt": "Which is blue?"})


def test_with_equal_images_allowed_the_whole_question_counts(tmp_path: Path) -> None:
    two = {"images": ["a.png", "b.png"]}
    with pytest.raises(InputError, match="have the image and question of a prompt"):
        check(tmp_path, two, {"images": ["b.png", "a.png"]}, allow=True)
    for other in ({"images": ["c.png", "b.png"]}, {**two, "history": SAID}, {**two, "prompt": "?"}):
        check(tmp_path, two, other, allow=True)


def test_one_round_may_have_quantised_weights_and_several_may_not() -> None:
    source = {"source": "testbed", "num_prompts": 4}
    splits = dict.fromkeys(("train", "validation", "test"), source)
    given = {"run": "r", "prepare": splits, "train": {"methods": {"perpo": {}}}}
    given["model"] = {"quantization": "nf4"}
    one, two = (RunConfig.model_validate({**given, "rounds": {"num": n}}) for n in (1, 2))
    assert method_of(one) == "perpo"
    with pytest.raises(ConfigError, match=r"rounds.num to 1 \(.*small-cards"):
        method_of(two)
