"""Earlier lists whose token ids are not those of the model's tokenizer are refused."""

from pathlib import Path
from typing import Any

import pytest
from synthetic_run import synthetic_config
from tokenizers.normalizers import Lowercase

from perpo_pipeline.errors import InputError
from perpo_pipeline.run import Run, make
from perpo_pipeline.store.artifacts import Version
from perpo_pipeline.store.writing import Recipe, Writer
from perpo_pipeline.train import earlier_lists
from perpo_pipeline.train.earlier_lists import check_reference_reads, check_token_ids
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.processors import decode_completions

ANSWERS = ["[0.10, 0.20, 0.30, 0.40]", "[0.12, 0.34, 0.56, 0.78]"]


@pytest.fixture(scope="module")
def vlm() -> Vlm:
    return load_without_weights(resolve_model("testbed"))


def ids_of(vlm: Vlm, text: str) -> list[int]:
    return [*vlm.plain.ids(vlm.plain.mark(text)), vlm.eos_token_ids[0]]


def preferences(folder: Path, new: int, *lists: tuple[list[str], list[list[int]]]) -> Version:
    """Lists of (texts, token ids), of which the first `new` are new ones."""
    rows: list[dict[str, Any]] = [
        {
            "prompt_id": f"{index:016x}",
            "task": "grounding",
            "completions": texts,
            "completion_token_ids": ids,
            "finish_reasons": ["stop"] * len(ids),
            "rewards": [1.0, 0.0],
            "parse_ok": [True] * len(ids),
            "counts": [1] * len(ids),
            "margin": 1.0,
        }
        for index, (texts, ids) in enumerate(lists)
    ]

    def work(writer: Writer) -> dict[str, Any]:
        writer.write_part(0, rows)
        return {"kept": new, "earlier": {"lists": len(lists) - new, "kept": len(lists) - new}}

    run = Run(synthetic_config(folder), quiet=True)
    return make(run, Recipe("preferences", "train", "filter", 1, {}), work)


def test_ids_that_give_other_texts_are_refused(vlm: Vlm, tmp_path: Path) -> None:
    right = (ANSWERS, [ids_of(vlm, text) for text in ANSWERS])
    swapped = (ANSWERS, right[1][::-1])
    check_token_ids(vlm, preferences(tmp_path / "right", 1, right, right))
    check_token_ids(vlm, preferences(tmp_path / "new", 2, right, swapped))  # no earlier list
    other = preferences(tmp_path / "other", 1, right, right, swapped)
    with pytest.raises(InputError, match="2 of 4 completions of earlier lists") as found:
        check_token_ids(vlm, other)
    what, where, fix = found.value.parts()
    assert f"prompt {2:016x}" in what and what.index(ANSWERS[0]) < what.index(ANSWERS[1])
    assert where == str(other.path) and "perpo filter" in str(fix)


def test_a_reference_model_must_read_the_same_texts_in_all_lists(vlm: Vlm, tmp_path: Path) -> None:
    right = (ANSWERS, [ids_of(vlm, text) for text in ANSWERS])
    check_reference_reads(vlm, preferences(tmp_path / "right", 2, right, right))
    with pytest.raises(InputError, match=r"another tokenizer.* 2 of 4 completions") as found:
        check_reference_reads(vlm, preferences(tmp_path, 2, right, (ANSWERS, right[1][::-1])))
    assert found.value.where == "train.reference_model"


def test_an_id_that_the_model_does_not_have_is_refused(vlm: Vlm, tmp_path: Path) -> None:
    """Where the text would be the same without it: an end token of another model."""
    ids = [ids_of(vlm, text) for text in ANSWERS]
    ids[1][-1] = vlm.vocab_size
    with pytest.raises(InputError, match="1 of 2 completions"):
        check_token_ids(vlm, preferences(tmp_path, 0, (ANSWERS, ids)))


def test_ids_that_were_made_from_a_text_need_not_decode_to_it(tmp_path: Path) -> None:
    """As those of released answers where a tokenizer knows no capitals."""
    vlm = load_without_weights(resolve_model("testbed"))
    vlm.tokenizer.backend_tokenizer.normalizer = Lowercase()
    texts = ["Box [0.10, 0.20, 0.30, 0.40]", "<s> Box"]
    ids = [ids_of(vlm, text) for text in texts]
    assert decode_completions(vlm.tokenizer, ids) == ["box [0.10, 0.20, 0.30, 0.40]", "<s> box"]
    check_token_ids(vlm, preferences(tmp_path / "right", 0, (texts, ids)))
    with pytest.raises(InputError, match="2 of 2 completions"):
        check_token_ids(vlm, preferences(tmp_path / "swapped", 0, (texts, ids[::-1])))


def test_of_many_lists_evenly_spaced_ones_are_compared(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(earlier_lists, "CHECKED", 3)
    right = (ANSWERS, [ids_of(vlm, text) for text in ANSWERS])
    swapped = (ANSWERS, right[1][::-1])
    lists = [right] * 4 + [swapped] * 3  # 0, 3 and 6 are compared
    with pytest.raises(InputError, match="2 of 6 completions"):
        check_token_ids(vlm, preferences(tmp_path, 0, *lists))
