"""The paper is named only beside its own data and models."""

import pytest

from perpo_pipeline.report.page.papers_table import papers_table


@pytest.mark.parametrize(
    ("model", "datasets", "table"),
    [
        ("llava-hf/llava-1.5-7b-hf", ["refcoco_val", "refcoco+_testA"], "the paper's Table 1"),
        ("/models/llava-1.5-7b-hf/", ["refcocog_test"], "the paper's Table 1"),
        ("llava-hf/llava-1.5-7b-hf", ["refcoco_val", "mine"], None),
        ("llava-hf/llava-1.5-7b-hf", ["photos"], None),
        ("llava-hf/llava-1.5-13b-hf", ["refcoco_val"], None),
        ("Qwen/Qwen2.5-VL-3B-Instruct", ["refcoco_val"], None),
        ("someone/LLaVA-NeXT-25k-7B", ["fox"], "the paper's Table 2"),
        ("llava-hf/llava-onevision-qwen2-7b-ov-hf", ["fox"], None),
        ("testbed", [], None),
    ],
)
def test_only_the_papers_models_on_its_data_stand_beside_its_tables(model, datasets, table):
    assert papers_table(model, datasets) == table
