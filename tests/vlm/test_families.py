"""Model families: one record per family, which everything reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_adapters import save_adapter
from tiny_families import MODEL_TYPES, QWEN_IMAGE, chatml_template, qwen_tokenizer, qwen_vl_config
from tiny_models import noise_image
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from perpo_pipeline.answers.formats import BOX_FORMATS, frame_fault
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.vllm_engine import exact_lora_rank
from perpo_pipeline.train.engine import choose_forward
from perpo_pipeline.train.lists import TrainingList, ground_truth_list
from perpo_pipeline.train.scope import lora_config, unfreeze
from perpo_pipeline.vlm.chat import answer_turn
from perpo_pipeline.vlm.families import FAMILIES, Family, family_of, unusual_boxes
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.processors import without_video
from perpo_pipeline.vlm.prompts import count_prompt_tokens, encode_prompt, resized_size

QUESTION = "Where is the red square?"
NEWCOMER = Family(
    "newcomer",
    "Newcomer-VL",
    projector=("visual.merger",),
    vision_tower="visual",
    box_format="qwen2-vl",
    box_frame="resized",
    seen_frame="crop",
    position_axes=3,
    resized_size=lambda processor, size: (size[0] + 1, size[1] + 2),
    image_tokens=lambda processor, size: 1000 + size[0],
    lora_in_vllm=True,
)


# --- a newcomer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of Qwen2-VL, a family that transformers knows and this package never tried."""
    tokenizer = qwen_tokenizer()
    tower = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
    config = Qwen2VLConfig(**qwen_vl_config(tokenizer, [2, 3, 3]), vision_config=tower)
    processor = without_video(Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            size={"shortest_edge": 2 * 28**2, "longest_edge": 12 * 28**2}
        ),
        tokenizer=tokenizer,
        chat_template=chatml_template(QWEN_IMAGE),
    )
    path = tmp_path_factory.mktemp("newcomer")
    torch.manual_seed(0)
    Qwen2VLForConditionalGeneration(config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(params=[True, False], ids=["added", "untried"])
def is_added(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the newcomer is one of the families; the other half shows what that changes."""
    if request.param:
        monkeypatch.setitem(FAMILIES, "qwen2_vl", NEWCOMER)
    return bool(request.param)


@pytest.fixture
def vlm(directory: Path, is_added: bool) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def test_a_newcomer_is_named_with_and_without_its_weights(
    vlm: Vlm, directory: Path, is_added: bool
) -> None:
    resolved = resolve_model(str(directory))
    for found in (vlm.family, load_without_weights(resolved).family, family_of(resolved)):
        assert found == (NEWCOMER if is_added else Family("qwen2_vl", "qwen2_vl", known=False))


def test_a_newcomers_prompts_have_its_axes_of_positions(vlm: Vlm) -> None:
    """Also if it is untried: its model computes them from the grid of an image."""
    prompt = encode_prompt(vlm, noise_image(0, 100, 60), QUESTION)
    assert prompt.positions.shape == (3, prompt.num_tokens)
    assert prompt.next_position < prompt.num_tokens  # an image spans its grid, not its tokens


def test_a_newcomers_sizes_and_tokens_follow_its_own_rules(vlm: Vlm, is_added: bool) -> None:
    prompt = encode_prompt(vlm, noise_image(0, 100, 60), QUESTION)
    counted = count_prompt_tokens(vlm, prompt.text, (100, 60))
    num_image_tokens = int((prompt.input_ids == vlm.image_token_ids[0]).sum())
    if is_added:
        assert resized_size(vlm, (100, 60)) == (101, 62)
        assert counted == prompt.num_tokens - num_image_tokens + 1100
    else:  # those of its processor
        assert resized_size(vlm, (100, 60)) == prompt.resized
        assert counted == prompt.num_tokens


def test_a_newcomers_truth_is_written_at_its_own_resized_size(vlm: Vlm, is_added: bool) -> None:
    row = {"prompt_id": "p", "task": "grounding", "width": 99, "height": 98, "prompt": QUESTION}
    truth = {"gt_box": [0, 0, 99, 98], "gt_boxes": None, "gt_text": None}
    model = ModelConfig(box_format="pixel", box_frame="resized")
    entry = TrainingList(row | truth, [[1]], [0.5], [1])
    (ids,) = ground_truth_list(entry, vlm, model, answer_turn(vlm)).completions
    width, height = (100, 100) if is_added else (84, 84)
    assert f"[0, 0, {width}, {height}]" in vlm.tokenizer.decode(ids)


def test_a_newcomers_boxes_are_compared_with_what_it_answers(vlm: Vlm, is_added: bool) -> None:
    def warning(**settings: Any) -> str | None:
        return unusual_boxes(vlm.family, ModelConfig(**settings))

    for frame in ("resized", "crop"):  # its own, and what its processor leaves
        assert warning(box_format="qwen2-vl", box_frame=frame) is None
    if is_added:
        assert "newcomer models answer in qwen2-vl, resized" in str(warning())
    else:
        assert warning() is None


def test_a_newcomer_shares_its_prefix(vlm: Vlm, is_added: bool) -> None:
    """An untried one by proof on its own weights."""
    assert vlm.shares_prefix
    assert ("on this model's own weights: shared" in vlm.way.why) is not is_added
    assert choose_forward(vlm, "auto") == "shared-prefix"


def test_a_newcomers_module_paths_are_what_scope_trains(vlm: Vlm, is_added: bool) -> None:
    if not is_added:
        with pytest.raises(ConfigError, match="in a 'qwen2_vl' model is unknown"):
            unfreeze(vlm, ["projector"])
        return
    assert lora_config(vlm, 2, 4, ["language_model", "projector"]).modules_to_save == [
        "visual.merger"
    ]
    unfreeze(vlm, ["projector"])
    trained = {name for name, weight in vlm.model.named_parameters() if weight.requires_grad}
    assert trained and all(name.startswith("model.visual.merger.") for name in trained)
    unfreeze(vlm, ["vision_tower"])
    trained = {name for name, weight in vlm.model.named_parameters() if weight.requires_grad}
    assert trained and all(name.startswith("model.visual.") for name in trained)
    assert not any("merger" in name for name in trained)


def test_vllm_serves_a_newcomers_lora_if_its_record_says_so(
    vlm: Vlm, directory: Path, is_added: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_adapter(directory, tmp_path / "adapter", ["language_model"])
    assert exact_lora_rank(vlm, adapter) == (8 if is_added else None)  # the next rank above 4


# --- the families ---------------------------------------------------------------------------------


def test_the_families_of_the_paper_and_of_today_are_known() -> None:
    """Other tests run over FAMILIES: one that goes missing here would silently go missing there."""
    expected = {"llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"}
    assert set(FAMILIES) >= expected
    assert {name for name in expected if not FAMILIES[name].lora_in_vllm} == {
        "llava_onevision",
        "internvl",
    }


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: str(family.name))
def test_a_familys_own_boxes_are_a_valid_pair_of_settings(family: Family) -> None:
    assert family.known and family.box_format in BOX_FORMATS
    assert frame_fault(family.box_format, family.box_frame) is None
    settings = ModelConfig(box_format=family.box_format, box_frame=family.box_frame)
    assert unusual_boxes(family, settings) is None


def test_every_family_has_a_name_and_a_label_of_its_own() -> None:
    for attribute in ("name", "label"):
        values = [getattr(family, attribute) for family in FAMILIES.values()]
        assert all(values) and len(set(values)) == len(MODEL_TYPES)


@pytest.mark.parametrize(
    ("model_type", "settings_", "message"),
    [
        ("llava", {}, None),
        ("llava", {"box_frame": "crop"}, None),
        ("llava", {"preprocess": "pad", "box_frame": "pad"}, None),
        ("llava", {"preprocess": "pad", "box_frame": "crop"}, "answer in llava, full"),
        ("llava", {"box_frame": "pad"}, "answer in llava, full"),
        ("llava_next", {"box_frame": "crop"}, "answer in llava, full"),
        ("qwen2_5_vl", {}, "answer in qwen2.5-vl, resized"),
        ("qwen2_5_vl", {"box_format": "qwen2.5-vl", "box_frame": "resized"}, None),
        ("qwen2_5_vl", {"box_format": "pixel", "box_frame": "resized"}, "box_format pixel"),
        ("qwen3_vl", {"box_format": "qwen3-vl"}, None),
        ("qwen3_vl", {"box_format": "qwen2.5-vl", "box_frame": "resized"}, "answer in qwen3-vl"),
        ("internvl", {"box_format": "internvl"}, None),
        ("internvl", {"box_format": "llava"}, "answer in internvl, full"),
    ],
)
def test_settings_that_differ_from_the_familys_own_boxes_give_a_warning(
    model_type: str, settings_: dict[str, Any], message: str | None
) -> None:
    found = unusual_boxes(FAMILIES[model_type], ModelConfig(**settings_))
    assert found is None if message is None else message in str(found)


def test_an_untried_family_gives_no_warning() -> None:
    assert unusual_boxes(Family("other", known=False), ModelConfig(box_format="internvl")) is None
