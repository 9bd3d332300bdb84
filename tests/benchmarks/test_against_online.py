"""benchmarks/against_online.py: is every way trained on the same thing, and its cost counted?"""

import importlib.util
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from perpo_pipeline.evaluate.evaluate_model import evaluate
from perpo_pipeline.run import Run
from perpo_pipeline.store.artifacts import open_version

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("trl", "datasets")), reason="needs TRL"
)


@pytest.fixture(scope="module")
def bench() -> Iterator[SimpleNamespace]:
    """The benchmark's modules."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("HF_HUB_OFFLINE", "1")  # both are set by the script
        import against_online
        from online import apart, evaluate, ours, plan, show, trl_data, trl_ways

        yield SimpleNamespace(
            script=against_online,
            apart=apart,
            evaluate=evaluate,
            ours=ours,
            plan=plan,
            show=show,
            trl_data=trl_data,
            trl_ways=trl_ways,
        )


@pytest.fixture(scope="module")
def done(bench: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A comparison with one step per way: its rows, its plan and its folder."""
    folder = tmp_path_factory.mktemp("online")
    arguments = ["--quick", "--out", str(folder)]
    rows = bench.script.main(arguments)
    plan = bench.script.parse(arguments)
    return SimpleNamespace(
        rows={row["way"]: row for row in rows},
        all=rows,
        plan=plan,
        folder=folder,
        arguments=arguments,
    )


def test_each_way_pays_for_what_it_uses(bench: SimpleNamespace, done: SimpleNamespace):
    rows = done.rows
    lists = bench.ours.make_lists(bench.ours.part_of(done.plan))
    assert list(rows) == ["base", "perpo", "perpo-rounds", "sft", "grpo", "trl-dpo", "rft"]
    samples = {name: row["samples"] for name, row in rows.items()}
    of_lists = dict.fromkeys(("perpo", "perpo-rounds", "trl-dpo", "rft"), 8 * 4)
    assert samples == {"base": 0, "sft": 0, "grpo": 8} | of_lists
    for name in of_lists:
        assert rows[name]["cpu_s"] > lists["cpu_s"] > 0
    assert rows["base"]["cpu_s"] == 0 < rows["sft"]["cpu_s"] < rows["perpo"]["cpu_s"]
    assert all(rows[name]["steps"] == 1 for name in ("grpo", "trl-dpo", "rft"))
    assert {len(row["values"]) for row in rows.values()} == {4}


def test_what_was_trained_is_what_is_measured(done: SimpleNamespace):
    """Each adapter is its own, has the demo's shape, and has moved away from the base."""
    from safetensors.torch import load_file

    found = {}
    for name in ("perpo", "sft", "grpo", "trl-dpo", "rft"):
        folder = done.folder / done.rows[name]["adapter"]
        found[name] = load_file(folder / "adapter_model.safetensors")
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    names = {frozenset(weights) for weights in found.values()}
    assert len(names) == 1
    moved = {
        name: sum(float(w.abs().sum()) for key, w in weights.items() if "lora_B" in key)
        for name, weights in found.items()
    }
    assert min(moved.values()) > 0
    assert len(set(moved.values())) == len(moved)


def test_each_round_begins_from_the_merged_model_of_the_last_on_fresh_prompts(
    done: SimpleNamespace,
):
    runs, ways = done.folder / "runs", done.folder / "ways" / "rounds"
    found = []
    for name in ("round-1", "round-2"):
        prompts = open_version(runs / name / "prompts" / "train", "prompts")
        samples = open_version(runs / name / "samples" / "train", "samples")
        found.append((set(prompts.table()["image_sha256"].to_pylist()), samples.manifest))
    (first, of_first), (second, of_second) = found
    assert len(first) == len(second) == 4 and not first & second
    assert of_first["notes"]["model_id"] == "testbed"
    assert of_second["notes"]["model_id"] == str(ways / "merged-1")
    one, two = (row for row in done.all if row["way"] == "perpo-rounds")
    assert 0 < one["cpu_s"] < two["cpu_s"] and (one["samples"], two["samples"]) == (16, 32)
    assert (one["model"], two["model"]) == ("ways/rounds/merged-1", "ways/rounds/merged-2")


def test_evaluation_is_that_of_perpo_eval(done: SimpleNamespace):
    config = done.plan.load().model_copy(deep=True)
    metrics = evaluate(Run(config, quiet=True), "base@test").table().to_pylist()
    (ap50,) = [row for row in metrics if row["name"] == "ap50"]
    base = done.rows["base"]
    assert [base[name] for name in ("value", "low", "high", "n")] == [
        ap50[name] for name in ("value", "low", "high", "n")
    ]
    assert base["value"] == sum(base["values"]) / 4


def test_the_reward_is_that_of_perpo_score(bench: SimpleNamespace, done: SimpleNamespace):
    config = done.plan.load()
    samples = Run(config).latest("samples", "train").table().to_pylist()
    scores = Run(config).latest("scores", "train").table().to_pylist()
    expected = {(row["prompt_id"], row["sample_id"]): row["reward"] for row in scores}
    found = bench.trl_data.reward_of(config)(
        completions=[[{"role": "assistant", "content": row["completion"]}] for row in samples],
        prompt_id=[row["prompt_id"] for row in samples],
        prompts=None,
    )
    assert found == [expected[row["prompt_id"], row["sample_id"]] for row in samples]
    assert len(set(found)) > 4


def test_pairs_are_the_best_and_worst_of_our_lists(bench: SimpleNamespace, done: SimpleNamespace):
    config = done.plan.load()
    kept = Run(config).latest("preferences", "train").table().to_pylist()
    pairs, best = bench.trl_data.pairs(config), bench.trl_data.best_answers(config)
    assert len(pairs) == len(best) == len(kept) > 4
    for row, pair, one in zip(kept, pairs, best, strict=True):
        rewards = dict(zip(row["completions"], row["rewards"], strict=True))
        assert pair["prompt_id"] == one["prompt_id"] == row["prompt_id"]
        assert rewards[pair["chosen"][0]["content"][0]["text"]] == max(row["rewards"])
        assert rewards[pair["rejected"][0]["content"][0]["text"]] == min(row["rewards"])
        assert one["completion"] == pair["chosen"]


def test_a_prompt_without_its_begin_token_is_found(bench: SimpleNamespace, done: SimpleNamespace):
    """TRL's collators add no begin token to the text that the model's own template writes."""
    from perpo_pipeline.vlm.files import resolve_model
    from perpo_pipeline.vlm.inputs import encode_row
    from perpo_pipeline.vlm.loading import load_without_weights

    vlm = load_without_weights(resolve_model("testbed"))
    rows = bench.trl_data.prompt_rows(done.plan.load())[:2]
    ids = [encode_row(vlm, row, "processor").input_ids.tolist() for row in rows]
    bench.trl_data.check_prompts(vlm, rows, ids, "processor")
    with pytest.raises(AssertionError, match=f"prompt {rows[1]['prompt_id']}: "):
        bench.trl_data.check_prompts(vlm, rows, [ids[0], ids[1][1:]], "processor")


def test_the_same_command_makes_only_what_is_missing(
    bench: SimpleNamespace, done: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    made = []

    def run_apart(log: Path, function, *arguments):
        made.append(log.stem)
        return original(log, function, *arguments)

    original = bench.apart.run_apart
    for module in (bench.ours, bench.trl_ways, bench.evaluate):
        monkeypatch.setattr(module, "run_apart", run_apart)
    again = bench.script.main(done.arguments)
    assert made == []
    assert again == done.all
    (done.folder / "metrics" / f"{bench.evaluate.name_of(done.rows['sft'])}@test.json").unlink()
    assert bench.script.main(done.arguments) == done.all
    assert made == [f"eval-{bench.evaluate.name_of(done.rows['sft'])}-test"]
    table = (done.folder / "table.md").read_text(encoding="utf-8")
    assert table.count("\n") == 2 + 8
    assert (done.folder / "curves.svg").stat().st_size > 5_000


def test_other_options_need_another_folder(bench: SimpleNamespace, done: SimpleNamespace):
    with pytest.raises(SystemExit, match="give another --out"):
        bench.script.main([*done.arguments, "--max-seconds", "60"])


def test_a_limit_below_the_cost_of_the_lists_is_refused(
    bench: SimpleNamespace, done: SimpleNamespace
):
    (way,) = [way for way in done.plan.ways() if way.name == "rft"]
    with pytest.raises(SystemExit, match=r"leaves no time for RFT .* give more"):
        bench.trl_ways.train(done.plan, way, "rft-1", 0.5)


def test_every_way_has_as_many_settings(bench: SimpleNamespace, tmp_path: Path):
    for task in ("grounding", "ocr"):
        plan = bench.script.parse(["--task", task, "--out", str(tmp_path)])
        assert len(plan.ways()) == 5
        for way in plan.ways():
            assert len({tuple(one.items()) for one in way.settings.values()}) == 5
        dpo = [list(way.settings.values()) for way in plan.ways() if way.name == "trl-dpo"]
        assert len({(one["learning_rate"], one["beta"]) for one in dpo[0]}) == 5
        variants = plan.load().train.variants()
        for way in plan.ways()[:2]:
            for name, setting in way.settings.items():
                trained = {key: getattr(variants[name], key) for key in setting}
                assert (trained, variants[name].method) == (setting, way.method)


def test_lists_of_a_stopped_run_are_made_and_paid_for_again(
    bench: SimpleNamespace, done: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = replace(done.plan, out=tmp_path)
    run_dir = plan.load().run_dir
    shutil.copytree(done.plan.load().run_dir, run_dir)
    (run_dir / "lists.json").unlink()
    there = []
    monkeypatch.setattr(
        bench.ours, "perpo", lambda *_: there.append((run_dir / "samples").exists()) or 1.5
    )
    assert bench.ours.make_lists(bench.ours.part_of(plan)) == {"cpu_s": 4.5, "samples": 32}
    assert there and not any(there)


def stand_in(max_steps: int) -> SimpleNamespace:
    """A trainer with an optimiser whose learning rate is 2."""
    import torch

    trainer = SimpleNamespace(state=SimpleNamespace(global_step=0, max_steps=max_steps))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 2)
    trainer.create_optimizer = lambda: setattr(trainer, "optimizer", optimizer)
    trainer.add_callback = lambda callback: setattr(trainer, "callback", callback)
    return trainer


@pytest.mark.parametrize(
    ("ended_at", "kept"),
    [
        # Marks at 110, 120, 130 and 140 s of a way that begins at 100.
        ([104, 112, 118, 126, 133, 147, 155], [(112, 2), (126, 4), (133, 5), (147, 6)]),
        ([125, 150, 160], [(125, 1), (150, 2)]),
        ([104, 106, 108], [(108, 3)]),  # the trainer's own epochs are over first
    ],
)
def test_points_lie_at_the_marks_and_the_limit_ends_the_training(
    bench: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    ended_at: list[int],
    kept: list[tuple[int, int]],
):
    used = [100.0]
    monkeypatch.setattr(bench.trl_ways, "processor_seconds", lambda: used[0] - 100)
    trainer = stand_in(max_steps=len(ended_at))
    found: list[tuple[float, int]] = []
    clock = bench.trl_ways.Clock(100.0, 140.0, (0.25, 0.5, 0.75, 1.0))
    clock.attach(trainer, lambda cpu_s, steps: found.append((cpu_s, steps)))
    control = SimpleNamespace(should_training_stop=False)
    for step, seconds in enumerate(ended_at, 1):
        used[0], trainer.state.global_step = float(seconds), step
        trainer.callback.on_step_end(None, trainer.state, control)
        if control.should_training_stop:
            break
    assert found == kept
    assert control.should_training_stop


def test_the_learning_rate_falls_with_time_or_steps(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    used = [0.0]
    monkeypatch.setattr(bench.trl_ways, "processor_seconds", lambda: used[0])
    trainer = stand_in(max_steps=10)
    bench.trl_ways.Clock(0.0, 100.0, (1.0,)).attach(trainer, None)
    rates = []
    for seconds in (0.0, 5.0, 50.0, 120.0):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        used[0] = seconds
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    rates.append(trainer.lr_scheduler.get_last_lr()[0])
    # By steps after the first and second (1/10, 2/10), then by time (50/100), then none is left.
    assert rates == pytest.approx([2.0, 1.8, 1.6, 1.0, 0.0])


def test_validation_chooses_in_the_metrics_direction(
    bench: SimpleNamespace, done: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    values = {"low": 0.2, "high": 0.7, "middle": 0.5}

    def measure(plan, point, split):
        assert split == "validation"
        return {"value": values[point["adapter"]]}

    monkeypatch.setattr(bench.script, "measure", measure)
    found = {name: [{"adapter": "early"}, {"adapter": name}] for name in values}
    assert bench.script.choose(done.plan, found) == ("high", values)
    assert bench.script.choose(replace(done.plan, task="ocr"), found) == ("low", values)


def test_differences_are_paired_and_signed(bench: SimpleNamespace):
    """PerPO is right on prompts 0 to 5 of 8, the other on 0 to 3: 2 of 8 more, 25 points."""
    rows = [
        {"way": "base", "values": [1.0] * 4 + [0.0] * 4},
        {"way": "perpo", "values": [1.0] * 2 + [0.0] * 6},
        {"way": "perpo", "values": [1.0] * 6 + [0.0] * 2},
    ]
    base, first, last = bench.show.with_differences(rows, "ap50")
    assert base["minus"][0] == pytest.approx(0.25)
    assert base["difference"].startswith("+25.0 [+0.0, +")
    assert first["minus"][0] == pytest.approx(0.5)
    assert (last["minus"], last["difference"]) == (None, "-")


def test_processor_seconds_count_work_and_not_waiting(bench: SimpleNamespace, tmp_path: Path):
    bench.apart.start_server(1)
    assert bench.apart.run_apart(tmp_path / "wait.log", time.sleep, 0.4) < 0.3
    assert bench.apart.run_apart(tmp_path / "work.log", work_in_a_child, 0.4) > 0.4


def work_in_a_child(seconds: float) -> None:
    import subprocess
    import sys

    code = f"import time\nwhile time.process_time() < {seconds}: pass"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failed_process_shows_its_log(bench: SimpleNamespace, tmp_path: Path):
    bench.apart.start_server(1)
    with pytest.raises(
        SystemExit, match=r"this directory does not exist[\s\S]*open_version failed; its log is"
    ):
        bench.apart.run_apart(tmp_path / "log", open_version, tmp_path / "absent", "samples")


def test_a_folder_of_another_comparison_is_refused_and_that_of_another_checkout_is_not(
    bench: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(BENCHMARKS.parent / "configs", tmp_path / "configs")
    sweep = tmp_path / "configs" / "sweeps" / "demo.yaml"
    arguments = ["--sweep", str(sweep), "--out", str(tmp_path / "out")]
    here = bench.script.parse(["--out", str(tmp_path / "out")])
    bench.script.check_same(here)
    monkeypatch.setattr(bench.plan, "root", lambda: tmp_path)
    bench.script.check_same(bench.script.parse(arguments))
    sweep.write_text(sweep.read_text().replace("5.0e-4", "6.0e-4"))
    bench.plan._cells.cache_clear()
    with pytest.raises(SystemExit, match="has other options than this command"):
        bench.script.check_same(bench.script.parse(arguments))
    bench.plan._cells.cache_clear()
