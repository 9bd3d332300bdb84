"""Processors of all families, with or without torchvision."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import CHAT_TEMPLATE, noise_image
from transformers.image_processing_backends import PilBackend
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm.families import Family
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm
from perpo_pipeline.vlm.processors import load_processor
from perpo_pipeline.vlm.prompts import count_prompt_tokens, encode_prompt, resized_size

# width, height: landscape, portrait, square, tiny, odd, long, large
SIZES = [(48, 40), (40, 96), (64, 64), (8, 8), (71, 53), (300, 40), (31, 211), (1000, 700)]
QUESTION = "Where is the red square?"
VIDEO_PROCESSORS = {  # as the hub's files name them, for the families with a video part
    "llava_onevision": "LlavaOnevisionVideoProcessor",
    "qwen2_5_vl": "Qwen2VLVideoProcessor",
    "qwen3_vl": "Qwen3VLVideoProcessor",
    "internvl": "InternVLVideoProcessor",
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: save_tiny_family(name, root / name) for name in MODEL_TYPES}


@pytest.fixture(scope="module")
def vlms(directories: dict[str, Path]) -> dict[str, Vlm]:
    return {name: load_tiny(path) for name, path in directories.items()}


@pytest.fixture(params=MODEL_TYPES)
def vlm(request: pytest.FixtureRequest, vlms: dict[str, Vlm]) -> Vlm:
    return vlms[request.param]


def load_tiny(directory: Path) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def next_token_logits(vlm: Vlm, prompt: EncodedPrompt) -> torch.Tensor:
    """One plain forward of transformers, which computes the rotary positions itself."""
    ids = prompt.input_ids[None]
    types = {"mm_token_type_ids": (ids == vlm.model.config.image_token_id).int()}
    extra = types if prompt.positions.shape[0] == 3 else {}
    with torch.no_grad():
        return vlm.model(input_ids=ids, **prompt.tensors, **extra).logits[0, -1]


def write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content), encoding="utf-8")


def name_video_processor(directory: Path, model_type: str) -> None:
    """One processor_config.json with every part in it, as transformers 5 saves it."""
    file = directory / "processor_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["video_processor"] = {"video_processor_type": VIDEO_PROCESSORS[model_type]}
    write_json(file, config)


def split_as_on_the_hub(directory: Path, model_type: str) -> None:
    """A file per part, as in the hub's checkpoints, which transformers 4 wrote."""
    file = directory / "processor_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    processor_class = {"processor_class": config["processor_class"]}
    image = config.pop("image_processor") | processor_class
    image["image_processor_type"] += "Fast"
    if "longest_edge" in image["size"]:
        size = image.pop("size")
        image |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    write_json(directory / "preprocessor_config.json", image)
    video = {"video_processor_type": VIDEO_PROCESSORS[model_type]} | processor_class
    write_json(directory / "video_preprocessor_config.json", image | video)
    if config == processor_class:
        file.unlink()
    else:
        write_json(file, config)
    template = directory / "chat_template.jinja"
    write_json(directory / "chat_template.json", {"chat_template": template.read_text("utf-8")})
    template.unlink()


@pytest.mark.parametrize("layout", [name_video_processor, split_as_on_the_hub])
@pytest.mark.parametrize("model_type", VIDEO_PROCESSORS)
def test_a_video_part_in_the_files_is_left_out_and_changes_nothing(
    model_type: str, layout: Any, directories: dict[str, Path], vlms: dict[str, Vlm], tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(directories[model_type], tmp_path / "model"))
    layout(directory, model_type)
    loaded = load_tiny(directory)
    assert not hasattr(loaded.processor, "video_processor")
    for size in SIZES:
        given, expected = (
            encode_prompt(vlm, noise_image(0, *size), QUESTION)
            for vlm in (loaded, vlms[model_type])
        )
        assert given.text == expected.text
        assert given.input_ids.equal(expected.input_ids)
        assert given.tensors.keys() == expected.tensors.keys()
        for name, tensor in given.tensors.items():
            assert tensor.equal(expected.tensors[name])


def test_processor_is_the_librarys_own_class_with_pil_images(vlm: Vlm) -> None:
    usual = transformers.PROCESSOR_MAPPING[type(vlm.model.config)]
    assert isinstance(vlm.processor, usual)
    assert isinstance(vlm.processor.image_processor, PilBackend)


def test_there_is_one_placeholder_per_image_feature(vlm: Vlm) -> None:
    for size in SIZES:
        prompt = encode_prompt(vlm, noise_image(0, *size), QUESTION)
        assert next_token_logits(vlm, prompt).isfinite().all()
        assert 20 < prompt.num_tokens < 150
    # The forward tests this only if it refuses a missing placeholder.
    (places,) = torch.nonzero(prompt.input_ids == vlm.model.config.image_token_id, as_tuple=True)
    short = torch.cat([prompt.input_ids[: places[0]], prompt.input_ids[places[0] + 1 :]])
    with pytest.raises((ValueError, RuntimeError, IndexError)):
        next_token_logits(vlm, EncodedPrompt(**vars(prompt) | {"input_ids": short}))


def test_another_image_changes_the_logits(vlm: Vlm) -> None:
    first, second = (
        next_token_logits(vlm, encode_prompt(vlm, noise_image(seed), QUESTION)) for seed in (0, 1)
    )
    assert (first - second).abs().max() > 0.1


@pytest.mark.parametrize("preprocess", ["processor", "pad"])
def test_counted_tokens_are_those_of_the_encoded_prompt(vlm: Vlm, preprocess: str) -> None:
    for size in SIZES:
        for question in (QUESTION, "Count: 1 2 3 \u00e9\n"):
            prompt = encode_prompt(vlm, noise_image(0, *size), question, preprocess=preprocess)
            counted = count_prompt_tokens(vlm, prompt.text, prompt.padded_size)
            assert counted == prompt.num_tokens


@pytest.mark.parametrize("preprocess", ["processor", "pad"])
def test_resized_size_is_that_of_the_encoded_prompt(vlm: Vlm, preprocess: str) -> None:
    name, found = vlm.family.name, set()
    for size in SIZES:
        prompt = encode_prompt(vlm, noise_image(0, *size), QUESTION, preprocess=preprocess)
        assert resized_size(vlm, prompt.padded_size) == prompt.resized
        found.add(prompt.resized)
    if name == "llava":
        assert found == {(32, 32)}  # the crop
    elif name in ("llava-next", "llava-onevision"):
        assert found == {None}
    elif name == "internvl":
        assert found <= {None, (32, 32)} and None in found  # a tile, or several
    else:
        assert None not in found and len(found) >= (6 if preprocess == "processor" else 2)


@pytest.mark.parametrize(("model_type", "factor"), [("qwen2_5_vl", 28), ("qwen3_vl", 32)])
@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 4000), height=st.integers(1, 4000))
def test_resized_size_of_qwen_is_the_librarys_smart_resize(
    model_type: str, factor: int, width: int, height: int, vlms: dict[str, Vlm]
) -> None:
    assume(max(width, height) / min(width, height) <= 200)
    limits = {"min_pixels": 2 * factor**2, "max_pixels": 12 * factor**2}  # tiny_families.py
    expected = smart_resize(height, width, factor=factor, **limits)[::-1]
    assert resized_size(vlms[model_type], (width, height)) == expected


def test_resized_size_of_the_coordinate_oracle_at_qwens_own_limits(
    directories: dict[str, Path],
) -> None:
    """The published example: 640 x 428 becomes 644 x 420."""
    vlm = load_tiny(directories["qwen2_5_vl"])
    limits = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    vlm.processor.image_processor.size = limits
    assert resized_size(vlm, (640, 428)) == (644, 420)
    with pytest.raises(InputError, match="too narrow"):
        resized_size(vlm, (2010, 10))


def test_resized_size_follows_llavas_settings_and_is_none_beyond_them(
    directories: dict[str, Path],
) -> None:
    vlm = load_tiny(directories["llava"])
    settings_ = vlm.processor.image_processor
    settings_.crop_size = {"height": 24, "width": 40}
    assert resized_size(vlm, (90, 30)) == (40, 24)
    settings_.do_center_crop = False
    assert resized_size(vlm, (90, 30)) is None  # by the shortest edge
    settings_.size = {"height": 20, "width": 30}
    assert resized_size(vlm, (90, 30)) == (30, 20)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_an_untried_relative_that_shares_the_processor_shares_its_sizes(
    model_type: str, vlms: dict[str, Vlm]
) -> None:
    known = vlms[model_type]
    untried = replace(known, family=Family("relative", known=False))
    text = encode_prompt(known, noise_image(0), QUESTION).text
    for size in SIZES:
        assert resized_size(untried, size) == resized_size(known, size) is not None
        assert count_prompt_tokens(untried, text, size) == count_prompt_tokens(known, text, size)
    unknown = SimpleNamespace(image_processor=known.processor.image_processor)
    if model_type == "llava":  # the same settings in another processor may mean something else
        assert resized_size(replace(untried, processor=unknown), (90, 30)) is None


def test_sizes_make_different_counts_where_the_family_cuts_or_keeps_them(
    vlms: dict[str, Vlm],
) -> None:
    for name, vlm in vlms.items():
        text = encode_prompt(vlm, noise_image(0), QUESTION).text
        counts = {count_prompt_tokens(vlm, text, size) for size in SIZES}
        assert len(counts) >= (1 if name == "llava" else 3)


def test_template_with_its_own_begin_token_is_counted_with_one(
    directories: dict[str, Path], vlms: dict[str, Vlm]
) -> None:
    vlm = load_tiny(directories["llava"])
    vlm.processor.chat_template = "<s>" + CHAT_TEMPLATE
    prompt = encode_prompt(vlm, noise_image(0), QUESTION)
    usual = encode_prompt(vlms["llava"], noise_image(0), QUESTION)
    assert prompt.input_ids.equal(usual.input_ids)
    assert count_prompt_tokens(vlm, prompt.text, (48, 40)) == usual.num_tokens


@pytest.mark.parametrize("known", [True, False])
def test_the_count_is_none_where_the_library_cannot_count(
    known: bool, directories: dict[str, Path]
) -> None:
    vlm = load_tiny(directories["llava"])
    if not known:
        vlm = replace(vlm, family=Family("relative", known=False))
    assert count_prompt_tokens(vlm, "<image> a", (90, 30)) is not None
    vlm.processor.image_processor.do_center_crop = False
    assert count_prompt_tokens(vlm, "<image> a", (90, 30)) is None
    unable = SimpleNamespace(tokenizer=vlm.tokenizer)
    untried = Family("unable", known=False)
    assert count_prompt_tokens(replace(vlm, processor=unable, family=untried), "a", (9, 3)) is None


def test_image_processor_without_a_pil_version_is_refused(
    directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SimpleNamespace(image_processor=SimpleNamespace())
    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", lambda *a, **kw: other)
    with pytest.raises(InputError, match="no PIL version"):
        load_processor(directories["llava"])


def test_processor_saved_again_encodes_the_same(
    directories: dict[str, Path], vlms: dict[str, Vlm], tmp_path: Path
) -> None:
    for name, vlm in vlms.items():
        copy = Path(shutil.copytree(directories[name], tmp_path / name))
        vlm.processor.save_pretrained(copy)
        given, expected = (
            encode_prompt(v, noise_image(0), QUESTION) for v in (load_tiny(copy), vlm)
        )
        assert given.text == expected.text
        assert given.input_ids.equal(expected.input_ids)
        assert given.tensors["pixel_values"].equal(expected.tensors["pixel_values"])


def test_tiny_qwen3_vl_depends_on_its_deepstack_features(directories: dict[str, Path]) -> None:
    vlm = load_tiny(directories["qwen3_vl"])
    prompt = encode_prompt(vlm, noise_image(0), QUESTION)
    before = next_token_logits(vlm, prompt)
    vlm.model.model.visual.deepstack_merger_list[1].linear_fc2.weight.data.zero_()
    assert (next_token_logits(vlm, prompt) - before).abs().max() > 0.01
