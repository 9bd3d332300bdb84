"""Chat templates rendered as the run says: its system turn and arguments, in every family."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_families import MODEL_TYPES, QWEN_IMAGE, chatml_template, save_tiny_family
from tiny_models import noise_image

from perpo_pipeline.config.model import ModelConfig
from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.vlm import chat_rendering
from perpo_pipeline.vlm.chat import AnswerTurn, answer_turn, check_thinking, opens_thought
from perpo_pipeline.vlm.chat_rendering import (
    arguments_for_server,
    idle_notes,
    idle_settings,
    system_message,
)
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.inputs import find_model, open_model
from perpo_pipeline.vlm.loading import load_without_weights
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.prompts import (
    answer_ids,
    count_prompt_tokens,
    encode_prompt,
    render_prompt,
    rendered_ids,
)

# As templates with a switch write turns: a thought is opened unless the caller says otherwise.
SWITCHED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% if mood is defined %}{{ mood + 1 }}{% endif %}" + chatml_template(QWEN_IMAGE)
)
SYSTEM = "Answer in <b>short</b> words."
# As GLM-4.1V: a system turn's content is written as it is, a question's part by part.
WRITES_CONTENT = (
    "{% for message in messages %}{% if message.role == 'system' %}<|system|>\n"
    "{{ message.content }}\n{% else %}<|user|>\n{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# As Pixtral: the content of a system turn is joined to a string.
JOINS_CONTENT = (
    "{% if messages[0]['role'] == 'system' %}{{ '[SYS]' + messages[0]['content'] + '[/SYS]' }}"
    "{% endif %}"
    + chatml_template(QWEN_IMAGE).replace(
        "{% for message in messages %}",
        "{% for message in messages if message['role'] != 'system' %}",
    )
)
WRITES_JSON = WRITES_CONTENT.replace("message.content }}", "message.content | tojson }}")
READS_NEITHER = WRITES_CONTENT.replace("{{ message.content }}", "{{ message.content | length }}")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family("qwen3_vl", tmp_path_factory.mktemp("qwen"))


@pytest.fixture
def opened(model_dir: Path, tmp_path: Path) -> Any:
    """Opens a copy of the model with a template and settings: its settings that count, and it."""

    def open_it(template: str | None = None, **model: Any) -> tuple[dict[str, Any], Vlm]:
        copy = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(model_dir, copy)
        if template is not None:
            (copy / "chat_template.jinja").write_text(template, "utf-8")
        config = ModelConfig(id=str(copy), dtype="float32", **model)
        resolved, settings = find_model(config, tmp_path)
        return settings, load_without_weights(resolved)

    return open_it


class TestSystemPrompt:
    def test_it_is_the_first_turn_of_every_prompt(self, opened: Any) -> None:
        _, vlm = opened(system_prompt=SYSTEM)
        turn = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
        for prompt in ("Where?", "Is <image> red?"):
            assert render_prompt(vlm, prompt).startswith(turn)
        assert idle_settings(vlm) == [] and idle_notes(vlm) == {}

    def test_its_form_is_found_once_for_a_template(
        self, opened: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, vlm = opened(system_prompt=SYSTEM)
        found: list[str] = []
        original = chat_rendering.system_form

        def counted(processor: Any, settings: Any) -> Any:
            found.append(processor.chat_template)
            return original(processor, settings)

        monkeypatch.setattr(chat_rendering, "system_form", counted)
        whole = [render_prompt(vlm, prompt) for prompt in ("Where?", "Who?", "Is it red?")]
        assert len(found) == 1
        vlm.processor.chat_template = WRITES_CONTENT  # reads the other form
        assert render_prompt(vlm, "Where?").startswith(f"<|system|>\n{SYSTEM}\n<|user|>")
        vlm.processor.chat_template = found[0]
        assert render_prompt(vlm, "Where?") == whole[0] and len(found) == 2

    def test_an_empty_one_is_a_turn_too(self, opened: Any) -> None:
        _, vlm = opened(system_prompt="")
        assert render_prompt(vlm, "Where?").startswith("<|im_start|>system\n<|im_end|>\n")

    @pytest.mark.parametrize("model_type", MODEL_TYPES)
    def test_tokens_and_their_number_agree_in_every_family(
        self, model_type: str, tmp_path: Path
    ) -> None:
        directory = save_tiny_family(model_type, tmp_path / "model")
        config = ModelConfig(id=str(directory), dtype="float32", system_prompt=SYSTEM)
        vlm = load_without_weights(find_model(config, tmp_path)[0])
        prompt = encode_prompt(vlm, noise_image(0), "Where?")
        ids = prompt.input_ids.tolist()
        assert SYSTEM in vlm.tokenizer.decode(ids)
        assert len(ids) == count_prompt_tokens(vlm, prompt.text, prompt.padded_size)
        usual = load_without_weights(resolve_model(str(directory)))
        assert answer_ids(vlm, "Where?", "[0, 1]") == answer_ids(usual, "Where?", "[0, 1]")

    def test_control_tokens_that_it_spells_stay_text(self, opened: Any) -> None:
        _, vlm = opened(system_prompt="Say <|im_end|> or <|image_pad|>.")
        ids = rendered_ids(vlm, render_prompt(vlm, "Where?"))
        plain = rendered_ids(vlm, render_prompt(opened(system_prompt="Say it.")[1], "Where?"))
        for token in ("<|im_end|>", "<|image_pad|>"):
            number = vlm.tokenizer.convert_tokens_to_ids(token)
            assert ids.count(number) == plain.count(number)
        assert "Say <|im_end|> or <|image_pad|>." in vlm.tokenizer.decode(ids)
        with pytest.raises(ConfigError, match=r"system_prompt spells '<\|im_end\|>', a control"):
            system_message(vlm)

    def test_a_server_gets_it_as_a_message(self, opened: Any) -> None:
        assert system_message(opened(system_prompt=SYSTEM)[1]) == {
            "role": "system",
            "content": SYSTEM,
        }
        assert system_message(opened()[1]) is None

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            (WRITES_CONTENT, f"<|system|>\n{SYSTEM}\n<|user|>\n<|vision_start|>"),
            (JOINS_CONTENT, f"[SYS]{SYSTEM}[/SYS]<|im_start|>user\n"),
            (WRITES_JSON, "<|system|>\n" + json.dumps(SYSTEM) + "\n<|user|>\n"),
        ],
        ids=["as it is", "joined", "json"],
    )
    def test_a_template_that_reads_a_string_gets_one(
        self, opened: Any, template: str, expected: str
    ) -> None:
        """A list of parts would stand in the prompt as Python writes it, or be refused."""
        _, vlm = opened(template, system_prompt=SYSTEM)
        assert render_prompt(vlm, "Where?").startswith(expected)
        assert idle_settings(vlm) == []

    def test_control_tokens_stay_text_in_the_string_too(self, opened: Any) -> None:
        _, vlm = opened(WRITES_CONTENT, system_prompt="Say <|im_end|>.")
        ids = rendered_ids(vlm, render_prompt(vlm, "Where?"))
        assert vlm.tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
        assert "<|system|>\nSay <|im_end|>.\n<|user|>" in vlm.tokenizer.decode(ids)

    def test_a_template_that_reads_neither_form_is_an_error(self, opened: Any) -> None:
        _, vlm = opened(READS_NEITHER, system_prompt=SYSTEM)
        match = "does not write the text of model.system_prompt, neither from a list"
        with pytest.raises(InputError, match=match):
            render_prompt(vlm, "Where?")
        assert "<|system|>" not in render_prompt(opened(READS_NEITHER)[1], "Where?")

    def test_a_form_that_an_argument_decides_is_that_of_the_run(self, opened: Any) -> None:
        """Without the argument the template reads neither: its effect is still found."""
        decided = WRITES_CONTENT.replace(
            "{{ message.content }}", "{{ message.content if whole else message.content | length }}"
        )
        given = {"chat_template_kwargs": {"whole": True}}
        _, vlm = opened(decided, system_prompt=SYSTEM, **given)
        assert render_prompt(vlm, "Where?").startswith(f"<|system|>\n{SYSTEM}\n")
        assert idle_settings(vlm) == []

    def test_a_template_that_leaves_it_out_is_told(self, opened: Any) -> None:
        silent = chatml_template(QWEN_IMAGE).replace(
            "{% for message in messages %}",
            "{% for message in messages if message['role'] != 'system' %}",
        )
        (line,) = idle_settings(opened(silent, system_prompt=SYSTEM)[1])
        assert line == (
            "model.system_prompt changes nothing in the prompts of the model's chat template: "
            "it writes no system turn"
        )

    def test_one_that_the_template_writes_anyway_is_told(self, opened: Any) -> None:
        own = (
            "{% if messages[0]['role'] != 'system' %}"
            "{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
            + chatml_template(QWEN_IMAGE)
        )
        (line,) = idle_settings(opened(own, system_prompt="Be kind.")[1])
        assert line.endswith("it writes the same without it")

    def test_a_template_that_refuses_it_is_an_error(self, opened: Any) -> None:
        _, vlm = opened(REFUSING, system_prompt=SYSTEM)
        match = "refuses model.system_prompt: System role not supported"
        with pytest.raises(InputError, match=match):
            render_prompt(vlm, "Where?")
        with pytest.raises(InputError, match=match):
            idle_settings(vlm)
        with pytest.raises(InputError, match=match):
            check_thinking(vlm, "auto")


class TestArguments:
    def test_thinking_is_switched_off_and_on(self, opened: Any) -> None:
        _, on = opened(SWITCHED)
        _, off = opened(SWITCHED, chat_template_kwargs={"enable_thinking": False})
        assert render_prompt(on, "Where?").endswith("assistant\n<think>\n")
        assert render_prompt(off, "Where?").endswith("<think>\n\n</think>\n\n")
        assert opens_thought(on) and not opens_thought(off)
        assert idle_settings(off) == []
        check_thinking(off, "auto")
        with pytest.raises(ConfigError, match="ends a prompt inside a thought"):
            check_thinking(on, "auto")
        end = off.tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert answer_turn(on) == AnswerTurn("\n</think>\n\n", end)
        assert answer_turn(off) == AnswerTurn("", end)

    def test_what_a_template_does_not_read_is_told_and_not_given(self, opened: Any) -> None:
        _, vlm = opened(chat_template_kwargs={"enable_thinking": False, "mood": "good"})
        assert render_prompt(vlm, "Where?") == render_prompt(opened()[1], "Where?")
        lines = idle_settings(vlm)
        assert [line.partition(" ")[0] for line in lines] == [
            "model.chat_template_kwargs.enable_thinking",
            "model.chat_template_kwargs.mood",
        ]
        assert all("it does not read it" in line for line in lines)
        assert idle_notes(vlm)["chat_template"].startswith("warning: model.chat_template_kwargs.")
        assert arguments_for_server(vlm, takes_arguments=False) == {}

    def test_the_value_that_it_takes_anyway_is_told(self, opened: Any) -> None:
        (line,) = idle_settings(opened(SWITCHED, chat_template_kwargs={"enable_thinking": True})[1])
        assert line.endswith("it writes the same without it")

    def test_what_it_refuses_is_an_error_that_names_it(self, opened: Any) -> None:
        _, vlm = opened(REFUSING, chat_template_kwargs={"mood": "good", "other": 1})
        with pytest.raises(InputError, match=r"refuses model.chat_template_kwargs.mood: ") as e:
            render_prompt(vlm, "Where?")
        assert "chat_template.jinja" in str(e.value.fix)
        _, fits = opened(REFUSING, chat_template_kwargs={"mood": 1})
        assert render_prompt(fits, "Where?").startswith("2")

    def test_messages_that_it_refuses_without_any_setting_are_no_fault_of_these(
        self, opened: Any
    ) -> None:
        """An assistant's turn as a text fails in this template; a part of a list does not."""
        _, vlm = opened(SWITCHED, system_prompt=SYSTEM)
        assert answer_turn(vlm).start == "\n</think>\n\n"

    def test_vllm_s_server_gets_them_and_others_are_refused(self, opened: Any) -> None:
        arguments = {"enable_thinking": False}
        _, vlm = opened(SWITCHED, chat_template_kwargs={**arguments, "mood": 1})
        assert arguments_for_server(vlm, takes_arguments=True) == arguments
        with pytest.raises(ConfigError, match="may ignore enable_thinking"):
            arguments_for_server(vlm, takes_arguments=False)


class TestRecord:
    def test_they_count_only_where_they_are_set(self, opened: Any) -> None:
        usual, _ = opened()
        assert set(usual) == {"model", "dtype", "preprocess"}
        found, _ = opened(system_prompt="", chat_template_kwargs={"b": None, "a": 1})
        assert found == usual | {
            "system_prompt": "",
            "chat_template_kwargs": {"a": 1, "b": None},
        }

    def test_opening_the_model_warns_once(
        self, model_dir: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        config = ModelConfig(
            id=str(model_dir), dtype="float32", device="cpu", chat_template_kwargs={"mood": 1}
        )
        resolved, settings = find_model(config, tmp_path)
        open_model(config, resolved, settings, tmp_path)
        assert capfd.readouterr().err.count("warning: model.chat_template_kwargs.mood changes") == 1
