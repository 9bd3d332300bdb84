"""The tables of memory in the docs are those that the benchmark computes now."""

from pathlib import Path

from benchmarks import memory_table

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_docs_have_the_computed_tables() -> None:
    """`python benchmarks/memory_table.py` prints them again after a change of the estimate."""
    page = (DOCS / "many-gpus.md").read_text(encoding="utf-8")
    for table in (memory_table.one_gpu(), memory_table.many_gpus()):
        assert "\n".join(table) in page
    assert "**computed** by `benchmarks/memory_table.py`" in page


def test_every_recipe_has_its_own_shape_and_fits_the_largest_card() -> None:
    rows = list(memory_table.one_gpu())[2:]
    assert len(rows) == len(memory_table.RECIPES)
    assert all(row.split("|")[-2].strip() == "fits" for row in rows)


def test_layers_with_quantised_weights_are_counted_as_they_are_computed() -> None:
    """They are compiled on request only, and a layer that is not keeps more."""
    training = memory_table.training_of(*memory_table.RECIPES[0][1:])
    quantised = {"model.quantization": "nf4"}
    plain, compiled = (
        training.memory({**quantised, "train.compile": choice}).activations
        for choice in (None, True)
    )
    assert plain > compiled == training.memory().activations
