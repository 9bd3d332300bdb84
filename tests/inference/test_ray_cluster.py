"""Engine ray without Ray: room for actors, the board's counts, checks on each machine."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import save_tiny_llava

from perpo_pipeline import cli
from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.errors import ConfigError, PerpoError, ProcessError
from perpo_pipeline.inference import ray_actors, ray_cluster
from perpo_pipeline.inference.backend import BackendSetup
from perpo_pipeline.inference.ray_actors import ActorProcess, Board, on_this_machine, unpack_result
from perpo_pipeline.inference.ray_cluster import (
    ClusterWatch,
    count_actors,
    joined_cluster,
    use_gpus,
)
from perpo_pipeline.inference.ray_engine import portable
from perpo_pipeline.store.provenance import package_versions
from perpo_pipeline.vlm.inputs import IDENTITY_CACHE, find_model


@pytest.mark.parametrize(
    ("nodes", "wanted", "parts", "on_gpu", "actors"),
    [
        ([(16, 8), (16, 8), (4, 0)], None, 100, True, 16),
        ([(16, 8), (16, 8), (4, 0)], 3, 100, True, 3),
        ([(16, 8), (16, 8), (4, 0)], None, 5, True, 5),
        ([(2, 0), (64, 0), (0, 0)], None, 100, False, 2),
        ([(2, 0)], 2, 100, False, 2),
    ],
)
def test_actors_are_one_per_gpu_or_one_per_machine_or_as_configured(
    nodes: list[tuple[int, int]], wanted: int | None, parts: int, on_gpu: bool, actors: int
) -> None:
    assert count_actors(nodes, wanted, parts, on_gpu) == actors


@pytest.mark.parametrize(
    ("nodes", "wanted", "on_gpu", "said"),
    [
        ([(2, 0)], 3, False, "room for 2 actors with one CPU each, but 3 are wanted"),
        ([(64, 0)], None, True, "room for 0 actors with one GPU each, but 1 are wanted"),
        ([(2, 8), (16, 8)], None, True, "room for 10 actors with one GPU each, but 16 are wanted"),
    ],
)
def test_a_cluster_without_room_is_refused(
    nodes: list[tuple[int, int]], wanted: int | None, on_gpu: bool, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        count_actors(nodes, wanted, 100, on_gpu)


@pytest.fixture
def no_gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_gpus_that_only_the_cluster_has_need_an_explicit_device(no_gpu_here: None) -> None:
    nodes = [(16, 8)]
    assert use_gpus("cuda", nodes) and not use_gpus("cpu", nodes)
    assert not use_gpus("auto", [(2, 0)])
    with pytest.raises(ConfigError, match="this machine has none"):
        use_gpus("auto", nodes)


def test_an_address_of_rays_client_is_refused() -> None:
    ray = SimpleNamespace(is_initialized=lambda: False)
    with pytest.raises(ConfigError, match="Ray's client"), joined_cluster(ray, "ray://head:10001"):
        pass


def test_lost_machines_are_reported_and_the_last_one_ends_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_cluster, "CHECK_EVERY_S", 0.0)
    nodes = [{"Alive": True, "Resources": {"CPU": 1.0}} for _ in range(3)]
    said: list[str] = []
    watch = ClusterWatch(SimpleNamespace(nodes=lambda: nodes), 3, False, said.append)
    watch.check(is_started=True)
    assert said == []
    nodes[0]["Alive"] = False
    for _ in range(2):
        watch.check(is_started=True)
    assert [line.split("now has room for ")[1] for line in said] == ["2 of 3 actors"]
    nodes[1]["Alive"] = nodes[2]["Alive"] = False
    with pytest.raises(ProcessError, match="have left the Ray cluster"):
        watch.check(is_started=True)


def test_a_wait_for_actors_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "START_PATIENCE_S", -1.0)
    said: list[str] = []
    watch = ClusterWatch(SimpleNamespace(nodes=list), 2, False, said.append)
    watch.check(is_started=True)
    assert said == []
    for _ in range(2):
        watch.check(is_started=False)
    assert len(said) == 1 and "waiting for Ray to start 2 actors" in said[0]


A, B, C = ActorProcess(1, "a"), ActorProcess(2, "b"), ActorProcess(3, "a")


def test_the_board_counts_a_retried_part_once() -> None:
    board = Board()
    assert not board.take_progress().is_started
    assert board.start_actor(A, "handle") == (1, "")
    assert board.start_actor(B, "other") == (2, "process 1 on a")
    assert board.begin_part(7, A) == (1, "")
    board.count(7, 3, 50)
    board.count(7, 1, 10)
    assert board.begin_part(8, B) == (1, "")
    board.count(8, 2, 20)
    board.keep(7, [{"prompt_id": "a"}])
    assert board.take_progress() == (6, 80, True, [], [(7, [{"prompt_id": "a"}])])
    assert board.take_progress().kept == [], "handed over once"
    last = "process 2 on b"
    assert board.start_actor(C, "handle") == (1, last), "counted since a model was last loaded"
    assert board.begin_part(7, C) == (2, "process 1 on a")
    messages = ["the actor that answered part 7 died (process 1 on a); retrying the part"]
    assert board.take_progress() == (2, 20, True, messages, [])
    assert board.take_progress() == (2, 20, True, [], [])
    assert board.started_actors() == [(A, "handle"), (B, "other"), (C, "handle")]


def test_no_part_is_begun_after_stop() -> None:
    board = Board()
    board.stop()
    assert board.begin_part(0, A) == (0, "")


def test_an_actors_error_is_the_same_on_the_driver() -> None:
    error = ConfigError("what", where="there", fix="do")
    with pytest.raises(ConfigError) as caught:
        unpack_result(json.dumps({"error": ray_actors._pack_error(error)}))
    assert caught.value.parts() == ("what", "there", "do")


def test_a_bug_in_an_actor_comes_with_its_traceback() -> None:
    try:
        _ = {}["absent"]
    except KeyError as error:
        text = json.dumps({"error": ray_actors._pack_error(error)})
    with pytest.raises(RuntimeError, match=r"test_ray_cluster\.py[^$]*KeyError: 'absent'"):
        unpack_result(text)


@pytest.fixture
def setup(tmp_path: Path) -> BackendSetup:
    model = ModelConfig(id=str(save_tiny_llava(tmp_path / "model")), dtype="float32", device="cpu")
    resolved, settings = find_model(model, tmp_path / "run")
    return BackendSetup(model, resolved, settings, SampleConfig(), tmp_path / "run")


def test_a_machine_without_the_runs_folder_uses_its_own_scratch(
    setup: BackendSetup, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    assert on_this_machine(setup, package_versions(), own).scratch == setup.scratch
    (setup.scratch / IDENTITY_CACHE).unlink()
    setup.scratch.rmdir()
    here = on_this_machine(setup, package_versions(), own)
    assert here.scratch == own and (own / IDENTITY_CACHE).is_file()
    assert not setup.scratch.exists()
    assert here.resolved.path == setup.resolved.path


def test_an_actor_in_another_folder_finds_the_same_paths(
    setup: BackendSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = replace(setup, scratch=Path("run"), adapter=Path("run/adapter"))
    found = portable(relative, on_gpu=True)
    assert (found.scratch, found.adapter) == (tmp_path / "run", tmp_path / "run/adapter")
    assert found.model.device == "cuda" and portable(setup, on_gpu=False).model.device == "cpu"


def _another_model(setup: BackendSetup) -> BackendSetup:
    (setup.resolved.path / "generation_config.json").write_text('{"eos_token_id": 1}')
    return setup


def _no_model(setup: BackendSetup) -> BackendSetup:
    setup.resolved.path.rename(setup.resolved.path.with_name("elsewhere"))
    return setup


def _no_adapter(setup: BackendSetup) -> BackendSetup:
    return replace(setup, adapter=setup.scratch / "absent")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_another_model, "is a different one"),
        (_no_model, r"model directory .* does not exist"),
        (_no_adapter, "the adapter does not exist"),
    ],
)
def test_a_machine_that_lacks_the_files_is_refused(
    change: Callable[[BackendSetup], BackendSetup], said: str, setup: BackendSetup, tmp_path: Path
) -> None:
    with pytest.raises(PerpoError, match=said):
        on_this_machine(change(setup), package_versions(), tmp_path / "own")


def test_a_machine_with_other_releases_is_refused(setup: BackendSetup, tmp_path: Path) -> None:
    driver = package_versions() | {"torch": package_versions()["torch"] + "+cu130", "ruff": "0"}
    assert on_this_machine(setup, driver, tmp_path), (
        "another build, and a package that no result depends on"
    )
    driver |= {"transformers": "5.0", "peft": "0.1"}
    with pytest.raises(ConfigError) as caught:
        on_this_machine(setup, driver, tmp_path)
    assert "transformers" in str(caught.value) and "(not 5.0)" in str(caught.value)
    assert "peft" in str(caught.value) and "torch 2" not in str(caught.value)


CONFIG = """
run: r
model: {id: testbed, dtype: float32, device: cpu}
prepare:
  train: {source: testbed, num_prompts: 2}
  test: {source: testbed, num_prompts: 1}
sample: {num_samples: 2, max_new_tokens: 4}
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit_:
        cli.main([*arguments, "--config", "r.yaml", "--quiet"])
    return int(exit_.value.code or 0)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(CONFIG)
    assert run("prepare") == 0
    return tmp_path / "r.yaml"


def test_a_missing_ray_names_what_to_install(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_cluster, "ENVIRONMENT", {})
    monkeypatch.setitem(sys.modules, "ray", None)  # type: ignore[arg-type]
    assert run("sample", "--set", "sample.engine=ray") == 2
    message = capsys.readouterr().err
    assert "Ray cannot be used" in message
    assert "pip install -c constraints.txt -e '.[ray]'" in message


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--set", "sample.num_actors=2"], "num_actors is for engine ray"),
        (
            ["--set", "sample.engine=ray", "--set", "sample.num_gpus=2"],
            "num_gpus is for the GPUs of one machine",
        ),
        (
            ["--set", "sample.engine=ray", "--backend", "openai"],
            "no meaning for the openai backend",
        ),
    ],
)
def test_settings_of_another_engine_are_refused(
    flags: list[str], said: str, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample", *flags) == 2
    assert said in capsys.readouterr().err


def test_settings_that_a_machine_without_gpu_cannot_resolve_must_be_set(
    no_gpu_here: None, prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared.write_text(CONFIG.replace("dtype: float32, device: cpu", "device: cuda"))
    assert run("sample", "--set", "sample.engine=ray") == 2
    assert (
        "model.dtype: auto and sample.backend: auto cannot be resolved" in capsys.readouterr().err
    )


def test_the_engine_does_not_count_in_the_fingerprint(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("sample") == 0
    capsys.readouterr()
    ray = ["sample.engine=ray", "sample.num_actors=2", "sample.ray_address=auto"]
    assert run("sample", *(word for setting in ray for word in ("--set", setting))) == 0
    assert "up to date" in capsys.readouterr().err
