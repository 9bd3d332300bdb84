"""Model families: one record per family, which everything reads."""

from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from tiny_adapters import save_adapter
from tiny_all import SAVED, long_prompt, tiny_vlm
from tiny_by_hand import BY_HAND
from tiny_families import MODEL_TYPES, without
from tiny_models import noise_image
from tiny_untried import save_untried

from perpo_pipeline.answers.formats import BOX_FORMATS, frame_fault
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.inference.vllm_engine import exact_lora_rank
from perpo_pipeline.train.engine import choose_forward
from perpo_pipeline.train.lists import TrainingList, ground_truth_list
from perpo_pipeline.train.scope import lora_config, unfreeze
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import families
from perpo_pipeline.vlm.chat import answer_turn
from perpo_pipeline.vlm.families import FAMILIES, Family, family_of, family_of_type, unusual_boxes
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm, load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import count_prompt_tokens, encode_prompt, resized_size
from perpo_pipeline.vlm.recurrent import use_recurrent_steps

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
    """A tiny Qwen2-VL, whose own record these tests take away."""
    return save_untried("qwen2_vl", tmp_path_factory.mktemp("newcomer"))


@pytest.fixture(params=[True, False], ids=["added", "untried"])
def is_added(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the newcomer is one of the families; the other half shows what that changes."""
    if request.param:
        monkeypatch.setitem(FAMILIES, "qwen2_vl", NEWCOMER)
    else:
        monkeypatch.setattr(families, "FAMILIES", without("qwen2_vl"))
    return bool(request.param)


@pytest.fixture
def vlm(directory: Path, is_added: bool) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def test_a_newcomer_is_named_with_and_without_its_weights(
    vlm: Vlm, directory: Path, is_added: bool
) -> None:
    resolved = resolve_model(str(directory))
    for found in (vlm.family, load_without_weights(resolved).family, family_of(resolved)):
        assert found == (NEWCOMER if is_added else family_of_type("qwen2_vl"))
        assert found.known is is_added


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
    assert exact_lora_rank(vlm.family, adapter) == (
        8 if is_added else None
    )  # the next rank above 4


# --- the families ---------------------------------------------------------------------------------


def test_the_families_of_the_paper_and_of_today_are_known() -> None:
    """Other tests run over FAMILIES: one that goes missing here would silently go missing there."""
    assert set(FAMILIES) == {*MODEL_TYPES, *SAVED, *BY_HAND, "lfm2_vl"} - {"gemma4-causal"}
    served = {"llava", "llava_next", "qwen2_5_vl", "qwen3_vl"}  # by tests/with_vllm
    assert {name for name in FAMILIES if FAMILIES[name].lora_in_vllm} == served
    assert {name for name in FAMILIES if not FAMILIES[name].own_processor} == {
        *BY_HAND,
        "lfm2_vl",
    } - {"gemma4-causal"}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: str(family.name))
def test_a_familys_own_boxes_are_a_valid_pair_of_settings_with_a_source(family: Family) -> None:
    assert family.known and (family.box_format is None) == (family.box_source == "")
    if family.box_format is None:
        return
    assert family.box_format in BOX_FORMATS
    assert frame_fault(family.box_format, family.box_frame) is None
    settings = ModelConfig(box_format=family.box_format, box_frame=family.box_frame)
    assert unusual_boxes(family, settings) is None


def test_every_family_has_a_name_and_a_label_of_its_own() -> None:
    for attribute in ("name", "label"):
        values = [getattr(family, attribute) for family in FAMILIES.values()]
        assert all(values) and len(set(values)) == len(FAMILIES)


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
        ("qwen3_5", {"box_format": "qwen2.5-vl", "box_frame": "resized"}, None),
        ("qwen3_vl_moe", {"box_format": "pixel"}, "qwen3-vl-moe models answer in qwen3-vl, full"),
        ("gemma4", {"box_format": "llava"}, "gemma4 models answer in gemma, full"),
        ("gemma3", {"box_format": "gemma"}, None),  # Google documents no boxes for it
        ("got_ocr2", {"box_format": "pixel", "box_frame": "resized"}, None),
    ],
)
def test_settings_that_differ_from_the_familys_own_boxes_give_a_warning(
    model_type: str, settings_: dict[str, Any], message: str | None
) -> None:
    found = unusual_boxes(FAMILIES[model_type], ModelConfig(**settings_))
    assert found is None if message is None else message in str(found)


def test_a_family_without_a_record_gives_no_warning() -> None:
    family = family_of_type("other")
    assert not family.known and not family.is_tested
    assert unusual_boxes(family, ModelConfig(box_format="internvl")) is None


# --- each record, on its tiny model ---------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def directory_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(model_type, where its tiny model is)."""
    return request.param, tmp_path_factory.mktemp(request.param)


def test_the_parts_of_a_record_are_those_of_its_model(directory_of: tuple[str, Path]) -> None:
    vlm = tiny_vlm(*directory_of)
    assert vlm.family is FAMILIES[directory_of[0]]
    assert vlm.position_axes == (3 if hasattr(vlm.model.model, "get_rope_index") else 1)
    parts = {}
    for part in ("projector", "vision_tower", "language_model"):
        unfreeze(vlm, [part])
        parts[part] = {n for n, weight in vlm.model.named_parameters() if weight.requires_grad}
        assert parts[part]
    trained = set.union(*parts.values())
    assert len(trained) == sum(map(len, parts.values()))
    left = {name for name, _ in vlm.model.named_parameters()} - trained
    assert {name.rsplit(".", 1)[-1] for name in left} <= {"image_newline", "view_separator"}
    for path in vlm.family.projector:  # it ends at the width of the text
        assert path in {name for name, _ in vlm.model.model.named_modules()}


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # PEFT's own, for experts
def test_lora_with_a_trained_projector_reaches_all_of_it(directory_of: tuple[str, Path]) -> None:
    vlm = tiny_vlm(*directory_of)
    assert vlm.shares_prefix
    config = lora_config(vlm, 2, 4, ["language_model", "projector"])
    use_recurrent_steps(vlm.model)
    vlm.model = get_peft_model(vlm.model, config)
    answers = [[11, 12, 13], [14, 15]]
    batch = pack_lists(vlm, [CompletionList(long_prompt(directory_of[0], vlm, 20), answers)])
    packed_logps(vlm.model, batch).sum().backward()
    saved = {n: p for n, p in vlm.model.named_parameters() if "modules_to_save" in n}
    for path in vlm.family.projector:
        assert any(f"model.{path}." in name for name in saved)
    assert all(weight.grad is not None and weight.grad.any() for weight in saved.values())


@pytest.mark.parametrize(
    "directory_of",
    [name for name, family in FAMILIES.items() if family.own_processor],
    indirect=True,
)
def test_a_prompts_tokens_and_size_are_counted_without_its_pixels(
    directory_of: tuple[str, Path],
) -> None:
    """Where the processor is the family's own, and its rule needs no pixels."""
    vlm = tiny_vlm(*directory_of)
    for size in ((48, 40), (90, 40), (64, 64)):
        prompt = encode_prompt(vlm, noise_image(0, *size), QUESTION)
        counted = count_prompt_tokens(vlm, prompt.text, size)
        needs_pixels = directory_of[0] in ("gemma3", "aya_vision")
        assert counted == (None if needs_pixels else prompt.num_tokens)
        assert resized_size(vlm, size) in (None, prompt.resized)
