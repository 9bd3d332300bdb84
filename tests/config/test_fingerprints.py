"""Which settings count in which fingerprint, declared once in config/fingerprints.py."""

from collections.abc import Iterator
from typing import ClassVar

import pytest

from perpo_pipeline.config.filter import FilterConfig
from perpo_pipeline.config.fingerprints import COUNTED, Counted, counted_settings, counts_in
from perpo_pipeline.config.methods import METHODS
from perpo_pipeline.config.run import RunConfig
from perpo_pipeline.config.sample import SampleConfig
from perpo_pipeline.config.score import ScoreConfig
from perpo_pipeline.config.section import Section
from perpo_pipeline.config.sources import SOURCE_MODELS
from perpo_pipeline.config.train import TrainSettings

MODEL = {"model": "sha256", "dtype": "float32", "preprocess": "processor"}
BOXES = {"box_format": "llava", "box_frame": "full"}
ANSWER = {"thinking": "auto", "tag": "answer", "which": "first"}


def every_setting() -> Iterator[tuple[str, bool]]:
    """Dotted key of each setting, and whether it is operational, and so is what it names."""
    for section, field in RunConfig.model_fields.items():
        kind = field.annotation
        if section == "train":
            kind = TrainSettings
        if section == "prepare":
            for source in SOURCE_MODELS:
                for name in source.model_fields:
                    yield f"prepare.train.{name}", name in source.operational
        elif isinstance(kind, type) and issubclass(kind, Section):
            for name in kind.model_fields:
                yield f"{section}.{name}", name in kind.operational - kind.counted_by_content
        else:
            yield section, section in {*RunConfig.operational}


@pytest.mark.parametrize(("key", "is_operational"), sorted(set(every_setting())))
def test_every_setting_counts_somewhere_or_is_operational(key: str, is_operational: bool) -> None:
    counts = [artifact for artifact in counts_in(key) if artifact != "report"]
    if key == "eval.by":  # nothing is decoded again, so it is operational for the predictions
        assert is_operational and counts == ["metrics"]
    else:
        assert bool(counts) is not is_operational or key.startswith("report.")


def test_nested_settings_count_with_the_setting_that_holds_them() -> None:
    assert counts_in("train.lora.rank") == ["adapter"]
    assert counts_in("model.box_format") == ["prompts", "scores", "adapter", "predictions"]
    assert counts_in("model.answer.which") == counts_in("model.answer") == ["scores", "predictions"]
    assert counts_in("seed") == ["prompts", "samples"]
    assert counts_in("train.checkpoint_every") == []


def test_a_new_setting_counts_unless_it_is_declared_operational() -> None:
    class Wider(FilterConfig):
        spread: float = 0.25

    class Idle(Wider):
        operational: ClassVar[frozenset[str]] = frozenset({"spread"})

    assert counted_settings("preferences", Wider(), {})["spread"] == 0.25
    assert "spread" not in counted_settings("preferences", Idle(), {})


def test_what_is_not_declared_and_what_is_missing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'preferences' misses \[\] .* \['colour'\]"):
        counted_settings("preferences", FilterConfig(), {"colour": "red"})
    with pytest.raises(ValueError, match=r"'samples' misses \['dtype', 'model', 'seed'\]"):
        counted_settings("samples", SampleConfig(), {"preprocess": "pad"})


@pytest.mark.parametrize(
    ("backend", "unused"),
    [
        ("transformers", {"served_model"}),
        ("vllm", {"served_model", "batch_size"}),
        ("openai", {"batch_size"}),
    ],
)
def test_settings_that_a_backend_does_not_read_do_not_count(backend: str, unused: set[str]) -> None:
    found = counted_settings("samples", SampleConfig(), {"seed": 0, "backend": backend, **MODEL})
    every = set(SampleConfig.model_fields) - SampleConfig.operational
    assert set(found) == (every | {"seed", *MODEL}) - unused
    assert found["backend"] == backend


@pytest.mark.parametrize("method", METHODS)
def test_boxes_count_for_methods_that_train_on_the_truth_alone(method: str) -> None:
    settings = TrainSettings(method=method)
    found = counted_settings("adapter", settings, {**MODEL, **BOXES})
    assert (set(BOXES) <= set(found)) == (METHODS[method].trains_on == "truth")


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_newer_methods_count_for_these_alone(method: str) -> None:
    """So the fingerprints of adapters that were trained before stay as they are."""
    found = TrainSettings(method=method).result_settings()
    assert ("reward_temperature" in found) == (method == "infonca")
    assert "order" not in found
    ordered = TrainSettings(method=method, order="widest-first").result_settings()
    assert ordered == {**found, "order": "widest-first"}


@pytest.mark.parametrize(
    ("reward", "counts"),
    [({"iou": 1.0}, True), ({"edit_similarity": 1.0}, False), ({"auto": 1.0}, True)],
)
def test_boxes_count_for_rewards_that_read_them(reward: dict[str, float], counts: bool) -> None:
    found = counted_settings(
        "scores", ScoreConfig(), {"reward": reward, "own_rewards": {}, **BOXES, **ANSWER}
    )
    assert ("box_format" in found) is counts
    assert set(ANSWER) <= set(found)


def test_a_declared_fact_must_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COUNTED, "preferences", Counted("filter", facts=("weather",)))
    with pytest.raises(ValueError, match="weather"):
        counted_settings("preferences", FilterConfig(), {})
    assert counted_settings("preferences", FilterConfig(), {"weather": 1})["weather"] == 1
