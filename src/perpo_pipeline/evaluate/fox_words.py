"""The words of a page as Fox splits them, and their stems and synonyms for METEOR, in linear time.

An answer that loops until its limit has tens of thousands of words. jieba's search for words that
its dictionary lacks copies the whole path at every character, and nltk stems each word and looks up
its synonyms again at every place. Here the search keeps pointers, and each word is stemmed and
looked up once; the results are the same.
"""

import functools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_CJK = re.compile("[\u4e00-\u9fa5]")  # Fox's range
_KNOWN_WORDS = 1 << 16  # stems and synonyms in memory

# The states of a character in jieba's model (begin, middle, end, single), and which may come before
# each, the later letter first: jieba breaks ties by the letter.
_STATES = "BMES"
_BEFORE = {"B": "SE", "M": "MB", "E": "MB", "S": "SE"}


def split_words(prediction: str, ground_truth: str) -> tuple[list[str], list[str]]:
    """The words of both texts: jieba's if either has a Chinese character, else by white space."""
    if _CJK.search(prediction) or _CJK.search(ground_truth):
        cut = _chinese_words()
        return cut(prediction), cut(ground_truth)
    return prediction.split(), ground_truth.split()


@functools.cache
def _chinese_words() -> Callable[[str], list[str]]:
    """jieba's `lcut` with its own dictionary, read without logging and kept only in memory.

    jieba's own initialisation logs to stderr and leaves a cache in the folder for temporary files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba
        import jieba.finalseg

    jieba.finalseg.viterbi = most_likely_states
    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    cut: Callable[[str], list[str]] = tokenizer.lcut
    return cut


def most_likely_states(
    text: str,
    states: str,
    start: Mapping[str, float],
    steps: Mapping[str, Mapping[str, float]],
    emitted: Mapping[str, Mapping[str, float]],
) -> tuple[float, list[str]]:
    """jieba's `finalseg.viterbi`: the most likely state of each character, and the log-probability.

    The same sums in the same order as there, so that both return the same for every text; but each
    step keeps a pointer to the one before, where jieba copies the path. `states` is "BMES".
    """
    from jieba.finalseg import MIN_FLOAT

    ways = [
        (y, emitted[y], [(before, steps[before].get(y, MIN_FLOAT)) for before in _BEFORE[y]])
        for y in states
    ]
    scores = {y: start[y] + emitted[y].get(text[0], MIN_FLOAT) for y in states}
    pointers: list[dict[str, str]] = []
    for character in text[1:]:
        reached, come_from = {}, {}
        for y, likely, ((first, step), (second, other)) in ways:
            chance = likely.get(character, MIN_FLOAT)
            a, b = scores[first] + step + chance, scores[second] + other + chance
            reached[y], come_from[y] = (a, first) if a >= b else (b, second)
        scores = reached
        pointers.append(come_from)
    probability, state = max((scores[y], y) for y in "ES")
    found = [state]
    for come_from in reversed(pointers):
        found.append(come_from[found[-1]])
    return probability, found[::-1]


class Stems:
    """nltk's Porter stemmer, which stems each word once."""

    def __init__(self) -> None:
        from nltk.stem.porter import PorterStemmer

        self.stem = functools.lru_cache(_KNOWN_WORDS)(PorterStemmer().stem)


class Synonyms:
    """The part of nltk's reader of WordNet that METEOR uses, which looks up each word once.

    METEOR asks for the names of all lemmas of all senses of a word; here they are those of one
    sense, without the names that METEOR leaves out (of several words).
    """

    def __init__(self, wordnet: Any) -> None:
        self._wordnet = wordnet
        self.synsets = functools.lru_cache(_KNOWN_WORDS)(self._look_up)

    def _look_up(self, word: str) -> Sequence["_Sense"]:
        senses = self._wordnet.synsets(word)
        names = {lemma.name() for sense in senses for lemma in sense.lemmas()}
        return (_Sense([_Lemma(name) for name in sorted(names) if "_" not in name]),)


class _Sense:
    def __init__(self, lemmas: Sequence["_Lemma"]) -> None:
        self._lemmas = lemmas

    def lemmas(self) -> Sequence["_Lemma"]:
        return self._lemmas


class _Lemma:
    def __init__(self, name: str) -> None:
        self._name = name

    def name(self) -> str:
        return self._name
