"""Which cells a file has, and the run of each."""

import json
from pathlib import Path

from sweep.fake_stages import SWEEP, write_files

from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.overrides import parse_set
from perpo_pipeline.sweep.cells import Cell, make_cells
from perpo_pipeline.sweep.edges import at_edge
from perpo_pipeline.sweep.file import read_sweep
from perpo_pipeline.sweep.quick import quick_version
from perpo_pipeline.sweep.steps import make_steps

HEAD = "sweep: s\nconfig: run.yaml\nselect_on: validation\n"


def cells_of(tmp_path: Path, grids: str, more: str = "") -> list[Cell]:
    return make_cells(read_sweep(write_files(tmp_path, f"{HEAD}{more}grids:\n{grids}")))


def test_grids_are_united_and_a_cell_in_two_of_them_is_one(tmp_path: Path) -> None:
    cross = """
  - {methods: [perpo], parameters: {train.learning_rate: [1, 2, 3], train.beta: [2]}}
  - {methods: [perpo], parameters: {train.learning_rate: [2], train.beta: [1, 2, 3]}}
"""
    found = [tuple(cell.setting.values()) for cell in cells_of(tmp_path, cross)]
    assert found == [(1, 2), (2, 2), (3, 2), (2, 1), (2, 3)]


def test_keys_joined_by_a_comma_vary_together(tmp_path: Path) -> None:
    grid = """
  - methods: [perpo]
    parameters: {"train.lora.rank, train.lora.alpha": [[2, 4], [8, 16]], train.beta: [1]}
"""
    cells = cells_of(tmp_path, grid)
    settings = [cell.config.train.variants()["perpo"] for cell in cells]
    assert [(one.lora.rank, one.lora.alpha, one.beta) for one in settings] == [
        (2, 4, 1.0),
        (8, 16, 1.0),
    ]


def test_a_parameter_of_training_is_the_cells_own_and_leaves_other_methods_alone(
    tmp_path: Path,
) -> None:
    grid = "  - {parameters: {train.beta: [0.7], sample.num_samples: [2, 4]}}\n"
    cells = cells_of(tmp_path, grid)
    assert [(cell.method, dict(cell.setting)) for cell in cells] == [
        ("base", {}),
        ("sft", {"sample.num_samples": 2}),
        ("sft", {"sample.num_samples": 4}),
        *[
            (name, {"train.beta": 0.7, "sample.num_samples": number})
            for name in ("dpo", "perpo")
            for number in (2, 4)
        ],
    ]
    dpo = next(cell for cell in cells if cell.method == "dpo").config.train.variants()
    assert dpo["dpo"].beta == 0.7 and dpo["perpo"].beta == 0.3


def test_a_setting_of_the_command_line_replaces_that_of_the_file(tmp_path: Path) -> None:
    text = HEAD + "set: {train.epochs: 2, train.batch_size: 4}\ngrids: [{methods: [sft]}]\n"
    file = read_sweep(write_files(tmp_path, text))
    (cell,) = make_cells(file, [parse_set("train.epochs=3")])
    settings = cell.config.train.variants()["sft"]
    assert (settings.epochs, settings.batch_size) == (3, 4)


def test_a_date_varies_as_its_text(tmp_path: Path) -> None:
    grid = """
  - methods: [base]
    parameters:
      model.template_date: [2024-07-26, 2026-01-01]
      "model.system_prompt, model.chat_template_kwargs": [[null, {a: true}]]
"""
    cells = cells_of(tmp_path, grid)
    assert [cell.setting["model.template_date"] for cell in cells] == ["2024-07-26", "2026-01-01"]
    assert [cell.config.model.template_date.year for cell in cells] == [2024, 2026]
    assert cells[1].title.startswith("base, model.template_date 2026-01-01, ")
    assert json.loads(cells[1].setting_json) == cells[1].setting


def test_a_method_that_the_run_does_not_list_has_the_shared_settings(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path, "  - {methods: [lipo]}\n", "set: {train.epochs: 2}\n")
    assert cell.config.train.variants()["lipo"].method == "lipo"
    assert cell.config.train.variants()["lipo"].epochs == 2


def test_steps_are_shared_by_cells_whose_settings_that_count_are_equal(tmp_path: Path) -> None:
    grid = "  - {methods: [dpo], parameters: {sample.num_samples: [2, 4], train.beta: [1, 2]}}\n"
    steps, last = make_steps(cells_of(tmp_path, grid, "seeds: [0, 1]\n"))
    stages = [step.stage for step in steps.values()]
    assert {stage: stages.count(stage) for stage in stages} == {
        "prepare": 2,  # train and validation; nothing reads test
        "sample": 2,
        "score": 2,
        "filter": 2,
        "train": 8,
        "eval": 8,
    }
    assert len(set(last)) == 8
    for step in steps.values():
        assert all([*steps].index(need) < [*steps].index(step.id) for need in step.needs)
    # `levers` changes no result: the same steps.
    again, _ = make_steps(
        cells_of(tmp_path, grid, "seeds: [0, 1]\nset: {train.levers: [flash-parts]}\n")
    )
    assert [*again] == [*steps]


def test_only_numbers_at_an_end_of_several_tried_are_named(tmp_path: Path) -> None:
    grids = """
  - {methods: [perpo], parameters: {train.beta: [1, 2, 3], train.gamma: [1], score.reward: [iou]}}
  - {methods: [dpo], parameters: {train.beta: [1, 2]}}
"""
    cells = cells_of(tmp_path, grids)
    middle = '{"train.beta": 2, "train.gamma": 1, "score.reward": "iou"}'
    assert at_edge(cells, {"perpo": middle}) == []
    (largest,) = at_edge(cells, {"perpo": middle.replace("2,", "3,")})
    assert "(1, 2, 3): also try values above it" in largest
    (smallest,) = at_edge(cells, {"dpo": '{"train.beta": 1}'})
    assert "train.beta 1, chosen for dpo" in smallest and "below it" in smallest


def test_a_bound_that_has_nothing_beyond_it_is_no_edge(tmp_path: Path) -> None:
    """gamma >= 0, list_size <= the 6 samples, min_margin from 0 to 1: all at an end of the grid."""
    grids = """
  - methods: [perpo]
    parameters:
      train.gamma: [0, 0.5]
      filter.list_size: [4, 6]
      filter.min_margin: [0, 1]
      train.learning_rate: [1, 2]
"""
    cells = cells_of(tmp_path, grids)
    (smallest,) = at_edge(cells, {"perpo": cells[0].setting_json.replace("4, ", "6, ")})
    assert smallest.startswith("train.learning_rate 1,")
    ends = {"perpo": cells[-1].setting_json}
    assert [one.split()[0] for one in at_edge(cells, ends)] == [
        "train.gamma",  # no largest value
        "train.learning_rate",
    ]
    assert [one.split()[0] for one in at_edge(cells, {"perpo": cells[0].setting_json})] == [
        "filter.list_size",
        "train.learning_rate",
    ]


def test_no_limit_lies_above_every_number(tmp_path: Path) -> None:
    grids = """
  - {methods: [perpo], parameters: {filter.max_lists: [100, 200, null]}}
"""
    cells = cells_of(tmp_path, grids)
    named = [at_edge(cells, {"perpo": cell.setting_json}) for cell in cells]
    assert [len(warnings) for warnings in named] == [1, 0, 0]
    assert "(100, 200, null): also try values below it" in named[0][0]


def test_the_example_of_this_folder_is_a_sweep_of_thirteen_cells(tmp_path: Path) -> None:
    assert len(make_cells(read_sweep(write_files(tmp_path, SWEEP)))) == 13


def test_a_quick_version_has_the_ends_of_the_values_one_seed_and_a_method_that_uses_them(
    tmp_path: Path,
) -> None:
    grids = """
  - {methods: [base, perpo, sft], parameters: {train.beta: [1, 2, 3]}}
  - {methods: [dpo, perpo], parameters: {"train.lora.rank, train.lora.alpha": [[2, 4], [4, 8]]}}
"""
    text = f"{HEAD}report_on: test\nseeds: [4, 5]\nselect_seeds: [4]\ngrids:\n{grids}"
    file = read_sweep(write_files(tmp_path, text))
    cells = make_cells(quick_version(file, load_config(file.config)))
    assert [(cell.method, [*cell.setting.values()], cell.seed) for cell in cells] == [
        ("base", [], None),
        ("perpo", [1], 0),
        ("perpo", [3], 0),
        ("perpo", [2, 4], 0),
        ("perpo", [4, 8], 0),
    ]
