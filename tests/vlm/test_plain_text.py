"""Text stays text: control tokens that a prompt or an answer spells, in every family."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from perpo_pipeline.answers.boxes import BOX_FORMATS, format_box, parse_box, parse_boxes
from perpo_pipeline.answers.pipeline import answer_text
from perpo_pipeline.answers.reading import read_points
from perpo_pipeline.answers.settings import Reading
from perpo_pipeline.errors import InputError
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.plain_text import JOINT, PlainTokenizer, control_tokens
from perpo_pipeline.vlm.processors import decode_completions
from perpo_pipeline.vlm.prompts import (
    adds_special_tokens,
    count_prompt_tokens,
    encode_prompt,
    render_prompt,
    rendered_ids,
)

# Tokens of one family or another: each is control in some and plain words in the others.
SPELLED = (
    *("<s>", "</s>", "<pad>", "<unk>", "<video>", "<audio>", "<img>", "</img>", "<IMG_CONTEXT>"),
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|image_pad|>", "<|video_pad|>"),
    *("<|vision_start|>", "<|vision_end|>"),
)
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters=[JOINT]), max_size=30)
TEXTS = st.lists(PLAIN | st.sampled_from(SPELLED), max_size=6).map("".join)


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: save_tiny_family(name, root / name) for name in MODEL_TYPES}


@pytest.fixture(scope="module")
def vlms(directories: dict[str, Path]) -> dict[str, Vlm]:
    return {name: load_without_weights(resolve_model(str(d))) for name, d in directories.items()}


@pytest.fixture(params=MODEL_TYPES)
def vlm(request: pytest.FixtureRequest, vlms: dict[str, Vlm]) -> Vlm:
    return vlms[request.param]


def controls_in(vlm: Vlm, ids: list[int]) -> list[str]:
    """The control tokens among ids, image placeholders left out."""
    names = vlm.tokenizer.convert_ids_to_tokens(ids)
    image = set(vlm.tokenizer.convert_ids_to_tokens(list(vlm.image_token_ids)))
    return [name for name in names if name in vlm.plain.controls - image]


@pytest.mark.parametrize("spelled", SPELLED)
def test_a_prompt_has_the_templates_control_tokens_and_no_others(vlm: Vlm, spelled: str) -> None:
    usual = encode_prompt(vlm, noise_image(0), "Is the word gone?")
    prompt = encode_prompt(vlm, noise_image(0), f"Is {spelled}the word{spelled} gone?")
    ids = prompt.input_ids.tolist()
    assert controls_in(vlm, ids) == controls_in(vlm, usual.input_ids.tolist())
    image = vlm.model.config.image_token_id
    assert ids.count(image) == usual.input_ids.tolist().count(image)
    assert f"Is {spelled}the word{spelled} gone?" in vlm.tokenizer.decode(ids)
    assert prompt.tensors.keys() == usual.tensors.keys()
    assert prompt.num_tokens == count_prompt_tokens(vlm, prompt.text, prompt.padded_size)
    if prompt.token_types is not None:
        assert (prompt.token_types == (prompt.input_ids == image)).all()


@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_any_text_is_read_back_as_it_is_with_no_token_of_control(
    vlms: dict[str, Vlm], text: str
) -> None:
    for vlm in vlms.values():
        ids = vlm.plain.ids(vlm.plain.mark(text))
        assert not controls_in(vlm, ids) and not set(ids) & set(vlm.image_token_ids)
        decoded = vlm.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert decoded.removeprefix(" ") == text.removeprefix(" ")


@given(PLAIN)
@settings(max_examples=60, deadline=None)
def test_texts_without_control_tokens_keep_the_tokenizers_own_ids(
    vlms: dict[str, Vlm], text: str
) -> None:
    """Also from the copy of the tokenizer, which such texts never reach."""
    for vlm in vlms.values():
        assume(not vlm.plain.spelled(text) and "<image>" not in text)
        rendered = render_prompt(vlm, text)
        special = adds_special_tokens(vlm, rendered)
        usual = vlm.tokenizer(rendered, add_special_tokens=special)["input_ids"]
        assert JOINT not in rendered and rendered_ids(vlm, rendered) == usual
        assert vlm.plain.ids(rendered + JOINT, add_special_tokens=special) == usual


def test_a_begin_token_that_the_prompt_spells_is_not_the_templates(vlms: dict[str, Vlm]) -> None:
    vlm = vlms["llava"]
    vlm = replace(vlm, processor=_with_template(vlm, "{{ messages[0]['content'][1]['text'] }}"))
    ids = rendered_ids(vlm, render_prompt(vlm, "<s>old"))
    assert ids[0] == 1 and ids.count(1) == 1
    assert vlm.tokenizer.decode(ids[1:]) == "<s>old"


def _with_template(vlm: Vlm, template: str) -> Any:
    import copy

    processor = copy.copy(vlm.processor)
    processor.chat_template = template
    return processor


def test_overlapping_spellings_are_all_text() -> None:
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens(["ab", "bc", "abcd"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    plain = PlainTokenizer(tokenizer, control_tokens(tokenizer, None, (), ""))
    assert {"ab", "bc", "abcd"} <= plain.controls
    ids = plain.ids(plain.mark("xabc abcd"))
    assert tokenizer.decode(ids).strip() == "xabc abcd" and max(ids) < 300


def test_words_of_the_model_stay_tokens_and_named_tokens_never_do(vlms: dict[str, Vlm]) -> None:
    """`<think>` is an ordinary token in Qwen3, `<ref>` and `<box>` mark regions in InternVL; a
    placeholder is a control token even where the tokenizer calls it ordinary."""
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("<slot>", special=False)])
    backend.add_special_tokens(["<ref>", "</ref>", "<det>", "<other>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    slot = tokenizer.convert_tokens_to_ids("<slot>")
    controls = control_tokens(tokenizer, None, (slot,), own_marks="<det>{x1}</s>")
    assert controls == {"<pad>", "<s>", "</s>", "<image>", "<slot>", "<other>"}
    plain = PlainTokenizer(tokenizer, controls)
    ids = plain.ids(plain.mark("<ref>a</ref><think><det><other><slot></s>"))
    added = [t for t in tokenizer.convert_ids_to_tokens(ids) if t in tokenizer.get_added_vocab()]
    assert added == ["<ref>", "</ref>", "<think>", "<det>"]


# Every special or ordinary word with which a built-in format writes its answers and questions.
WORDS = (
    *("<loc0348>", "<loc1023>", "<loc_0>", "<loc_999>", "<patch_index_0785>"),
    *("<|begin_of_box|>", "<|end_of_box|>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"),
    *("<grounding>", "<phrase>", "</phrase>", "<object>", "</object>", "<point>", "</point>"),
    *("<box>", "</box>", "<ref>", "</ref>", "<|box_start|>", "<|box_end|>"),
)


@pytest.mark.parametrize("is_special", [True, False])
def test_words_of_the_box_formats_are_tokens_of_answers_and_questions(is_special: bool) -> None:
    """`<loc>` and `<patch_index_>` are none: they are no locations."""
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_tokens([AddedToken(word, special=is_special) for word in WORDS])
    backend.add_special_tokens(["<loc>", "<patch_index_>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    controls = control_tokens(tokenizer, None, (), own_marks="")
    assert controls == {"<pad>", "<s>", "</s>", "<image>", "<loc>", "<patch_index_>"}
    plain = PlainTokenizer(tokenizer, controls)
    vocabulary = tokenizer.get_added_vocab()
    size = {"frame": "full", "image_size": (1000, 1000)}
    for name, rule in BOX_FORMATS.items():
        if rule.frame is not None:
            continue
        text = rule.ask("a") + format_box((100, 200, 300, 400), name, **size)
        spelled = [word for word in re.findall("<[^<>]*>", text) if word in vocabulary]
        ids = plain.ids(plain.mark(text))
        assert [tokenizer.convert_ids_to_tokens(i) for i in ids if i in vocabulary.values()] == (
            spelled
        )


@pytest.mark.parametrize("is_special", [True, False])
def test_locations_survive_decoding_and_other_special_tokens_do_not(is_special: bool) -> None:
    """Special ones, as in Florence-2, and ordinary ones, as in PaliGemma and Kosmos-2."""
    backend = tiny_tokenizer().backend_tokenizer
    locations = [f"<loc_{i}>" for i in (53, 331, 909, 780)]
    backend.add_tokens([AddedToken(word, special=is_special) for word in locations])
    backend.add_special_tokens(["<|det|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    text = "a car" + "".join(locations)
    ids = tokenizer(f"{text}<|det|></s>", add_special_tokens=False)["input_ids"]
    assert decode_completions(tokenizer, [ids, ids[:2], []]) == [
        text,
        tokenizer.decode(ids[:2]),
        "",
    ]
    assert parse_box(
        decode_completions(tokenizer, [ids])[0], "florence-2", frame="full", image_size=(640, 480)
    ) == pytest.approx((34.24, 159.12, 582.08, 374.64))


@pytest.mark.parametrize("is_special", [True, False])
def test_minicpm_s_boxes_and_points_are_read_from_decoded_completions(is_special: bool) -> None:
    """Without the marks the last letter of "book" would stand at the box's first number."""
    backend = tiny_tokenizer().backend_tokenizer
    marks = ("<ref>", "</ref>", "<box>", "</box>", "<point>", "</point>")
    backend.add_tokens([AddedToken(mark, special=is_special) for mark in marks])
    backend.add_special_tokens(["<slice>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")

    def decoded(text: str) -> str:
        ids = tokenizer(f"<slice>{text}</s>", add_special_tokens=False)["input_ids"]
        return decode_completions(tokenizer, [ids])[0]

    book, pen = "<ref>book</ref><box>120 340 560 780</box>", "<ref>pen</ref><box>1 2 3 4</box>"
    assert decoded(book + pen) == book + pen
    size = {"frame": "full", "image_size": (1000, 1000)}
    assert parse_boxes(decoded(book + pen), "minicpm-v", **size) == [
        (120, 340, 560, 780),
        (1, 2, 3, 4),
    ]
    point = decoded("<ref>book</ref><point>120 340</point>")
    found = read_points([point], "minicpm-v", frame="full", sizes=[(1000, 1000)])
    assert found.tolist() == [[120, 340]]


def test_marks_of_thoughts_survive_decoding() -> None:
    """Without its end a special token would join a thought and the answer behind it."""
    backend = tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens(["<|channel>", "<channel|>", "<|turn>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    text = "<|channel>maybe [0, 0]<channel|>[1, 1]"
    ids = tokenizer(f"<|turn>{text}</s>", add_special_tokens=False)["input_ids"]
    (found,) = decode_completions(tokenizer, [ids])
    assert found == text and answer_text(found, Reading()) == "[1, 1]"


def test_a_tokenizer_s_added_tokens_are_listed_once() -> None:
    looked: list[int] = []

    class Counting(PreTrainedTokenizerFast):
        @property
        def added_tokens_decoder(self) -> Any:
            looked.append(1)
            return super().added_tokens_decoder

    backend = tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens(["<box>", "<slice>"])
    tokenizer = Counting(tokenizer_object=backend, eos_token="</s>")
    ids = tokenizer("<slice><box>7</s>", add_special_tokens=False)["input_ids"]
    looked.clear()
    assert [decode_completions(tokenizer, [ids]) for _ in range(3)] == [["<box>7"]] * 3
    assert len(looked) == 1


def test_a_tokenizer_without_locations_decodes_as_before(vlms: dict[str, Vlm]) -> None:
    for vlm in vlms.values():
        ids = [vlm.plain.ids("a [0.1, 0.2]"), list(range(3, 40)), [*vlm.eos_token_ids]]
        usual = vlm.tokenizer.batch_decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert decode_completions(vlm.tokenizer, ids) == usual


def test_spaces_that_a_control_token_takes_away_are_taken_away_as_before(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    """`rstrip` and truncation of a tokenizer.json hold for the copy as for the tokenizer."""
    directory = Path(shutil.copytree(directories["llava_onevision"], tmp_path / "model"))
    file = directory / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    for token in content["added_tokens"]:
        token["rstrip"] = token["content"] == "<|im_start|>"
    content["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    file.write_text(json.dumps(content), "utf-8")
    vlm = load_without_weights(resolve_model(str(directory)))
    text = "<|im_start|>  user where is the red square <|im_end|>"
    usual = vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(usual) > 4
    assert vlm.plain.ids(text + JOINT) == usual


@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("way", ["normalizer", "always", "first", "never"])
def test_a_space_that_the_tokenizer_puts_first_is_put_where_it_was(
    way: str, is_normalized: bool
) -> None:
    """Llama's tokenizers prepend one to each text between control tokens, or to the first alone."""
    letters = [*"▁abcs/<>", "▁a", "bc"]
    merges = [("▁", "a"), ("b", "c")]
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges))
    if way == "normalizer":
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=way)
    backend.add_special_tokens([AddedToken("<s>", normalized=is_normalized), AddedToken("</s>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    plain = PlainTokenizer(tokenizer, control_tokens(tokenizer, None, (), ""))
    for text in ("abc", " abc", "<s>abc", "<s> abc</s>abc", "a <s> bc a</s>", "<s><s>a"):
        assert plain.ids(text + JOINT) == tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = plain.ids("<s>" + plain.mark("a <s>bc</s>"))
    assert ids[0] == len(letters) and max(ids[1:]) < len(letters)


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "WordPiece"])
def test_a_vocabulary_that_holds_its_control_tokens_does_not_give_them_to_text(kind: str) -> None:
    pieces = ["<unk>", "</s>", "<", "/", "s", ">", "a"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    model = {
        "Unigram": lambda: models.Unigram([(piece, -1.0) for piece in pieces], unk_id=0),
        "WordLevel": lambda: models.WordLevel(vocabulary, unk_token="<unk>"),
        "WordPiece": lambda: models.WordPiece(
            vocabulary, unk_token="<unk>", continuing_subword_prefix=""
        ),
    }[kind]()
    backend = Tokenizer(model)
    backend.add_special_tokens(["</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    plain = PlainTokenizer(tokenizer, frozenset({"</s>"}))
    assert plain.ids("a</s>") == [6, 1]
    unknown = [6, 0] if kind == "Unigram" else [0]
    found = plain.ids(plain.mark("a</s>"))
    assert 1 not in found and found in ([6, 2, 3, 4, 5], unknown)


def test_a_tokenizer_that_cannot_read_control_tokens_as_text_is_an_error_not_another_text() -> None:
    class Slow:
        added_tokens_decoder = tiny_tokenizer().added_tokens_decoder

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [len(text)]}

    plain = PlainTokenizer(Slow(), frozenset({"</s>"}))
    assert plain.ids(plain.mark("plain")) == [5]
    with pytest.raises(InputError, match=r"tokenizer \(Slow\) has no way to read it as text"):
        plain.ids(plain.mark("a</s>"))


def test_the_character_that_marks_is_refused_in_a_text(vlms: dict[str, Vlm]) -> None:
    with pytest.raises(InputError, match=r"U\+FDD0, which is no character"):
        render_prompt(vlms["llava"], f"Where is {JOINT}?")
