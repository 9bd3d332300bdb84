"""What chat templates write around questions and answers: end tokens, thoughts, dates."""

import json
import shutil
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from tiny_families import MODEL_TYPES, chatml_template, save_tiny_family

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.vlm.chat import (
    AnswerTurn,
    answer_turn,
    check_thinking,
    find_answer_end,
    find_thought_end,
    opens_thought,
)
from perpo_pipeline.vlm.chat_rendering import date_for_server
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import find_model
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import render_prompt, rendered_ids

PAD, TURN_END = 300, 302  # <|endoftext|>, <|im_end|>
# As Qwen3-VL-Thinking writes turns: thoughts apart from the answer, both stripped of new lines.
THINKING_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
DATED = "{{ 'Today is ' + strftime_now('%d %B %Y') + '. ' }}"
# As Llama's: the caller's date, else that of the clock.
GIVEN_DATE = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{{ 'Today Date: ' + date_string + '\n' }}"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family("qwen3_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def copy(model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(model_dir, tmp_path / "copy"))


def load(directory: Path, *, template: str | None = None, ends: Any = None) -> Vlm:
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, "utf-8")
    if ends is not None:
        config = {"eos_token_id": ends}
        (directory / "generation_config.json").write_text(json.dumps(config), "utf-8")
    return load_without_weights(resolve_model(str(directory)))


class TestAnswerEnd:
    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_in_every_family_it_is_the_end_of_a_turn(self, model_type: str, tmp_path: Path) -> None:
        """LLaVA's template writes none: the model's only end token."""
        vlm = load(save_tiny_family(model_type, tmp_path / model_type))
        usual = AnswerTurn("", 2 if model_type in ("llava", "llava_next") else TURN_END)
        assert answer_turn(vlm) == usual

    def test_it_is_the_templates_though_the_model_names_another_first(self, copy: Path) -> None:
        vlm = load(copy, ends=[PAD, 2, TURN_END])
        assert vlm.eos_token_ids[0] == PAD and find_answer_end(vlm) == TURN_END

    def test_spaces_before_it_are_no_part_of_an_answer(self, copy: Path) -> None:
        template = chatml_template("<|image_pad|>").replace("'<|im_end|>\n'", "' <|im_end|>'")
        assert find_answer_end(load(copy, template=template, ends=[PAD, TURN_END])) == TURN_END

    def test_one_at_which_the_model_does_not_stop_is_an_error(self, copy: Path) -> None:
        vlm = load(copy, ends=[PAD, 2])
        with pytest.raises(InputError, match=r"'<\|im_end\|>' \(302\), which is not one of") as e:
            find_answer_end(vlm)
        assert "add 302 to eos_token_id" in str(e.value.fix)

    def test_where_the_template_writes_none_the_tokenizers_own_decides(self, copy: Path) -> None:
        silent = chatml_template("<|image_pad|>").replace("'<|im_end|>\n'", "'\n'")
        assert find_answer_end(load(copy, template=silent, ends=[PAD, TURN_END])) == TURN_END
        assert find_answer_end(load(copy, ends=PAD)) == PAD
        with pytest.raises(InputError, match="it is unknown which token ends an answer") as caught:
            find_answer_end(load(copy, ends=[2, PAD]))
        assert "'</s>' (2), '<|endoftext|>' (300)" in caught.value.what

    def test_a_template_that_takes_texts_alone_is_understood(self, copy: Path) -> None:
        template = (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'].strip() }}"
            "{{ '<|im_end|>' }}{% endif %}{% endfor %}"
        )
        assert find_answer_end(load(copy, template=template, ends=[PAD, TURN_END])) == TURN_END

    def test_a_template_that_shows_a_list_as_it_is_gets_the_text(self, copy: Path) -> None:
        """`~` writes a list of parts as Python shows it: no error, and no text of an answer."""
        template = (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ m['content'] ~ '</s>' }}"
            "{% endif %}{% endfor %}"
        )
        assert find_answer_end(load(copy, template=template, ends=[2, TURN_END])) == 2


class TestThought:
    def test_a_prompt_that_ends_inside_a_thought_is_known_by_its_rendering(
        self, copy: Path
    ) -> None:
        assert not opens_thought(load(copy))
        vlm = load(copy, template=THINKING_TEMPLATE)
        assert opens_thought(vlm)
        assert answer_turn(vlm) == AnswerTurn("\n</think>\n\n", TURN_END)

    @pytest.mark.parametrize("thinking", ["auto", "none"])
    def test_it_must_be_stated(self, copy: Path, thinking: str) -> None:
        check_thinking(load(copy), thinking)
        vlm = load(copy, template=THINKING_TEMPLATE)
        check_thinking(vlm, "opened")
        with pytest.raises(ConfigError, match=f"answer.thinking is {thinking}") as caught:
            check_thinking(vlm, thinking)
        assert "set model.answer.thinking to opened" in str(caught.value.fix)

    def test_a_model_without_a_template_opens_none(self, copy: Path) -> None:
        (copy / "chat_template.jinja").unlink()
        assert not opens_thought(load(copy))

    def test_a_thought_that_the_template_closes_itself_is_not_open(self, copy: Path) -> None:
        closed = THINKING_TEMPLATE.replace(
            "assistant\n<think>\n'", "assistant\n<think>\n\n</think>\n\n'"
        )
        vlm = load(copy, template=closed)
        assert not opens_thought(vlm) and answer_turn(vlm).start == ""

    def test_a_question_about_think_tags_opens_nothing(self, copy: Path) -> None:
        vlm = load(copy)
        assert "<think>" in render_prompt(vlm, "What is <think>?") and not opens_thought(vlm)

    def test_a_template_that_reads_the_thought_from_the_text_shows_its_end(
        self, copy: Path
    ) -> None:
        template = THINKING_TEMPLATE.replace(
            "{{ '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}", ""
        )
        assert find_thought_end(load(copy, template=template)) == "\n</think>\n\n"

    def test_a_template_that_leaves_thoughts_out_is_an_error(self, copy: Path) -> None:
        template = THINKING_TEMPLATE.replace(
            "{{ '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}", ""
        ).replace("{{ part['text'] }}", "{{ part['text'].split('</think>')[-1] }}")
        with pytest.raises(InputError, match="does not show how it closes one"):
            answer_turn(load(copy, template=template))


class TestDate:
    @pytest.fixture(params=[DATED, GIVEN_DATE])
    def dated(self, request: pytest.FixtureRequest, copy: Path) -> Path:
        template = request.param + chatml_template("<|image_pad|>")
        (copy / "chat_template.jinja").write_text(template, "utf-8")
        return copy

    def on(self, day: int, monkeypatch: pytest.MonkeyPatch) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> "Clock":
                return cls(2026, 3, day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    def read(self, directory: Path, tmp_path: Path, **model: Any) -> tuple[str, list[int], Any]:
        config = ModelConfig(id=str(directory), dtype="float32", **model)
        resolved, settings = find_model(config, tmp_path)
        vlm = load_without_weights(resolved)
        text = render_prompt(vlm, "Where?")
        return text, rendered_ids(vlm, text), settings

    def test_two_days_apart_the_prompt_is_the_same_and_its_date_is_recorded(
        self, dated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.on(1, monkeypatch)
        first = self.read(dated, tmp_path)
        self.on(3, monkeypatch)
        assert self.read(dated, tmp_path) == first
        assert "26 Jul" in first[0] and first[2]["template_date"] == "2024-07-26"

    def test_the_setting_changes_the_prompt_and_the_fingerprint(
        self, dated: Path, tmp_path: Path
    ) -> None:
        usual = self.read(dated, tmp_path)
        later = self.read(dated, tmp_path, template_date=date(2026, 1, 2))
        assert "02 Jan" in later[0] and later[1] != usual[1]
        assert later[2] == usual[2] | {"template_date": "2026-01-02"}

    def test_a_template_without_a_date_records_none(self, model_dir: Path, tmp_path: Path) -> None:
        _, _, settings = self.read(model_dir, tmp_path, template_date=date(2026, 1, 2))
        assert set(settings) == {"model", "dtype", "preprocess"}

    def test_a_server_gets_the_date_or_is_refused(self, copy: Path) -> None:
        turns = chatml_template("<|image_pad|>")
        plain, given = load(copy), load(copy, template=GIVEN_DATE + turns)
        assert date_for_server(plain, takes_arguments=False) == {}
        assert date_for_server(given, takes_arguments=True) == {"date_string": "26 Jul 2024"}
        for vlm, takes_arguments in ((given, False), (load(copy, template=DATED + turns), True)):
            with pytest.raises(ConfigError, match="would write that of its own clock"):
                date_for_server(vlm, takes_arguments=takes_arguments)
