"""Folders for the figures of sweeps: nothing is lost, and what cannot be written is known early."""

from pathlib import Path

import pytest
from sweep.fake_stages import SWEEP, write_files
from sweep.test_figures import finished

from perpo_pipeline import cli
from perpo_pipeline.errors import ConfigError
from perpo_pipeline.sweep.figures import Finished, write_figures
from perpo_pipeline.sweep.figures_folder import check_folder
from perpo_pipeline.sweep.file import SweepFile, read_sweep

ROOT = Path(__file__).parents[2]


def named(one: Finished, name: str, x: str = "train.beta") -> SweepFile:
    """The file under another name, and with the parameters train.beta and `x`."""
    grid = one.file.grids[-1].model_copy(update={"parameters": {"train.beta": [1], x: [1]}})
    return one.file.model_copy(update={"sweep": name, "grids": [grid]})


def test_a_page_or_a_picture_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    one, out = finished(tmp_path), tmp_path / "docs"
    out.mkdir()
    page, picture = out / "README.md", out / "beta.svg"
    for text in ("# My project\n", "# Mine\n\n<!-- sweep beta -->\n\n## The scale\n", "\udcff"):
        page.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ConfigError, match=r"its README.md was not written by perpo sweep"):
            check_folder(out, [(one.file, "small")])
        with pytest.raises(ConfigError, match="and would be lost"):
            write_figures(out, [one])
        assert page.read_bytes() == text.encode(errors="surrogateescape")
    page.unlink()
    picture.write_text("<svg>drawn by hand</svg>")
    with pytest.raises(ConfigError, match=r"its beta.svg was not written by perpo sweep"):
        check_folder(out, [(one.file, "small")])
    picture.unlink()
    page.touch()  # nothing is in it
    write_figures(out, [one])
    before = page.read_text(), picture.read_text()
    check_folder(out, [(one.file, "small")])
    write_figures(out, [one])
    assert before == (page.read_text(), picture.read_text())


def test_a_sweep_of_one_name_in_another_run_is_refused(tmp_path: Path) -> None:
    one, out = finished(tmp_path), tmp_path / "figures"
    other = named(one, "beta")
    with pytest.raises(ConfigError, match=r"beta.svg would be a picture of .* run b and of .* a"):
        check_folder(out, [(one.file, "a"), (other, "b")])
    with pytest.raises(ConfigError, match=r"a-train.beta.svg would be a picture of the sweep 'a'"):
        check_folder(out, [(named(one, "a-train.beta"), "a"), (named(one, "a", "seed"), "a")])
    write_figures(out, [one])
    with pytest.raises(ConfigError, match="section 'beta' of the run small, which that of the run"):
        check_folder(out, [(other, "b")])
    check_folder(out, [(one.file, "small"), (named(one, "gamma"), "b")])


def test_the_shipped_figures_can_be_made_again() -> None:
    files = [read_sweep(path) for path in sorted((ROOT / "configs/figures").glob("*.yaml"))]
    assert len(files) == 11
    check_folder(ROOT / "docs" / "figures", [(file, "demo") for file in files])
    with pytest.raises(ConfigError, match="section 'list-size' of the run demo"):
        check_folder(ROOT / "docs" / "figures", [(files[0], "mine")])


def test_a_file_in_place_of_the_folder_is_refused_before_the_sweep_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, taken = write_files(tmp_path, SWEEP), tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", str(file), "--figures", str(taken)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"{taken}: this is no folder" in said
    assert taken.read_text() == "mine" and not (tmp_path / "data").exists()
    for place in (taken / "below" / "it", tmp_path / "link"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(ConfigError, match="is no folder"):
            check_folder(place, [])
