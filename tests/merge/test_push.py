"""`--push-to-hub` with the real client against a hub on loopback."""

from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub
from huggingface_hub import constants
from tiny_adapters import save_adapter_artifact
from tiny_models import save_tiny_llava

from perpo_pipeline.cli import main

WHY = {400: "refused", 403: "403 Forbidden", 404: "404", 500: "500"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    return save_adapter_artifact(save_tiny_llava(folder / "llava"), folder / "adapter")


def merge(adapter: Path, out: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["merge", "--adapter", str(adapter), "--out", str(out), *arguments])
    return int(ended.value.code or 0)


def test_every_file_is_uploaded_unchanged(
    hub: FakeHub, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    assert merge(adapter, out, "--push-to-hub", "lab/aligned") == 0
    assert hub.files["lab/aligned"] == {file.name: file.read_bytes() for file in out.iterdir()}
    assert {"model.safetensors", "README.md", "config.json"} <= hub.files["lab/aligned"].keys()
    assert hub.private == {"lab/aligned": False}
    captured = capsys.readouterr()
    assert f"pushed to {hub.url}/lab/aligned" in captured.err
    assert captured.out == f"{out}\n" and TOKEN not in captured.err


def test_a_name_without_an_organisation_belongs_to_the_user(
    hub: FakeHub, adapter: Path, tmp_path: Path
) -> None:
    assert merge(adapter, tmp_path / "merged", "--push-to-hub", "aligned", "--private") == 0
    assert hub.private == {"me/aligned": True} and hub.files["me/aligned"]


def test_an_earlier_merge_is_pushed_without_merging_again(
    hub: FakeHub, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "merged"
    assert merge(adapter, out) == 0
    assert hub.paths == []
    (out / "LICENSE").write_text("mine")
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert merge(adapter, out, "--push-to-hub", "lab/aligned") == 0
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert hub.files["lab/aligned"]["LICENSE"] == b"mine"
    assert merge(adapter, out, "--push-to-hub", "lab/aligned") == 0  # again, into the same


def test_nothing_is_uploaded_to_a_public_repository_if_private_is_asked_for(
    hub: FakeHub, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.private["lab/aligned"] = False
    hub.files["lab/aligned"] = {}
    assert merge(adapter, tmp_path / "merged", "--push-to-hub", "lab/aligned", "--private") == 2
    assert "not private: nothing was uploaded" in capsys.readouterr().err
    assert hub.files["lab/aligned"] == {}


@pytest.mark.parametrize(
    ("path", "status"), [("/create", 403), ("/preupload", 404), ("/commit", 400), ("/create", 500)]
)
def test_a_refusal_by_the_hub_is_one_error_and_the_folder_is_kept(
    hub: FakeHub,
    adapter: Path,
    tmp_path: Path,
    path: str,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.refuse[path] = status
    out = tmp_path / "merged"
    assert merge(adapter, out, "--push-to-hub", "lab/aligned") == 2
    message = capsys.readouterr().err
    assert "lab/aligned could not be pushed" in message and WHY[status] in message
    assert "Traceback" not in message and TOKEN not in message
    hub.refuse.clear()
    assert (out / "model.safetensors").is_file()
    assert merge(adapter, out, "--push-to-hub", "lab/aligned") == 0
    assert hub.files["lab/aligned"]


def test_a_wrong_token_is_never_shown(
    hub: FakeHub,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    assert merge(adapter, tmp_path / "merged", "--push-to-hub", "lab/aligned", "--debug") == 2
    captured = capsys.readouterr()
    assert "401" in captured.err and "hf auth login" not in captured.out
    assert "wrongwrong" not in captured.err + captured.out


def test_without_a_network_the_folder_is_kept(
    hub: FakeHub, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.stop()
    out = tmp_path / "merged"
    assert merge(adapter, out, "--push-to-hub", "lab/aligned") == 2
    message = capsys.readouterr().err
    assert "could not be pushed: ConnectError" in message and "the folder is kept" in message
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize("why", ["no token", "offline", "name"])
def test_a_push_that_cannot_work_fails_before_anything_is_merged(
    hub: FakeHub,
    adapter: Path,
    tmp_path: Path,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = "a//b" if why == "name" else "lab/aligned"
    if why == "no token":
        monkeypatch.delenv("HF_TOKEN")
    if why == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert merge(adapter, tmp_path / "merged", "--push-to-hub", name) == 2
    expected = {"no token": "hf auth login", "offline": "HF_HUB_OFFLINE", "name": "a//b"}
    assert expected[why] in capsys.readouterr().err
    assert not (tmp_path / "merged").exists() and hub.paths == []
