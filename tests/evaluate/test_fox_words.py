"""Words, stems and synonyms are jieba's and nltk's own, and long loops take linear time."""

import importlib.util
import sys
import time
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perpo_pipeline.evaluate import wordnet
from perpo_pipeline.evaluate.fox_words import (
    Stems,
    Synonyms,
    most_likely_states,
    split_words,
)
from perpo_pipeline.evaluate.ocr import fox_metrics

needs_wordnet = pytest.mark.skipif(
    wordnet.find_wordnet() is None, reason="METEOR needs WordNet: apt-get install wordnet-base"
)
WORDS = ("cat", "cats", "dog", "hound", "running", "run", "Runs", "quick", "fast", "the", "a", "x1")


@pytest.fixture(scope="module")
def finalseg() -> ModuleType:
    """jieba's own module, as it is in its file."""
    assert split_words("北", "") == (["北"], [])
    used = sys.modules["jieba.finalseg"]
    spec = importlib.util.spec_from_file_location(
        "jieba.finalseg",
        str(used.__file__),
        submodule_search_locations=list(used.__path__),
    )
    assert spec is not None and spec.loader is not None
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    assert fresh.viterbi is not most_likely_states and used.viterbi is most_likely_states  # type: ignore[attr-defined]
    return fresh


@settings(max_examples=150, deadline=None)
@given(
    st.text(
        st.sampled_from("北京天安门的了一在人有我他这个们中来上大囧㐀"), min_size=1, max_size=40
    )
)
def test_the_states_are_those_of_jieba(finalseg: ModuleType, text: str) -> None:
    model = ("BMES", finalseg.start_P, finalseg.trans_P, finalseg.emit_P)
    assert most_likely_states(text, *model) == finalseg.viterbi(text, *model)


def test_ties_between_states_are_broken_as_in_jieba(finalseg: ModuleType) -> None:
    """In a model where everything is equally likely every choice is a tie."""
    equal = {y: dict.fromkeys("BMES", -1.0) for y in "BMES"}
    likely: dict[str, dict[str, float]] = {y: {} for y in "BMES"}
    model = ("BMES", dict.fromkeys("BMES", -1.0), equal, likely)
    for length in range(1, 6):
        text = "x" * length
        assert most_likely_states(text, *model) == finalseg.viterbi(text, *model)


@needs_wordnet
@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1), st.lists(st.sampled_from(WORDS), min_size=1))
def test_meteor_is_that_of_nltk(words: list[str], truth: list[str]) -> None:
    from nltk.translate.meteor_score import single_meteor_score

    expected = single_meteor_score(truth, words, wordnet=wordnet.find_wordnet())
    assert fox_metrics(" ".join(words), " ".join(truth))["meteor"] == expected


def test_a_word_is_stemmed_and_looked_up_once() -> None:
    asked: list[str] = []

    class Reader:
        def synsets(self, word: str) -> list[object]:
            asked.append(word)
            return []

    synonyms, stems = Synonyms(Reader()), Stems()
    for _ in range(3):
        assert [list(sense.lemmas()) for sense in synonyms.synsets("cat")] == [[]]
        assert stems.stem("running") == "run"
    assert asked == ["cat"]
    assert stems.stem.cache_info().misses == 1


def test_a_long_loop_takes_linear_time() -> None:
    """jieba's own search copies 200,000 paths of up to 200,000 states: minutes."""
    start = time.perf_counter()
    words, _ = split_words("北" * 200_000, "")
    assert "".join(words) == "北" * 200_000
    assert time.perf_counter() - start < 30
