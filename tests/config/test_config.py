"""The run's file: every fault at once, by its key; every shipped recipe parses."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from perpo_pipeline.config.file import load_config
from perpo_pipeline.config.overrides import Override, parse_set
from perpo_pipeline.config.reference import render
from perpo_pipeline.config.renamed import RENAMED, Renamed
from perpo_pipeline.errors import ConfigError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
MINIMAL = """
run: demo
prepare:
  train: {source: testbed, num_prompts: 10}
  test: {source: testbed, num_prompts: 3}
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_configuration_parses(path: Path) -> None:
    config = load_config(path)
    assert config.train.variants() and config.eval_variants()


def test_the_papers_grounding_recipe_has_the_papers_numbers() -> None:
    config = load_config(CONFIGS / "llava15-grounding.yaml")
    perpo = config.train.variants()["perpo"]
    assert (config.sample.num_samples, config.sample.temperature) == (20, 0.5)
    assert (config.filter.min_margin, config.filter.max_lists) == (0.8, 3000)
    assert (perpo.beta, perpo.gamma, perpo.learning_rate, perpo.batch_size) == (0.1, 0.5, 5e-6, 8)
    assert (perpo.lora.rank, perpo.lora.alpha) == (128, 256)


def test_all_faults_are_reported_at_once_each_by_its_key(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
run: demo
modle: {}
prepare:
  train: {source: testbed, num_prompts: ten}
sample: {temprature: 0.5, num_samples: 0}
eval: {splits: [validaton]}
train:
  learnin_rate: 1.0e-4
  methods: {perpo: {beta: x}, sft: {lora: {rnk: 3}}}
""",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    for expected in (
        "modle: no such setting; did you mean 'model'?",
        "prepare.train.num_prompts: Input should be a valid integer",
        "sample.temprature: no such setting; did you mean 'temperature'?",
        "sample.num_samples: Input should be greater than or equal to 1",
        "eval.splits: 'validaton' is not a split of `prepare` ['train']",
        "train.learnin_rate: no such setting; did you mean 'learning_rate'?",
        "train.methods.perpo.beta: Input should be a valid number",
        "train.methods.sft.lora.rnk: no such setting; did you mean 'rank'?",
    ):
        assert expected in message
    assert str(path) in message


def test_faults_of_a_source_are_reported_by_their_keys_in_the_file(tmp_path: Path) -> None:
    text = """
run: demo
prepare:
  train: {source: refr, path: x}
  test: {source: refer, path: x, image_root: y, per_datset: 3, splits: [tst]}
  pages: {source: fox, path: x, per_dataset: 3}
"""
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, text))
    message = str(caught.value)
    for expected in (
        "prepare.train: there is no source 'refr'; did you mean 'refer'?",
        "testbed, jsonl, json, csv, tsv, parquet, datasets, refer, lmms-lab, rec-jsonl, shikra, "
        "minigpt4, coco, label-studio, yolo, fox, pages, messages, perpo-json",
        "prepare.test.per_datset: no such setting; did you mean 'per_dataset'?",
        "prepare.test.splits.0: Input should be 'train', 'val', 'testA', 'testB' or 'test'",
        "prepare.pages.per_dataset: source fox has no such setting; it has path",
    ):
        assert expected in message


@pytest.mark.parametrize(
    "name",
    [
        *(
            f"{family}-grounding"
            for family in ("llava15", "llava-next", "llava-onevision", "qwen25-vl", "qwen3-vl")
        ),
        "qwen3-vl-4b-24gb",
    ],
)
def test_the_grounding_recipes_train_and_test_on_all_of_refers_datasets(name: str) -> None:
    """The paper's Table 1 has these eight test sets."""
    config = load_config(CONFIGS / f"{name}.yaml")
    sources = {name: source.model_dump() for name, source in config.prepare.items()}
    train = sources.pop("train")
    assert train["datasets"] == ["refcoco", "refcoco+", "refcocog"]
    assert train["per_dataset"] == 10_000 and train["leave_out_evaluated"] is True
    assert train["splits"] is None and list(sources) == config.eval.splits
    assert {name: (s["datasets"], s["splits"]) for name, s in sources.items()} == {
        "refcoco_val": (["refcoco"], ["val"]),
        "refcoco_testA": (["refcoco"], ["testA"]),
        "refcoco_testB": (["refcoco"], ["testB"]),
        "refcocoplus_val": (["refcoco+"], ["val"]),
        "refcocoplus_testA": (["refcoco+"], ["testA"]),
        "refcocoplus_testB": (["refcoco+"], ["testB"]),
        "refcocog_val": (["refcocog"], ["val"]),
        "refcocog_test": (["refcocog"], ["test"]),
    }


@pytest.mark.parametrize("page", ["README.md", "docs/data.md"])
def test_the_grounding_recipe_takes_the_sections_for_own_data(page: str, tmp_path: Path) -> None:
    text = (CONFIGS.parent / page).read_text()
    _, copied = text.split(
        "copy of\n`configs/llava15" if "data" in page else "Copy `configs/llava15"
    )
    own = yaml.safe_load(copied.split("```yaml\n")[1].split("```")[0])
    recipe = yaml.safe_load((CONFIGS / "llava15-grounding.yaml").read_text())
    config = load_config(write(tmp_path, yaml.safe_dump({**recipe, **own}, sort_keys=False)))
    assert list(config.prepare) == ["train", "test"] and config.eval.splits == ["test"]


def test_a_method_inherits_the_sections_settings_and_overrides_them(tmp_path: Path) -> None:
    text = (
        MINIMAL + "train: {learning_rate: 1.0e-4, methods: {perpo: {beta: 2}, dpo: , "
        "w: {method: sft, learning_rate: 3.0e-4}}}"
    )
    variants = load_config(write(tmp_path, text)).train.variants()
    assert (variants["perpo"].beta, variants["perpo"].learning_rate) == (2.0, 1e-4)
    assert (variants["dpo"].method, variants["dpo"].beta) == ("dpo", 0.1)
    assert (variants["w"].method, variants["w"].learning_rate) == ("sft", 3e-4)


def test_several_seeds_make_a_variant_each(tmp_path: Path) -> None:
    text = MINIMAL + "train: {seeds: [0, 7], methods: {perpo: }}"
    config = load_config(write(tmp_path, text))
    assert {n: s.seed for n, s in config.train.variants().items()} == {
        "perpo-seed0": 0,
        "perpo-seed7": 7,
    }
    assert "perpo-seed7-other-image@test" in config.eval_variants()


def test_a_variant_that_is_no_method_must_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no method 'mine'; set its `method` to one of sft"):
        load_config(write(tmp_path, MINIMAL + "train: {methods: {mine: {beta: 1}}}"))


def test_a_split_that_is_not_prepared_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.splits: 'val' is not a split"):
        load_config(write(tmp_path, MINIMAL + "eval: {splits: val}"))


def test_a_key_given_twice_is_a_fault_not_an_overwrite(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'run' is given twice"):
        load_config(write(tmp_path, MINIMAL + "run: other\n"))


def test_a_missing_file_suggests_one_that_exists() -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*demo\.yaml"):
        load_config(CONFIGS / "dmo.yaml")


def test_options_override_the_file_and_are_checked_like_it(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load_config(path, {"filter.min_margin": 0.3}).filter.min_margin == 0.3
    with pytest.raises(ConfigError, match=r"filter\.min_margin"):
        load_config(path, {"filter.min_margin": 3})


@pytest.mark.parametrize(
    ("overrides", "line", "where"),
    [
        (
            [Override("filter.min_margin", 3, "--min-margin")],
            "filter.min_margin (--min-margin): Input should be less",
            "--min-margin",
        ),
        (
            [parse_set("filter.max_margin=0.2"), Override("filter.max_lists", 9, "--max-lists")],
            "filter (--set filter.max_margin=0.2): max_margin 0.2 is below",
            "--set filter.max_margin=0.2",
        ),
        (
            [Override("model.id", 3, "--model")],
            "model.id (--model): Input should be a valid string",
            "--model",
        ),
        ([Override("run", "a b", "--run")], "run (--run): a name has letters, digits", "--run"),
        (
            {("train", "methods", "w.1", "beta"): 0, "sample.num_samples": 0},
            "train.methods.w.1.beta (--set train.methods.w.1.beta=0): Input should be greater",
            "--set sample.num_samples=0, --set train.methods.w.1.beta=0",
        ),
        (
            [Override(("train", "methods", ".w", "method"), "dpo", "--method")],
            "train.methods..w (--method): a name has letters",
            "--method",
        ),
        (
            [
                Override(("prepare", "x"), {"source": "refer"}, "--split"),
                Override(("prepare", "x", "path"), 3, "PATH", named_by="--split"),
                parse_set("prepare.x.leave_out_evaluated=x"),
            ],
            "prepare.x.path (PATH): Input is not a valid path",
            "PATH, --image-root, --set prepare.x.leave_out_evaluated=x",
        ),
        (
            [parse_set("train.tuning=lora"), parse_set("eval.splits=val")],
            "eval.splits (--set eval.splits=val): 'val' is not a split of `prepare`",
            "--set eval.splits=val",
        ),
        (
            [parse_set("prepare.x={source: testbed}")],
            "prepare.x.num_prompts: is required (--set prepare.x.num_prompts=VALUE)",
            "--set prepare.x.num_prompts=VALUE",
        ),
    ],
)
def test_a_fault_of_an_option_names_the_option_and_not_the_file(
    tmp_path: Path, overrides: Any, line: str, where: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), overrides)
    assert f"  - {line}" in str(caught.value) and caught.value.where == where


def test_faults_of_the_file_beside_an_options_keep_the_files_name(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "sample: {num_samples: 0, batch_size: 0}")
    with pytest.raises(ConfigError) as caught:
        load_config(path, {"sample.num_samples": -1})
    assert caught.value.where == str(path)
    assert "sample.num_samples (--set sample.num_samples=-1): " in caught.value.what
    assert "sample.batch_size: " in caught.value.what


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("  a b: {source: testbed, num_prompts: 1}", "prepare.a b: a name has letters, digits"),
        ("  -x: {source: testbed, num_prompts: 1}", "begins with a letter or digit; '-x' does"),
        (
            "  x: {source: testbd, num_prompts: 1}",
            "prepare.x: there is no source 'testbd'; did you mean 'testbed'? one of testbed, ",
        ),
        ("  x: {num_prompts: 1}", "prepare.x: names no source; one of testbed, "),
        ("  x: {source: refer, path: p}", "prepare.x.image_root: is required\n"),
        (
            "  x: {source: lmms-lab, path: p, dataset: a b}",
            "prepare.x.dataset: this must be one word without blanks; 'a b' does",
        ),
    ],
)
def test_a_fault_of_a_source_is_one_plain_message(tmp_path: Path, extra: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^1 fault in") as caught:
        load_config(write(tmp_path, MINIMAL + extra))
    assert message in str(caught.value)


def test_operational_settings_do_not_count_in_the_result(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    one = load_config(path)
    for name, value in [
        ("checkpoint_every", 7),
        ("max_tokens_per_forward", 99),
        ("compile", False),
    ]:
        other = load_config(path, {f"train.{name}": value})
        assert (
            one.train.variants()["perpo"].result_settings()
            == other.train.variants()["perpo"].result_settings()
        )
    changed = load_config(path, {"train.beta": 7.0})
    assert (
        one.train.variants()["perpo"].result_settings()
        != changed.train.variants()["perpo"].result_settings()
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("train: {methods: {base: {method: sft}}}", "methods.base: this name is reserved"),
        ("train: {methods: {a-other-image: {method: sft}}}", "this name is reserved"),
        ("train: {methods: {sft: {sft_weight: 1.0}}}", "methods.sft: sft has no preferences"),
        ("train: {label_smoothing: 0.1, methods: {sft: }}", "does not use label_smoothing"),
        ("train: {methods: {sft: {beta: 1.0}}}", "sft has no preferences and does not use beta"),
        ("train: {methods: {dpo: {gamma: 0.5}}}", "methods.dpo: dpo does not use gamma"),
        ("train: {order: hardest}", "train.order: Input should be 'widest-first'"),
        ("train: {methods: {pro: {beta: 0.5}}}", "methods.pro: pro does not use beta"),
        ("train: {label_smoothing: 0.1, methods: {list-mle: }}", "does not use label_smoothing"),
        ("train: {methods: {perpo: {reward_temperature: 1}}}", "does not use reward_temperature"),
        ("train: {reward_temperature: 0}", "train.reward_temperature: Input should be greater"),
        ("train: {methods: {x: {method: ppo}}}", "train.methods.x.method: no such method"),
        ("train: {label_smoothing: 0.5}", "train.label_smoothing"),
        ("train: {scope: []}", "train.scope"),
        ("train: {forward: concatenated}", "train.forward: the value 'concatenated' was renamed"),
        ("train: {max_tokens_per_step: 9}", "max_tokens_per_forward"),
        ("train: {seed: 5}", "give `seeds: [...]`"),
        ("train: {methods: {perpo: {seed: 5}}}", "give `seeds: [...]`"),
        ("sample: {temperature: .inf}", "sample.temperature"),
        ("sample: {num_samples: true}", "sample.num_samples: Input should be a number"),
        ("sample: {num_samples: 1000000000000}", "than or equal to 100000 (got 1000000000000)"),
        (f"seed: {10**26}", "seed: Input should be less than or equal to 9223372036854775807"),
        ("train: {seeds: [0, 4294967296]}", "train.seeds.1: Input should be less than or equal"),
        ("train: {seeds: [-1]}", "train.seeds.0: Input should be greater than or equal to 0"),
        ("train: {seeds: [1, 2, 1]}", "train.seeds: [1, 2, 1] names a seed twice"),
        ("model: {answer: {tag: <answer>}}", "answer for <answer>: letters, digits, '_', ':'"),
        ("model: {answer: {tag: final answer}}", "null for no tag; 'final answer' does not fit"),
        ("model: {answer: {tag: ''}}", "model.answer.tag: the tag is its name alone"),
        ("model: {template_date: 2024-02-30}", "'2024-02-30' is no timestamp (day is out of"),
        ("model: {box_format: lava}", "model.box_format"),
        ("model: {box_format: qwen2.5-vl}", "model: box_format qwen2.5-vl needs the frame"),
        ("model: {box_format: qwen2.5-vl, box_frame: pad}", "set box_frame to resized"),
        ("model: {box_frame: resized, preprocess: pad}", "set preprocess to processor"),
        ("model: {box_frame: rezised}", "model.box_frame"),
        (
            "model: {quantization: nf4}\ntrain: {tuning: full}",
            "train.tuning: full trains the weights themselves",
        ),
        (
            "model: {quantization: int8}\nsample: {backend: openai, base_url: 'http://x/v1'}",
            "sample.backend: a server holds its own weights",
        ),
        (
            "model: {quantization: nf4}\ntrain: {deepspeed: zero2}",
            "train.deepspeed: DeepSpeed was not tried with quantised weights",
        ),
        ("model: {quantization: nf8}", "model.quantization"),
        (
            "model: {chat_template_kwargs: {tokenize: true}}",
            "model.chat_template_kwargs: tokenize is no argument of a chat template that a run",
        ),
        (
            "model: {chat_template_kwargs: {date_string: today}}",
            "model.chat_template_kwargs: date_string is the date, which template_date sets",
        ),
        ("model: {chat_template_kwargs: {'no name': 1}}", "no name is no argument"),
        ("model: {chat_template_kwargs: {mood: [1]}}", "model.chat_template_kwargs.mood"),
        ("model: {chat_template_kwargs: [mood]}", "model.chat_template_kwargs"),
        ("model: {system_prompt: 3}", "model.system_prompt"),
        ("model: {max_pixels: 10}", "model.max_pixels: an image needs at least one patch, of 14 x"),
        ("eval: {models: []}", "eval.models"),
        ("eval: {split: train}", "eval.split was renamed: use eval.splits"),
        ("eval: {splits: []}", "eval.splits"),
        ("eval: {splits: [train, train]}", "eval.splits: 'train' is named twice"),
        ("eval: {splits: [train, vla]}", "eval.splits: 'vla' is not a split of `prepare`"),
        ("eval: {splits: [train@1]}", "letters, digits, '.', '_' and '-', and begins with"),
        ("eval: {splits: train, condition_splits: []}", "eval.condition_splits"),
        (
            "eval: {splits: train, condition_splits: [test]}",
            "eval.condition_splits: 'test' is not one of eval.splits ['train']",
        ),
        (
            "eval: {splits: train, out_of_domain: test}",
            "eval.out_of_domain: 'test' is not one of eval.splits ['train']",
        ),
        ("eval: {models: [perpoo]}", "eval.models: 'perpoo' is not one of"),
    ],
)
def test_what_would_be_ignored_or_misread_is_a_fault(
    tmp_path: Path, extra: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL + extra))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("box_format", "box_frame"),
    [
        ("qwen2.5-vl", "resized"),
        ("qwen3-vl", "resized"),
        ("pixel", "full"),
        ("pixel", "resized"),
        ("internvl", "full"),
        ("llava", "crop"),
    ],
)
def test_a_format_and_a_frame_that_fit_are_taken(
    tmp_path: Path, box_format: str, box_frame: str
) -> None:
    boxes = f"model: {{box_format: {box_format}, box_frame: {box_frame}}}\n"
    model = load_config(write(tmp_path, MINIMAL + boxes)).model
    assert (model.box_format, model.box_frame) == (box_format, box_frame)


def test_settings_are_checked_once_shared_and_own_are_merged(tmp_path: Path) -> None:
    shared = MINIMAL + "train: {scope: [projector], methods: {perpo: "
    variant = load_config(write(tmp_path, shared + "{tuning: full}}}")).train.variants()["perpo"]
    assert (variant.tuning, variant.scope) == ("full", ["projector"])
    with pytest.raises(ConfigError, match="leaves nothing for LoRA"):
        load_config(write(tmp_path, shared + "{}}}"))


def test_rows_that_differ_at_each_step_cannot_be_compiled(tmp_path: Path) -> None:
    settings = "train: {forward: separate, compile: %s, methods: {perpo: }}"
    assert load_config(write(tmp_path, MINIMAL + settings % "false")).train.shared.compile is False
    with pytest.raises(ConfigError, match="compile: true has no use with forward: separate"):
        load_config(write(tmp_path, MINIMAL + settings % "true"))


def test_a_set_reads_its_value_as_yaml_and_reaches_nested_settings(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL + "train: {methods: {w.1: {method: sft}, perpo: }}")
    sets = [
        "train.lora.rank=8",
        "train.methods.perpo.beta=0.2",
        "train.methods.w.1.learning_rate=1e-4",
        "prepare.train.num_prompts=7",
        "score.reward={iou: 0.7, my.pkg:function: 0.3}",
        "eval.models=[base, perpo]",
        "filter.max_lists=",
    ]
    config = load_config(path, map(parse_set, sets))
    variants = config.train.variants()
    assert list(variants) == ["w.1", "perpo"]
    assert (variants["perpo"].lora.rank, variants["perpo"].beta) == (8, 0.2)
    assert (variants["w.1"].lora.rank, variants["w.1"].learning_rate) == (8, 1e-4)
    assert config.prepare["train"].model_dump()["num_prompts"] == 7
    assert config.score.reward == {"iou": 0.7, "my.pkg:function": 0.3}
    assert (config.eval.models, config.filter.max_lists) == (["base", "perpo"], None)


def test_one_argument_of_the_chat_template_is_set_by_its_name(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert load_config(path).model.chat_template_kwargs == {}
    one = [parse_set("model.chat_template_kwargs.enable_thinking=false")]
    assert load_config(path, one).model.chat_template_kwargs == {"enable_thinking": False}
    values = "{a: 1, b: 0.5, c: 'x', d: null, e: true}"
    several = [parse_set(f"model.chat_template_kwargs={values}")]
    found = load_config(path, several).model.chat_template_kwargs
    assert [(type(value), value) for value in found.values()] == [
        (int, 1),
        (float, 0.5),
        (str, "x"),
        (type(None), None),
        (bool, True),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("filter.min_margin", "--set filter.min_margin: this is not section.key=value"),
        ("=3", "--set =3: this is not section.key=value"),
        ("eval.models=[base", "--set eval.models=[base: the value cannot be read as YAML"),
        ("score.reward={a: 1, a: 2}", "the key 'a' is given twice"),
        ("model.template_date=2024-02-30", "as YAML: '2024-02-30' is no timestamp (day is out of"),
    ],
)
def test_a_set_that_cannot_be_read_is_a_fault(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_set(text)
    assert message in str(caught.value)


@pytest.mark.parametrize("second", ["train.lora.rank=9", "train.lora={alpha: 3}", "train={}"])
def test_a_setting_given_twice_is_a_fault_not_an_overwrite(tmp_path: Path, second: str) -> None:
    sets = [parse_set("train.lora.rank=8"), parse_set(second)]
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), sets)
    assert f"is given twice: --set train.lora.rank=8 and --set {second}" in str(caught.value)
    whole_then_part = [parse_set("train.lora={alpha: 3}"), parse_set("train.lora.rank=8")]
    (settings,) = load_config(write(tmp_path, MINIMAL), whole_then_part).train.variants().values()
    assert (settings.lora.rank, settings.lora.alpha) == (8, 3)


@pytest.mark.parametrize(
    ("old", "new", "text", "line"),
    [
        (
            "filter.margin",
            "filter.min_margin",
            "filter: {margin: 0.5}",
            "  - filter.margin was renamed: use filter.min_margin",
        ),
        (
            "train.batch",
            "train.batch_size",
            "train: {methods: {perpo: {batch: 3}}}",
            "  - train.methods.perpo.batch was renamed: use train.methods.perpo.batch_size",
        ),
        (
            "train.rank",
            "train.lora.rank",
            "train: {rank: 3}",
            "  - train.rank was renamed: use train.lora.rank",
        ),
    ],
)
def test_an_old_key_names_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, text: str, line: str
) -> None:
    monkeypatch.setitem(RENAMED, old, Renamed(new, since="0.1.0"))
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL + text))
    assert line in str(caught.value).splitlines()
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), [parse_set(f"{old}=3")])
    assert f"{old} (--set {old}=3) was renamed: use {new}" in str(caught.value)


def test_every_renamed_key_leads_to_a_setting_that_exists() -> None:
    listed = render()
    for old, found in RENAMED.items():
        assert f"`{found.new}`" in listed and f"`{old}`" not in listed


@pytest.mark.parametrize(
    ("text", "line", "reference"),
    [
        ("min_margin=1", "no such setting; did you mean 'filter.min_margin'?", "perpo settings"),
        ("beta=1", "no such setting; did you mean 'train.beta'?", "perpo settings"),
        ("filter=3", "this is a section of settings, not a value (got 3)", "perpo settings filter"),
        (
            "prepare.tset.per_dataset=1",
            "perpo-json, prompts; did you mean 'test'?",
            "perpo settings prepare",
        ),
        ("train.lora.rank=x", "Input should be a valid integer", "perpo settings train"),
    ],
)
def test_a_fault_names_the_likely_key_and_where_settings_are_explained(
    tmp_path: Path, text: str, line: str, reference: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, MINIMAL), [parse_set(text)])
    assert line in caught.value.what
    assert f"`{reference}` lists every one" in (caught.value.fix or "")
