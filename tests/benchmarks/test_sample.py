"""benchmarks/sample.py on models of a few thousand weights: does it time what it says?"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from perpo_pipeline.vlm.completion import Completion

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("HF_HUB_OFFLINE", "1")  # which the script sets
        import sample
        import sample_determinism
        import sample_vllm
        import sample_ways
        import train_step_models

        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # steps this small only wait for the others
        yield SimpleNamespace(
            script=sample,
            ways=sample_ways,
            vllm=sample_vllm,
            determinism=sample_determinism,
            models=train_step_models,
        )
        torch.set_num_threads(threads)


def tiny_case(bench: SimpleNamespace, model_type: str):
    """Two prompts, 3 completions of 5 tokens; images of 4, 24 and 6 tokens."""
    shape = bench.models.Shape(model_type, 64, 96, 2, 4, 2, 300, (32, 64, 2, 2), 28, rank=4)
    image_px, image_tokens = {
        "llava": ((28, 28), 4),
        "llava_next": ((56, 56), 24),
        "qwen2_5_vl": ((84, 56), 6),
    }[model_type]
    regime = bench.models.Regime(shape, image_px, image_tokens, image_tokens + 9, 5, 3, lists=2)
    return bench.ways.Case(regime, prompts=2, answer_tokens=5, num_samples=3)


@pytest.mark.parametrize("model_type", ["llava", "llava_next", "qwen2_5_vl"])
def test_without_chance_every_way_draws_the_same_tokens(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, model_type: str
):
    scene = bench.ways.set_scene(tiny_case(bench, model_type), torch.float32, CPU)
    with torch.no_grad():
        scene.vlm.model.lm_head.weight.mul_(30)  # logits far apart, and other ones a prompt
    monkeypatch.setattr(bench.ways, "TEMPERATURE", 1e-4)
    ways = bench.ways.ways_for(scene)
    drawn = {name: [list(one) for one in way(scene)] for name, way in ways.items()}
    assert len(drawn) == (3 if model_type == "qwen2_5_vl" else 4)
    expected = drawn.pop("generate")
    assert [len(one) for one in expected] == [5] * 6
    assert expected[0] == expected[2] != expected[3] == expected[5]
    for name, found in drawn.items():
        assert found == expected, name


def test_prompts_of_unequal_length_are_read_as_if_alone(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    scene = bench.ways.set_scene(bench.ways.Case(None, 3, 4, 2), torch.float32, CPU)
    assert len({prompt.num_tokens for prompt in scene.prompts}) > 1
    monkeypatch.setattr(bench.ways, "TEMPERATURE", 1e-4)
    drawn = [[list(one) for one in way(scene)] for way in bench.ways.WAYS.values()]
    assert drawn == [drawn[0]] * 4


def test_an_end_token_ends_nothing(bench: SimpleNamespace):
    scene = bench.ways.set_scene(tiny_case(bench, "llava"), torch.float32, CPU)
    head = scene.vlm.model.lm_head
    end = bench.models.END
    head.weight.data.zero_()
    # All 300 tokens are equally likely: none of 3,200 is the end token once in 40,000 runs.
    scene = replace(scene, case=replace(scene.case, answer_tokens=40, num_samples=40))
    for name, way in bench.ways.ways_for(scene).items():
        drawn = way(scene)
        assert [len(one) for one in drawn] == [40] * 80, name
        assert any(end in one for one in drawn), name


def run_script(bench: SimpleNamespace, folder: Path, *options: str) -> dict:
    bench.script.main([*options, "--json", str(folder / "found.json")])
    return json.loads((folder / "found.json").read_text(encoding="utf-8"))


def test_rows_hold_times_and_ratios(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(bench.script.CASES, "cpu", {"tiny": tiny_case(bench, "llava")})
    found = run_script(bench, tmp_path, "--repeats", "2", "--no-memory")
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == list(bench.ways.WAYS)
    for row in rows.values():
        assert row["ms_range"][0] <= row["ms_per_prompt"] <= row["ms_range"][1]
        assert row["tokens_per_s"] == pytest.approx(3 * 5 * 1e3 / row["ms_per_prompt"])
        assert row["prefix_tokens"] == 13
    best = min(rows["generate"]["ms_per_prompt"], rows["generate-batch"]["ms_per_prompt"])
    ours = rows["shared-prefix"]
    assert ours["ours"] and ours["faster"] == pytest.approx(best / ours["ms_per_prompt"])
    assert found["header"]["cases"]["tiny"]["answer_tokens"] == 5


def test_another_number_of_tokens_ends_the_run(bench: SimpleNamespace):
    ways = {"whole": lambda: [[1, 2, 3]], "short": lambda: [[1, 2]]}
    with pytest.raises(SystemExit, match="short drew 2 tokens instead of 3"):
        bench.script.interleave("", ways, 3, 1)


def test_a_way_without_enough_memory_is_recorded_and_the_others_go_on(bench: SimpleNamespace):
    def too_large():
        raise torch.OutOfMemoryError("no room")

    kept = []
    ways = {"generate": too_large, "generate-batch": lambda: [[1]], "shared-prefix": lambda: [[1]]}
    found = bench.script.interleave("", ways, 1, 2, lambda seconds: kept.append(str(seconds)))
    assert found["generate"] == [] and len(found["shared-prefix"]) == 2
    assert len(kept) == 2  # after each round, so that a timeout keeps them
    rows = bench.script.summarise(found, 1, 1, bench.ways.LIBRARY, "shared-prefix")
    assert [row["note"] for row in rows] == ["out of memory", "", ""]
    assert "ms_per_prompt" not in rows[0]
    # The opponent that had room is the one to compare with.
    assert rows[2]["faster"] == pytest.approx(rows[1]["ms_per_prompt"] / rows[2]["ms_per_prompt"])
    bench.script.print_table("", rows)


def test_the_peak_is_that_of_a_process_of_its_own(bench: SimpleNamespace):
    case = replace(tiny_case(bench, "llava"), prompts=1)
    found = bench.ways._resident_peak_mib(case, torch.float32, "shared-prefix", 1)
    assert found is None or 0 <= found < 500


@pytest.mark.parametrize("preset", ["cpu", "h200"])
def test_every_case_of_a_preset_runs_when_made_thin(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, preset: str
):
    cases = {}
    for name, case in bench.script.CASES[preset].items():
        regime = case.regime
        if regime is not None:
            head = regime.shape.hidden // regime.shape.heads
            thin = replace(
                regime.shape,
                hidden=head,
                intermediate=16,
                layers=1,
                heads=1,
                kv_heads=1,
                vocab=64,
                tower=(16, 16, 4, 1),
                rank=2,
            )
            regime = replace(regime, shape=thin)
        cases[name] = replace(case, regime=regime, prompts=1, answer_tokens=2, num_samples=2)
    monkeypatch.setitem(bench.script.CASES, "cpu", cases)
    options = bench.script.parse(["--repeats", "1", "--no-memory"])
    dtype = torch.float32 if preset == "cpu" else torch.bfloat16
    header, rows = bench.script.time_ways(options, dtype, CPU)
    assert list(header["cases"]) == list(cases)
    assert {row["case"] for row in rows} == set(cases)


def test_completions_with_other_tokens_are_counted_and_left_out_of_the_difference(
    bench: SimpleNamespace,
):
    def completion(tokens: tuple[int, ...], logprob: float) -> Completion:
        return Completion("", tokens, "stop", logprob)

    one = [completion((1, 2), -1.0), completion((1,), -2.0), completion((3,), -3.0)]
    other = [completion((1, 2), -1.25), completion((7,), -9.0), completion((3,), -3.0)]
    found = bench.determinism.difference(one, other)
    assert (found["completions"], found["tokens"], found["differ"]) == (3, 4, 1)
    assert found["share"] == pytest.approx(1 / 3)
    assert found["max_abs_dlogprob_nats"] == 0.25


def test_the_engines_model_is_read_as_its_case_says(bench: SimpleNamespace, tmp_path: Path):
    """The saved files give the prompt as many tokens as the model has features."""
    from perpo_pipeline.vlm.decoding import sample_lists
    from perpo_pipeline.vlm.files import resolve_model
    from perpo_pipeline.vlm.inputs import encode_row
    from perpo_pipeline.vlm.loading import load_vlm

    case = bench.script.ENGINE_CASES["cpu"]["tiny"]
    path = bench.vllm.save_hub_model(case.shape, tmp_path, torch.float32, CPU)
    vlm = load_vlm(resolve_model(str(path)), dtype="float32", device="cpu")
    rows = bench.vllm.make_rows(2, bench.vllm.random_words(case.shape.vocab))
    prompts = [encode_row(vlm, row, "processor") for row in rows]
    assert [int((p.input_ids == bench.models.IMAGE).sum()) for p in prompts] == [16, 16]
    assert not any((p.input_ids == bench.models.UNKNOWN).any() for p in prompts)
    lists = sample_lists(
        vlm, prompts, num_samples=2, temperature=0.5, max_new_tokens=3, seeds=[1, 2]
    )
    assert [len(drawn) for drawn in lists] == [2, 2]


def test_one_engine_a_process(bench: SimpleNamespace, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        bench.script.parse(["--engine", "vllm", "--case", "tiny", "llava15-grounding"])
    assert "give one --case" in capsys.readouterr().err
    assert bench.script.parse(["--engine", "vllm"]).case == ["llava15-grounding"]
