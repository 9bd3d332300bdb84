"""Old names of settings: read with a warning for a while, then refused."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from perpo_pipeline.config import file as config_file
from perpo_pipeline.config import renamed
from perpo_pipeline.config.overrides import parse_set
from perpo_pipeline.config.renamed import RENAMED, Renamed, take_renamed, take_renamed_option
from perpo_pipeline.errors import ConfigError

MINIMAL = """run: r
prepare:
  train: {source: testbed, num_prompts: 4}
  test: {source: testbed, num_prompts: 4}
"""
LORA = {"lora": {"alpha": 2}}


@pytest.fixture(autouse=True)
def _renamed_in_the_next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    renamed.forget_warned()
    for old, new in {
        "filter.margin": "filter.min_margin",
        "train.rank": "train.lora.rank",
        "prepare.SPLIT.rows": "prepare.SPLIT.num_prompts",
    }.items():
        monkeypatch.setitem(RENAMED, old, Renamed(new, since="0.2.0"))


@pytest.mark.parametrize(
    ("since", "until"),
    [("0.1.0", "0.1.0"), ("0.2.0", "0.4.0"), ("0.9.3", "0.11.0"), ("1.4.0", "2.0.0")],
)
def test_an_old_name_is_taken_for_two_minor_versions(since: str, until: str) -> None:
    assert str(Renamed("filter.min_margin", since).refused_from) == until


@pytest.mark.parametrize(
    ("raw", "read", "old", "new"),
    [
        (
            {"filter": {"margin": 0.5}},
            {"filter": {"min_margin": 0.5}},
            "filter.margin",
            "filter.min_margin",
        ),
        (
            {"train": {"methods": {"dpo": {"rank": 3}, "perpo": None}, **LORA}},
            {"train": {"methods": {"dpo": {"lora": {"rank": 3}}, "perpo": None}, **LORA}},
            "train.methods.dpo.rank",
            "train.methods.dpo.lora.rank",
        ),
        (
            {"prepare": {"train": [{"source": "testbed", "rows": 3}]}},
            {"prepare": {"train": [{"source": "testbed", "num_prompts": 3}]}},
            "prepare.train.0.rows",
            "prepare.train.0.num_prompts",
        ),
    ],
)
def test_an_old_name_is_read_as_the_new_one_with_a_warning(
    capsys: pytest.CaptureFixture[str], raw: Any, read: Any, old: str, new: str
) -> None:
    before = repr(raw)
    assert take_renamed(raw, "0.3.9") == read and repr(raw) == before
    take_renamed(raw, "0.3.9")
    assert capsys.readouterr().err == (
        f"perpo: {old} was renamed in 0.2.0: write {new}; the old name is refused from 0.4.0 on\n"
    )
    assert take_renamed(raw, "0.4.0") == raw


def test_a_run_with_an_old_name_is_the_run_with_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(MINIMAL + "filter: {min_margin: 0.25}\n")
    new = config_file.load_config(path)
    path.write_text(MINIMAL.replace("num_prompts", "rows") + "filter: {margin: 0.25}\n")
    assert config_file.load_config(path) == new
    for other in ("filter.min_margin=0.5", "filter.margin=0.5"):  # options replace the file's
        assert config_file.load_config(path, [parse_set(other)]).filter.min_margin == 0.5
    path.write_text(MINIMAL + "filter: {margin: 0.25, min_margin: 0.25}\n")
    with pytest.raises(ConfigError, match=r"margin is the old name of filter[^\n]*\n.*r\.yaml"):
        config_file.load_config(path)
    path.write_text(MINIMAL + "filter: {margin: 0.25}\n")
    both = [parse_set("filter.margin=0.5"), parse_set("filter.min_margin=0.5")]
    with pytest.raises(
        ConfigError, match=r"filter\.min_margin is given twice: --set filter\.margin"
    ):
        config_file.load_config(path, both)
    with pytest.raises(ConfigError, match=r"where: --set filter\.margin=much"):
        config_file.load_config(path, [parse_set("filter.margin=much")])
    for take in (take_renamed, take_renamed_option):
        monkeypatch.setattr(config_file, take.__name__, partial(take, version="0.4.0"))
    with pytest.raises(ConfigError) as caught:
        config_file.load_config(path)
    assert "filter.margin was renamed: use filter.min_margin" in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("train.rank", "train.lora.rank"),
        ("train.methods.dpo.rank", "train.methods.dpo.lora.rank"),
        ("prepare.train.rows", "prepare.train.num_prompts"),
        ("prepare.train.0.rows", "prepare.train.0.num_prompts"),
        ("prepare.rows", "prepare.rows"),
        ("train.methods.rank", "train.methods.rank"),
        ("train.lora.rank", "train.lora.rank"),
        ("rank", "rank"),
    ],
)
def test_an_option_with_an_old_name_sets_what_has_it_now(typed: str, key: str) -> None:
    option = take_renamed_option(parse_set(f"{typed}=2"))
    assert option.key == key and option.as_typed == f"--set {typed}=2"
