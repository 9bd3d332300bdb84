"""The box formats of the model families, each with the question of the family's own source.

Sources of those that are neither LLaVA's nor Qwen's, and what each decides:

- `glm-v` (GLM-4.1V, 4.5V, 4.6V): README of zai-org/GLM-V, 'Grounding': the question, thousandths of
  width and height, x before y, the marks around the answer; "the bracket style may vary ([], [[]],
  (), <>, etc.)". These three kinds of brackets are read; the two of a pair need not match. Several
  boxes are written as the question has them, in one pair of marks.
- `gemma` (Gemma 4): the Gemma 4 post of the Hugging Face blog has the answer, finds thousandths,
  and asks "What's the bounding box for the "view recipe" element in the image?", here without
  "element". That y is before x, and that a point is [y, x], is said by Google of Gemini ('Bounding
  box detection', 'Spatial understanding'), whose key `box_2d` is the same. Of Gemma 3, Google says
  that boxes are no documented ability (google/gemma-3-4b-it, discussion 38).
- `paligemma` (PaliGemma 1 and 2): google-research/big_vision. Training writes round(1023 * y), x
  and so on (pp/proj/paligemma/segmentation.py, `refcoco_mask2str`) and the RefCOCO evaluator reads
  token / 1023 (evaluators/proj/paligemma/transfers/segmentation.py): a token is a coordinate from 0
  to 1023, not a bin of 1024. The Hugging Face blog and Google's notebooks divide by 1024, which is
  0.1 % less. The question is the README's `detect {things}`. For points and polygons in brackets
  there is no source: they are read y first, as its boxes are.
- `florence-2`: `Florence2PostProcessor` in transformers, a port of Microsoft's processor: a number
  is the index of one of 1000 bins (`floor`), read as the centre of its bin (+ 0.5). The question is
  what the processor writes for the model card's task <CAPTION_TO_PHRASE_GROUNDING>.
- `deepseek-vl2`: README of deepseek-ai/DeepSeek-VL2 (question, answer) and its `parse_ref_bbox`,
  which divides by 999. `deepseek-ocr` (DeepSeek-OCR and OCR 2): the question of that README for
  `rec`; its scripts divide by 999, too.
- `minicpm-v`: the maintainers in OpenBMB/MiniCPM-V, issues 982 (question, answer, 4.5), 772 (o 2.6)
  and 185 (the marks of a point).
- `kosmos-2`: microsoft/unilm, kosmos-2/evaluation/refcoco (question in cook_data.py, frame in
  refexp_evaluate.py), and transformers' processing_kosmos2.py for the cells (box_format.py).
- `molmo`: allenai/molmo: percent with one decimal, "There are none." (olmo/data/data_formatter.py,
  which also has the question among others of the kind `refexp_pointing`), a box as two points
  (olmo/util.py, `extract_bboxes`). The model is trained on points, not on boxes.

Qwen3.5 has no format of its own: it is taken to answer as Qwen3-VL does. That is not confirmed: the
one answer found is about another model (QwenLM/Qwen3.8-Flash-Next, issue 4: "In most cases,
grounding coordinates should still be relative coordinates normalized to [0, 1000]").
"""

import re

from perpo_pipeline.answers.box_format import (
    BOXES,
    COORDINATES,
    CORNER_CELLS,
    EXPRESSION,
    LLAVA_QUESTION,
    BoxFormat,
)

# A plain decimal, as every built-in format writes its numbers: no plus sign, no exponent.
DECIMAL = r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
YXYX = ("y1", "x1", "y2", "x2")


def _number(name: str) -> str:
    return rf"\s*(?P<{name}>{DECIMAL})\s*"


_BRACKETED = r"\[" + ",".join(map(_number, COORDINATES)) + r"\]"
_ANY_BRACKETS = r"[\[(<]" + ",".join(map(_number, COORDINATES)) + r"[\])>]"
_POINTS = r"\({},{}\)\s*(?:,\s*)?\({},{}\)".format(*map(_number, COORDINATES))
# JSON as models write it. Qwen's own reader takes Python literals (single quotes, tuples, a comma
# after the last element) and mends an object that is cut off; the rest is ours: numbers in quotes,
# full-width commas and colons, and the box as the first list in a list.
JSON_COMMA = "[,\uff0c]"
JSON_OPENING, JSON_CLOSING = r"[\[(]", rf"(?:{JSON_COMMA}\s*)?[\])]"


def json_number(name: str) -> str:
    """The pattern of a number in a list, in quotes or without, as the group `name`."""
    return rf"\s*(?:[\"']\s*)?(?P<{name}>{DECIMAL})\s*(?:[\"']\s*)?"


def _json(key: str, names: tuple[str, ...]) -> str:
    """A list of numbers with these names under a key."""
    return (
        rf"[\"']{key}[\"']\s*[:\uff1a]\s*(?:{JSON_OPENING}\s*)?{JSON_OPENING}"
        + JSON_COMMA.join(map(json_number, names))
        + JSON_CLOSING
    )


_JSON = _json("bbox_2d", COORDINATES)
_NO_OBJECT = "There is no such object in the image."  # for formats without a list of boxes
_JSON_POINT = '{{"point_2d": [{x}, {y}]}}'
_JSON_TEMPLATE = '{{"bbox_2d": [{x1}, {y1}, {x2}, {y2}]}}'
_DEEPSEEK_TEMPLATE = "<|det|>[[{x1}, {y1}, {x2}, {y2}]]<|/det|>"


def _location(token: str, names: tuple[str, ...]) -> str:
    """Location tokens in a row; `token` has `{}` for the group with its digits."""
    return r"\s*".join(token.format(f"?P<{name}>") for name in names)


_FOUR_DIGITS = r"(?:0[0-9]{{3}}|10[01][0-9]|102[0-3])"  # of 1024 tokens
_PALIGEMMA_BOX = _location(rf"<loc({{}}{_FOUR_DIGITS})>", YXYX)
_FLORENCE_BOX = _location(r"<loc_({}[0-9]{{1,3}})>", COORDINATES)
_KOSMOS_BOX = _location(rf"<patch_index_({{}}{_FOUR_DIGITS})>", CORNER_CELLS)
# Four numbers with white space between, and no fifth beside them. A server that returns no token
# ids may leave the marks out of the text; then other words may stand around.
_SPACED = (
    r"(?:^|[^\s0-9A-Za-z.\-]|[^\s0-9]\s)\s*"
    + r"\s+".join(rf"(?P<{name}>{DECIMAL})" for name in COORDINATES)
    + r"(?:\s*(?:$|[^\s0-9A-Za-z.\-])|\s+[A-Za-z])"
)


def _attributes(x: str, y: str) -> str:
    """Molmo's x="63.5" y="44.5", of several points x1=, y1=, x2= and so on."""
    return rf"x[0-9]*=\"\s*(?P<{x}>{DECIMAL})\s*\"\s+y[0-9]*=\"\s*(?P<{y}>{DECIMAL})\s*\""


BOX_FORMATS: dict[str, BoxFormat] = {
    box_format.name: box_format
    for box_format in (
        BoxFormat("llava", re.compile(_BRACKETED), "[{x1}, {y1}, {x2}, {y2}]", 1.0, decimals=2),
        BoxFormat(
            "qwen-vl",
            re.compile(_POINTS),
            "<box>({x1},{y1}),({x2},{y2})</box>",
            1000.0,
            no_target=_NO_OBJECT,
            point_template="({x},{y})",
        ),
        BoxFormat(
            "qwen2-vl",
            re.compile(_POINTS),
            "<|box_start|>({x1},{y1}),({x2},{y2})<|box_end|>",
            1000.0,
            no_target=_NO_OBJECT,
            point_template="({x},{y})",
        ),
        BoxFormat(
            "qwen2.5-vl",  # the question of Qwen's cookbook
            re.compile(_JSON),
            _JSON_TEMPLATE,
            None,
            instruction="Locate {expression}, output its bbox coordinates using JSON format.",
            point_template=_JSON_POINT,
            frame="resized",
        ),
        BoxFormat(
            "qwen3-vl",  # the question of Qwen3-VL's report, appendix on evaluation
            re.compile(_JSON),
            _JSON_TEMPLATE,
            1000.0,
            instruction='Locate every object that matches the description "{expression}" in the '
            "image. Report bbox coordinates in JSON format.",
            point_template=_JSON_POINT,
        ),
        BoxFormat(
            "internvl",  # the question of InternVL's evaluation of RefCOCO
            re.compile(_BRACKETED),
            "<box>[[{x1}, {y1}, {x2}, {y2}]]</box>",
            1000.0,
            instruction=LLAVA_QUESTION.replace(EXPRESSION, f"<ref>{EXPRESSION}</ref>"),
            no_target="<box>[]</box>",
        ),
        BoxFormat("pixel", re.compile(_BRACKETED), "[{x1}, {y1}, {x2}, {y2}]", None),
        BoxFormat(
            "glm-v",
            re.compile(_ANY_BRACKETS),
            "[{x1},{y1},{x2},{y2}]",
            1000.0,
            instruction="Please pinpoint the bounding box [[x1,y1,x2,y2], …] in the image as per "
            "the given description. {expression}",
            no_target="<|begin_of_box|>[]<|end_of_box|>",
            around=f"<|begin_of_box|>[{BOXES}]<|end_of_box|>",
            separator=",",
        ),
        BoxFormat(
            "gemma",
            re.compile(_json("box_2d", YXYX)),
            '{{"box_2d": [{y1}, {x1}, {y2}, {x2}]}}',
            1000.0,
            instruction='What\'s the bounding box for the "{expression}" in the image?',
            point_template='{{"point": [{y}, {x}]}}',
            point_pattern=re.compile(_json("point", YXYX[:2])),
            y_first=True,
        ),
        BoxFormat(
            "paligemma",
            re.compile(_PALIGEMMA_BOX),
            "<loc{y1:0>4}><loc{x1:0>4}><loc{y2:0>4}><loc{x2:0>4}>",
            1023.0,
            instruction="detect {expression}",
            no_target=_NO_OBJECT,
            point_template="[{y}, {x}]",
            y_first=True,
        ),
        BoxFormat(
            "florence-2",
            re.compile(_FLORENCE_BOX),
            "<loc_{x1}><loc_{y1}><loc_{x2}><loc_{y2}>",
            1000.0,
            instruction="Locate the phrases in the caption: {expression}",
            no_target=_NO_OBJECT,
            bins=True,
        ),
        BoxFormat(
            "deepseek-vl2",
            re.compile(_BRACKETED),
            _DEEPSEEK_TEMPLATE,
            999.0,
            instruction="<|ref|>{expression}<|/ref|>.",
            no_target="<|det|>[]<|/det|>",
        ),
        BoxFormat(
            "deepseek-ocr",
            re.compile(_BRACKETED),
            _DEEPSEEK_TEMPLATE,
            999.0,
            instruction="Locate <|ref|>{expression}<|/ref|> in the image.",
            no_target="<|det|>[]<|/det|>",
        ),
        BoxFormat(
            "minicpm-v",
            re.compile(_SPACED),
            "<box>{x1} {y1} {x2} {y2}</box>",
            1000.0,
            instruction=LLAVA_QUESTION.replace(EXPRESSION, f"<ref>{EXPRESSION}</ref>"),
            no_target=_NO_OBJECT,
            point_template="<point>{x} {y}</point>",
            point_pattern=re.compile(
                rf"<point>\s*(?P<x1>{DECIMAL})\s+(?P<y1>{DECIMAL})\s*</point>"
            ),
        ),
        BoxFormat(
            "kosmos-2",
            re.compile(_KOSMOS_BOX),
            "<object><patch_index_{first:0>4}><patch_index_{last:0>4}></object>",
            32.0,
            instruction="<grounding><phrase>{expression}</phrase>",
            no_target=_NO_OBJECT,
            cells=True,
        ),
        BoxFormat(
            "molmo",
            re.compile(_attributes("x1", "y1") + r"\s+" + _attributes("x2", "y2")),
            '<points x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"></points>',
            100.0,
            decimals=1,
            instruction="Point to {expression}",
            no_target="There are none.",
            point_template='<point x="{x}" y="{y}"></point>',
            point_pattern=re.compile(_attributes("x1", "y1")),
        ),
    )
}

JSON_FORMATS = frozenset(("qwen2.5-vl", "qwen3-vl"))
"""The formats that read points and polygons in JSON as Qwen writes them."""
