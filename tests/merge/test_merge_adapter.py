"""`perpo merge`: the merged folder computes what base and adapter compute; what it refuses."""

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tiny_adapters import save_adapter, save_adapter_artifact
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image, save_tiny_llava
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from perpo_pipeline.cli import main
from perpo_pipeline.errors import ArtifactError, ConfigError, InputError
from perpo_pipeline.merge import merge_adapter as stage
from perpo_pipeline.merge.folder import CARD, RECORD
from perpo_pipeline.merge.merge_adapter import find_base, merge
from perpo_pipeline.run import Console
from perpo_pipeline.store.artifacts import Version, open_version
from perpo_pipeline.store.writing import Recipe, open_writer
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm import files as model_files
from perpo_pipeline.vlm.adapters import read_record, write_record
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import encode_prompt

ALL = ("language_model", "projector", "vision_tower")
QUIET = Console(quiet=True)


def load(directory: Path, adapter: Path | None = None) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu", adapter=adapter)


def logps(vlm: Vlm) -> torch.Tensor:
    prompt = encode_prompt(vlm, noise_image(1, 50, 30), "Where?")
    with torch.inference_mode():
        batch = pack_lists(vlm, [CompletionList(prompt, [[20, 21, 22], [30, 31]])])
        return packed_logps(vlm.model, batch)


def perpo(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


def names_and_sizes(directory: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in directory.iterdir()}


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    return save_tiny_llava(tmp_path / "llava")


@pytest.fixture
def adapter(llava: Path, tmp_path: Path) -> Path:
    return save_adapter_artifact(llava, tmp_path / "run/adapter/perpo", ALL)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "merged"


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_log_probabilities_equal_those_of_base_and_adapter(
    model_type: str, full: bool, tmp_path: Path, out: Path
) -> None:
    model = save_tiny_family(model_type, tmp_path / "model")
    adapter = save_adapter_artifact(model, tmp_path / "adapter", ALL, full=full)
    expected = logps(load(model, adapter))
    assert (logps(load(model)) - expected).abs().max() > 1e-2
    merge(adapter.parent, out, console=QUIET)  # the folder with `current`
    assert (logps(load(out)) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_transformers_loads_every_weight_from_the_folder(
    model_type: str, tmp_path: Path, out: Path
) -> None:
    model = save_tiny_family(model_type, tmp_path / "model")
    adapter = save_adapter_artifact(model, tmp_path / "adapter")
    merge(adapter, out, console=QUIET)
    loaded: Any = AutoModelForImageTextToText
    found, info = loaded.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    expected = dict(stored_weights(load(model, adapter)))
    for name, weight in found.named_parameters():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)


def stored_weights(vlm: Vlm) -> Any:
    merged: Any = vlm.model
    model: PreTrainedModel = merged.merge_and_unload()
    return model.named_parameters()


@pytest.mark.parametrize("model_type", ["llava", "llava_next"])  # no video part: no torchvision
def test_its_processor_equals_the_bases(model_type: str, tmp_path: Path, out: Path) -> None:
    model = save_tiny_family(model_type, tmp_path / "model")
    merge(save_adapter_artifact(model, tmp_path / "adapter"), out, console=QUIET)
    made, base = (AutoProcessor.from_pretrained(path) for path in (out, model))
    texts = [
        p.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
        for p in (made, base)
    ]
    assert texts[0] == texts[1]
    ours, theirs = (
        p(images=[noise_image(2)], text=[texts[0]], return_tensors="pt") for p in (made, base)
    )
    assert ours.keys() == theirs.keys() >= {"input_ids", "pixel_values"}
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_weights_and_configuration_have_the_requested_dtype(
    llava: Path, adapter: Path, out: Path, tmp_path: Path
) -> None:
    config = json.loads((llava / "config.json").read_text())
    config["text_config"]["torch_dtype"] = "float16"  # as in older checkpoints
    (llava / "config.json").write_text(json.dumps(config))
    write_record(adapter, {**read_record(adapter), "base_identity": load(llava).identity})
    update_manifest(adapter)
    merge(adapter, out, dtype="bfloat16", console=QUIET)
    with safe_open(out / "model.safetensors", framework="pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.bfloat16}  # noqa: SIM118
    loaded: Any = AutoModelForImageTextToText
    assert loaded.from_pretrained(out).lm_head.weight.dtype == torch.bfloat16
    written = json.loads((out / "config.json").read_text())
    assert written["dtype"] == written["text_config"]["torch_dtype"] == "bfloat16"
    merge(adapter, tmp_path / "auto", console=QUIET)  # as trained
    assert json.loads((tmp_path / "auto/config.json").read_text())["dtype"] == "float32"


def update_manifest(version: Path) -> None:
    """Record the present files of an artifact as the written ones."""
    manifest = json.loads((version / "manifest.json").read_text())
    for record in manifest["files"]:
        data = (version / record["file"]).read_bytes()
        record["sha256"] = hashlib.sha256(data).hexdigest()
    (version / "manifest.json").write_text(json.dumps(manifest))


def test_its_files_have_the_mode_that_the_umask_gives(adapter: Path, out: Path) -> None:
    before = os.umask(0o027)
    try:
        merge(adapter, out, console=QUIET)
    finally:
        os.umask(before)
    assert {oct(file.stat().st_mode & 0o777) for file in out.iterdir()} == {"0o640"}


def test_a_second_merge_is_up_to_date(
    adapter: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out.mkdir()  # an empty folder is allowed
    arguments = ("merge", "--adapter", str(adapter), "--out", str(out))
    assert perpo(*arguments) == 0
    assert capsys.readouterr().out == f"{out}\n"
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    monkeypatch.setattr(stage, "write_folder", None)
    assert perpo(*arguments) == 0
    captured = capsys.readouterr()
    assert f"merge perpo: up to date ({out})" in captured.err and captured.out == f"{out}\n"
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before
    assert sorted(path.name for path in out.parent.iterdir()) == ["llava", "merged", "run"]


def test_other_content_is_never_changed(adapter: Path, out: Path, tmp_path: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    file = tmp_path / "file"
    file.write_text("mine")
    for place in (out, file):
        with pytest.raises(ArtifactError, match="already holds something else"):
            merge(adapter, place, console=QUIET)
    assert names_and_sizes(out) == {"thesis.tex": 4} and file.read_text() == "mine"


def test_a_folder_with_another_merge_is_refused_with_the_difference(
    llava: Path, adapter: Path, out: Path, tmp_path: Path
) -> None:
    merge(adapter, out, console=QUIET)
    before = names_and_sizes(out)
    other = save_adapter_artifact(llava, tmp_path / "other", full=True)
    with pytest.raises(ArtifactError, match=f"already holds another merge: adapter .*{other.name}"):
        merge(other, out, console=QUIET)
    with pytest.raises(ArtifactError, match="another merge: dtype float32, not bfloat16"):
        merge(adapter, out, dtype="bfloat16", console=QUIET)
    assert names_and_sizes(out) == before


def test_other_weights_of_the_same_training_are_another_merge(
    adapter: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained again with another rounding: its variant and fingerprint are what they were."""
    merge(adapter, out, console=QUIET)
    record = json.loads((out / RECORD).read_text())
    weights = adapter / "adapter_model.safetensors"
    assert record["adapter_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    save_file({name: 0.5 * one for name, one in load_file(weights).items()}, weights)
    update_manifest(adapter)
    now = hashlib.sha256(weights.read_bytes()).hexdigest()
    changed = f"another merge: adapter_sha256 {record['adapter_sha256']}, not {now}"
    with pytest.raises(ArtifactError, match=changed):
        merge(adapter, out, console=QUIET)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    # The record of an earlier version has no sha256: it counts unless the adapter is newer.
    del record["adapter_sha256"]
    (out / RECORD).write_text(json.dumps(record))
    merge(adapter, out)
    said = capsys.readouterr().err
    assert f"merge perpo: up to date ({out}); an earlier version wrote its record, without" in said
    assert "adapter_sha256" not in json.loads((out / RECORD).read_text())  # it is not known
    manifest = json.loads((adapter / "manifest.json").read_text())
    later = {**manifest, "created_at": "2999-01-01T00:00:00Z"}
    (adapter / "manifest.json").write_text(json.dumps(later))
    with pytest.raises(ArtifactError, match="before this adapter was trained at 2999"):
        merge(adapter, out, console=QUIET)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_merge_with_a_truncated_file_is_refused(adapter: Path, out: Path, name: str) -> None:
    merge(adapter, out, console=QUIET)
    os.truncate(out / name, 100)
    with pytest.raises(ArtifactError, match=f"missing or were changed: {name}"):
        merge(adapter, out, console=QUIET)


def test_an_adapter_of_another_base_is_refused_before_anything_is_loaded(
    adapter: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_tiny_llava(tmp_path / "other", seed=5)
    monkeypatch.setattr(stage, "write_merged", None)
    with pytest.raises(ArtifactError, match="trained on another base model"):
        merge(adapter, out, model=str(other), console=QUIET)
    assert not out.exists()


def test_a_moved_base_can_be_named(llava: Path, adapter: Path, out: Path, tmp_path: Path) -> None:
    expected = logps(load(llava, adapter))
    moved = llava.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"model directory .* does not exist") as caught:
        merge(adapter, out, console=QUIET)
    assert "--model" in str(caught.value)
    merge(adapter, out, model=str(moved), console=QUIET)
    assert (logps(load(out)) - expected).abs().max() < 1e-4


def test_the_base_can_be_named_by_the_configuration(
    llava: Path, adapter: Path, out: Path, tmp_path: Path
) -> None:
    moved = llava.rename(tmp_path / "moved")
    source = "{source: testbed, num_prompts: 1}"
    (tmp_path / "r.yaml").write_text(
        f"run: r\nmodel: {{id: {moved}}}\nprepare: {{train: {source}, test: {source}}}\n"
    )
    arguments = ("merge", "--adapter", str(adapter), "--out", str(out), "--quiet")
    assert perpo(*arguments, "--config", str(tmp_path / "r.yaml")) == 0
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "lacks weights: model.safetensors"),
        ("tokenizer.json", "another base model"),
    ],
)
def test_a_base_with_a_missing_file_is_one_error(
    llava: Path,
    adapter: Path,
    out: Path,
    name: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (llava / name).unlink()
    assert perpo("merge", "--adapter", str(adapter), "--out", str(out)) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_hub_model_is_requested_at_the_commit_of_the_training(
    llava: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the run's configuration named `main`, which may have moved since."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    asked = []

    def snapshot(model_id: str, revision: str | None, *, code: bool) -> Path:
        asked.append((model_id, revision))
        if not (tmp_path / commit).exists():
            llava.rename(tmp_path / commit)
        return tmp_path / commit

    monkeypatch.setattr(model_files, "_hub_snapshot", snapshot)
    write_record(adapter, {"base_identity": f"someone/tiny@{commit}"})
    manifest = open_version(adapter).manifest
    manifest["notes"] |= {"model_id": "someone/tiny", "revision": "main"}
    found = find_base(Version(adapter, manifest))
    assert asked == [("someone/tiny", commit)]
    assert (found.model_id, found.commit) == ("someone/tiny", commit)
    with pytest.raises(ArtifactError, match="another base model"):
        find_base(Version(adapter, manifest), "someone/else")


def not_an_adapter(kind: str, adapter: Path, llava: Path, tmp_path: Path) -> Path:
    place = tmp_path / "place"
    if kind == "adapter files alone":
        return save_adapter(llava, place, ["language_model"])
    if kind == "an unfinished one":
        (adapter / "manifest.json").unlink()
        return adapter
    if kind == "another artifact":
        with open_writer(place, Recipe("scores", "train", "score", 1, {})) as writer:
            return writer.finish().path
    return {"a model": llava, "nothing": place}[kind]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "this folder does not exist"),
        ("a model", "not an adapter made by `perpo train`"),
        ("adapter files alone", "not an adapter made by `perpo train`"),
        ("an unfinished one", "not an adapter made by `perpo train`"),
        ("another artifact", "a 'scores' artifact, not a 'adapter' artifact"),
    ],
)
def test_anything_but_an_adapter_artifact_is_refused(
    kind: str,
    message: str,
    adapter: Path,
    llava: Path,
    out: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = not_an_adapter(kind, adapter, llava, tmp_path)
    assert perpo("merge", "--adapter", str(given), "--out", str(out)) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_a_damaged_adapter_is_refused(adapter: Path, out: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged files: adapter_model\.safetensors"):
        merge(adapter, out, console=QUIET)


def test_an_unknown_dtype_is_refused(adapter: Path, out: Path) -> None:
    with pytest.raises(ConfigError, match="'float16'"):
        merge(adapter, out, dtype="float16", console=QUIET)


@pytest.mark.parametrize(
    "arguments", [("--config", "r.yaml", "--model", "testbed"), ("--private",)]
)
def test_contradictory_or_useless_options_are_refused(
    adapter: Path, out: Path, arguments: tuple[str, ...]
) -> None:
    assert perpo("merge", "--adapter", str(adapter), "--out", str(out), *arguments) == 2
    assert not out.exists()


def refuse_weights(*_: object, **__: object) -> None:
    """Raise what safetensors 0.8 raises on a full file system of 1 MiB."""
    raise SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )


def refuse_copies(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("kind", ["weights", "other files"])
def test_a_full_disk_is_reported_and_leaves_nothing(
    kind: str,
    adapter: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        if kind == "weights":
            patched.setattr(PreTrainedModel, "save_pretrained", refuse_weights)
        else:
            patched.setattr(shutil, "copyfile", refuse_copies)
        assert perpo("merge", "--adapter", str(adapter), "--out", str(out)) == 2
    message = capsys.readouterr().err
    assert "the disk is full" in message and str(out) in message
    assert "it starts from the beginning" in message
    assert sorted(path.name for path in out.parent.iterdir()) == ["llava", "run"]
    assert perpo("merge", "--adapter", str(adapter), "--out", str(out)) == 0


def test_an_error_of_the_operating_system_is_one_error(adapter: Path, out: Path) -> None:
    """The process may write no file of more than 50 kB."""
    command = [sys.executable, "-m", "perpo_pipeline.cli", "merge"]
    ended = subprocess.run(
        [*command, "--adapter", str(adapter), "--out", str(out)],
        text=True,
        capture_output=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert ended.returncode == 2, ended.stderr
    assert "cannot write" in ended.stderr and "File too large" in ended.stderr
    assert sorted(path.name for path in out.parent.iterdir()) == ["llava", "run"]


KILLS = """
import json, os, shutil, sys
from pathlib import Path
import torch
from perpo_pipeline.merge.merge_adapter import merge
from perpo_pipeline.run import Console
from killing import attempt, copy, digest, files_in, kill_at

# Fill the libraries' caches before forking; one thread, since threads do not survive a fork.
torch.set_num_threads(1)
merge(Path("run/adapter/perpo"), Path("cached"), console=Console(quiet=True))
shutil.rmtree("cached")

def command(out):
    return ["merge", "--adapter", "run/adapter/perpo", "--out", str(out)]

def sizes(out):
    return {p.name: p.stat().st_size for p in out.iterdir() if p.name not in %r}

def copy_place(event):
    copy(Path("place"), Path(f"killed/{event}"))

Path("place").mkdir()
out, events = Path("place/merged"), Path("events")
assert attempt(command(out), copy_place, events) == 0
whole, seen, resumed = sizes(out), [], {}
for at in range(1, int(events.read_text()) + 1):
    state = Path(f"killed/{at}")
    left, same, killed = state / "merged", digest(state), None
    partial = left.exists() and sizes(left) != whole
    if at %% 6 == 1:
        really = Path(f"really-{at}")
        really.mkdir()
        status = attempt(command(really / "merged"), kill_at(at))
        killed = [status, files_in(really) == files_in(state)]
        shutil.rmtree(really)
    if same not in resumed:
        resumed[same] = [attempt(command(left)), sizes(left) == whole, files_in(state)]
    seen.append([killed, partial, *resumed[same]])
print(json.dumps([seen, len(resumed), sorted(p.name for p in Path().iterdir())]))
"""


@pytest.mark.slow
def test_after_a_kill_at_any_point_the_folder_is_whole_or_absent(
    adapter: Path, tmp_path: Path
) -> None:
    tests = Path(__file__).parent.parent
    ended = subprocess.run(
        [sys.executable, "-c", KILLS % ((CARD, RECORD),)],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert ended.returncode == 0, ended.stderr
    seen, states, left = json.loads(ended.stdout)
    assert len(seen) >= 15, "each file is synced; three files and the folder are renamed"
    assert states >= 5, "events leave different states"
    killed = [one[0] for one in seen if one[0] is not None]
    assert killed == [[-9, True]] * len(killed) and len(killed) >= 3
    whole = seen[-1][-1]
    assert [one[1:] for one in seen] == [[False, 0, True, whole]] * len(seen)
    own = {"events", "events.modules"}  # what killing.py itself writes
    assert [name for name in left if name not in own] == ["killed", "llava", "place", "run"]


def test_only_one_process_at_a_time_writes_a_folder(
    adapter: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def merge_again(*_: object) -> None:
        with pytest.raises(ArtifactError, match="another process is writing there"):
            merge(adapter, out, console=QUIET)
        raise InputError("the first one ends")

    monkeypatch.setattr(stage, "write_merged", merge_again)
    with pytest.raises(InputError, match="the first one ends"):
        merge(adapter, out, console=QUIET)
    assert not out.exists()
