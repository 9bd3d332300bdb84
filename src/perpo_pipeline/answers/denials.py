"""Reads answers which say that what was asked for is not in the image.

An answer denies only if all of it does (a code fence around it is taken off). It is

- an empty JSON list, `[]`, or the text that the box format writes for no target;
- one of `DENIALS`, such as "none" or "not found";
- or one or two English sentences, at most `LONGEST` characters, of which the first denies that
  something is there: "There is no dog in the image.", "No dog is visible.", "The image does not
  show a dog.", "The dog is not in the image.", "I cannot find a dog in the photo."

Everything else is no denial, or garbled answers would be rewarded: an empty answer, "No.", a
sentence without an object, coordinates beside it, a refusal ("I cannot see the image", "The image
is not visible", while "The screen is not visible in the image" denies), a sentence that affirms
("There is no doubt ...", "The dog is not on the sofa", "... not in the picture frame"), a loop.
Other languages are not read.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from perpo_pipeline.answers.formats import get_box_format

LONGEST = 300
DENIALS = (
    "none",
    "nothing",
    "no target",
    "no targets",
    "no object",
    "no objects",
    "no such object",
    "no match",
    "no matches",
    "not found",
    "not present",
    "not visible",
)

_FENCE = re.compile(r"```\w{0,20}\s*(.*?)\s*```", re.DOTALL)
_EMPTY_LIST = re.compile(r"\[\s*\]")
# Of boxes and points in any format, and of coordinates without brackets.
_SIGNS = re.compile(
    r"[\[\]{}<>|`]|\(\s*[-.0-9]|\b[xy][12]?\s*[=:]\s*[-.0-9]|[0-9](?:\s*[,;]\s*|\s+)[-.0-9]*[0-9]"
)
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")

# What may itself be what is asked for; and the words for what was given.
_OBJECTS = "screenshot|screen|page|frame|picture|photograph|photo"
_IMAGE = f"(?:image|scene|{_OBJECTS})"
_SHOWN = "(?:image|scene|screenshot|picture|photograph|photo)"
_SENT = "attached|given|input|original|provided|referenced|second|uploaded"
_GIVEN = (
    f"(?:{_SENT}|current|displayed|shown|supplied|first|third|fourth|last|two|entire|full|whole|"
    "particular|specific|cropped|visible|above|following)"
)
_PLACE = "(?:left|right|upper|lower|top|bottom|middle|central|front|back|background|foreground)"
_IS = "(?:is|are|was|were)"
_NOT = "(?:not|n't|n\u2019t)"
_ANY = "any(?: of)?(?: the| these| those| your)?"
_THE = f"(?:the|this|that|these|those|your|our|either(?: of the)?|{_ANY})"
_BORDERS = "(?:visible )?(?:frame|view|bounds|boundaries|borders|limits|edges)"
_VISIBLE = "visible (?:area|part|portion|region)"
# The image as a place. A picture frame is none, nor is the left half of the image.
_IMAGES = "|".join(
    [
        rf"{_THE} (?:(?!{_PLACE}\b)(?:black and white|[a-z-]+) ){{0,2}}"
        rf"(?:image|scene|screenshot)s?(?!['\u2019])",
        rf"{_THE} (?:{_GIVEN} ){{0,2}}(?:picture|photograph|photo)s?(?!['\u2019]| frames?\b)",
        rf"an? (?:{_GIVEN} )?{_SHOWN}(?!['\u2019]| frames?\b)",
        rf"{_THE} (?:(?:{_GIVEN}|camera|video) ){{0,2}}(?:frame|view|field of view)s?"
        rf"(?!['\u2019]| of (?!{_THE} (?:{_SHOWN}|camera)))",
        rf"{_THE} (?:{_GIVEN} ){{0,2}}(?:screen|page)s?(?!['\u2019]| of (?!{_THE} {_SHOWN}))",
        rf"(?:the|any) (?:{_BORDERS}|{_VISIBLE}|contents?) of {_THE} (?:{_GIVEN} )?{_SHOWN}s?",
        rf"any (?:part|area|region|portion) of {_THE} (?:{_GIVEN} )?{_SHOWN}s?",
        rf"{_THE} (?:{_SHOWN}|camera)['\u2019]s (?:{_BORDERS}|{_VISIBLE}|field of view)",
        "(?:view|frame|screen)(?! of)",
    ]
)
_IN_IMAGE = rf"(?:in|on|within) (?:{_IMAGES})(?![\w-])"
_SEEN = "present|visible|found|shown|seen|there|depicted|detected|anywhere"
_THERE = rf"(?:{_SEEN}|{_IN_IMAGE})"  # "The dog is not on the sofa" says that there is a dog
_ANYWHERE = rf"(?:{_SEEN}|in|on|within)"  # "No dog is on the sofa" says that there is none
_SOMETHING = "[\"'\u201c\u2018]?[^\\W_][^.!?]*"
_SHOWS = "(?:contain|show|have|include|depict|feature)"
_CANNOT = "(?:cannot|can ?not|can['\u2019]t|could ?(?:not|n't|n\u2019t))"
_PATTERNS = [
    rf"there(?: {_IS}|'s|\u2019s) (?:no|nothing|nobody|no one|none|not an?|not any) {_SOMETHING}",
    rf"there {_IS} ?{_NOT} (?:an?|any|anything|anybody|anyone) {_SOMETHING}",
    rf"(?:no|none of the) {_SOMETHING} (?:{_IS}|(?:can|could) be) {_ANYWHERE}\b[^.!?]*",
    rf"(?:the|this|that) {_IMAGE} (?:does|did) ?{_NOT} {_SHOWS} {_SOMETHING}",
    rf"(?:the|this|that) {_IMAGE} (?:contains|shows|has|includes|depicts|features) no {_SOMETHING}",
    rf"{_SOMETHING} {_IS} ?{_NOT} {_THERE}\b[^.!?]*",
    rf"{_SOMETHING} (?:does|do|did) ?{_NOT} (?:exist|appear)\b[^.!?]*",
    rf"{_SOMETHING} {_CANNOT} be (?:found|seen|located)\b[^.!?]*",
    rf"i (?:{_CANNOT}|do ?{_NOT}) (?:see|find|locate) {_SOMETHING} "
    rf"(?:anywhere )?{_IN_IMAGE}[^.!?]*",
]
_BEFORE = r"(?:(?:no|sorry|i'm sorry|i am sorry|unfortunately)[,.:;!]? )?(?:but )?"
_DENIES = re.compile(f"{_BEFORE}(?:{'|'.join(_PATTERNS)})[.!]?")
_AFFIRMS = re.compile(
    r"\b(?:doubt|question|problem|need|reason|way|idea|denying|without|except|besides|"
    r"other than|apart from|nothing but|not only|show up|nothing wrong|else but|"
    r"other .{1,80} than|(?:but (?:rather |instead )?|but (?:it|he|she) is |but they are |only )"
    r"(?:at|in|on|near|to|here))\b"
)
# "The dog is on the left and is not shown fully": the first verb says that something is there.
_AFFIRMS_FIRST = re.compile(
    rf"^(?:(?!\b{_IS}\b).)*\b{_IS}\b(?! ?(?:{_NOT}|no|nothing|nobody|none)\b).*\b{_IS}(?:\b|n)"
)
# "I cannot see the image", "There isn't an image"; "The image is not visible", "No image is shown".
_ITS = r"(?:an?|any|the|this|that|no|your|none of the)"
_KIND = rf"(?:(?:{_SENT}) )?"
_CHAT = "(?:question|(?:the|this|that|your) (?:chat|conversation|message|prompt|question|request))"
# No refusal: "The screen is not visible in the image", "There's no picture of a dog".
_OBJECT = rf"(?:(?:first|second|third|last) )?(?:{_OBJECTS})s?"
_IN_ONE = rf"(?:in|on|within) {_THE} (?:{_GIVEN} )?{_SHOWN}s?\b(?! (?:field|file|link|attachment))"
_CAN = rf"(?:{_IS}|{_CANNOT}|can|could|does|did|do)"
_NOT_SENT = "(?:attached|given|included|provided|sent|shared|supplied|uploaded)"
_IS_TARGET = (
    rf"(?:{_IMAGE}s? of (?![^.!?]*\b(?:{_NOT_SENT}|{_CHAT})\b)"
    rf"|{_OBJECT} on (?:the|an?) (?!(?:{_IMAGE}|link|server|site|website)\b)\w"
    rf"|{_OBJECT}(?: \w+| (?:in|at|behind|with)(?: \w+){{1,4}})? {_IN_ONE}"
    rf"|{_OBJECT} {_CAN} ?(?:{_NOT})?(?: \w+){{0,3}} {_IN_ONE})"
)
_REFUSES = re.compile(
    rf"(?:\b(?:see|find|locate|have|is|are|not)|n['\u2019]t|['\u2019]s) {_ITS} (?!{_IS_TARGET})"
    rf"{_KIND}{_IMAGE}s?\b"
    rf"|^{_BEFORE}(?:{_ITS} )?(?!{_IS_TARGET})"
    rf"(?:contents? of {_ITS} )?{_KIND}{_IMAGE}s?(?: file| link)?"
    rf"(?: (?:itself|above|below|here|you|that|which|attached|provided|in {_CHAT})\b[^.!?]*)?"
    rf" (?:{_IS}|{_CANNOT}|(?:can|could)|(?:does|did|do) ?{_NOT} (?:exist|appear))(?:\b|n)"
)


def read_denials(texts: Sequence[str | None], box_format: str) -> npt.NDArray[np.bool_]:
    """Whether each of n answers says that nothing is there, `(n,)`; None is no answer.

    The rule is that of the module. It does not look for boxes: an answer that denies has none.
    Raises ConfigError for an unknown box format.
    """
    own = get_box_format(box_format).no_target.strip()
    return np.array([_denies(text, own) for text in texts], dtype=bool)


def _denies(text: str | None, own: str) -> bool:
    if text is None or len(text) > LONGEST:
        return False
    stripped = text.strip()
    fenced = _FENCE.fullmatch(stripped)
    stripped = fenced[1] if fenced else stripped
    if (own and stripped == own) or _EMPTY_LIST.fullmatch(stripped):
        return True
    plain = " ".join(stripped.lower().split())
    return plain.rstrip(".!") in DENIALS or _is_denying_sentence(plain)


def _is_denying_sentence(plain: str) -> bool:
    if _SIGNS.search(plain):
        return False
    sentences = _SENTENCE_END.split(plain)
    if sentences[0].rstrip(".!,") in ("no", "sorry", "i'm sorry", "i am sorry", "unfortunately"):
        sentences = sentences[1:]
    if not 1 <= len(sentences) <= 2 or not _DENIES.fullmatch(sentences[0]):
        return False
    return not any(rule.search(sentences[0]) for rule in (_AFFIRMS, _AFFIRMS_FIRST, _REFUSES))
