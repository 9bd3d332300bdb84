"""The testbed's tiny LLaVA: tokenizer, processor, chat template, random weights.

It is the real architecture (CLIP tower, two-layer projector, Llama) at toy width, written in the
layout and with the parameter names of the checkpoints on a model hub, so that AutoProcessor,
AutoModelForImageTextToText and vLLM load it like any other LLaVA-1.5.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from perpo_pipeline.answers.formats import REFERRING_PROMPT
from perpo_pipeline.testbed.pages import LETTERS, PAGE_PROMPT, PUNCTUATION
from perpo_pipeline.testbed.scenes import COLOURS, EXTREMES, PRESETS, RELATIONS, scene_preset

INSTRUCTION = REFERRING_PROMPT.removesuffix("{expression}")
PAD, BOS, EOS, IMAGE = "<pad>", "<s>", "</s>", "<image>"
SPECIAL_TOKENS = (PAD, BOS, EOS, IMAGE)
VOCAB_SIZE = 704

# LLaVA-1.5's layout; the answer follows "ASSISTANT: " directly and ends with the end token.
CHAT_TEMPLATE = """\
{% for message in messages %}\
{% if message['role'] == 'assistant' %}ASSISTANT: {% generation %}\
{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}\
{{ eos_token }}{% endgeneration %}\
{% else %}{{ message['role'] | upper }}: \
{% if message['content'] is string %}{{ message['content'] }} \
{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}<image>{{ '\\n' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}\
{% endif %}{% endif %}{% endfor %}\
{% if add_generation_prompt %}ASSISTANT: {% endif %}"""

# A box has "0.", "1." and ", " as one piece each, a page one piece per character, a space before it
# included; other words are pieces as they are.
PIECES = (
    r" ?(?:USER|ASSISTANT): |(?<=\[|, )[01]\.(?=\p{N})|, (?=[01]\.\p{N})"
    r"| ?\p{Lu}(?!\p{Ll})| ?\p{L}+?(?=\p{Lu}(?!\p{Ll})|\P{L}|$)| ?\p{N}| ?[^\s\p{L}\p{N}]|\s"
)

COMMON_ENGLISH = """\
the a an of in on at to and or with is are from by for behind next near front back side top bottom
left right middle center upper lower far close corner man woman boy girl guy lady person people kid
child player baby hand head shirt jacket hat hair glasses pants jeans shoes dress wearing holding
standing sitting riding looking eating playing white black red green blue yellow brown orange pink
gray grey purple dark light striped big small large little tall short first second third last one
two three car bus truck train bike motorcycle boat plane horse cow sheep dog cat bird elephant zebra
giraffe bear chair couch table bed bench desk bowl plate cup glass bottle cake pizza sandwich banana
apple carrot broccoli donut umbrella bag suitcase phone laptop screen keyboard book clock vase
flower tree grass water sky wall window door street sign picture image photo object thing what where
which how many does this that there it answer question yes no not describe box text page word read
"""


@dataclass(frozen=True)
class ModelSize:
    """Widths and depths; CLIP's last layer is unused, since LLaVA reads the one before it."""

    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    patch: int = 8
    head_width: int = 32


MODEL_SIZES = {"small": ModelSize(128, 5, 192, 5), "full": ModelSize(192, 5, 256, 6)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the testbed's own words and some common English; encodes any text."""
    make: Any = PreTrainedTokenizerFast
    built: PreTrainedTokenizerFast = make(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=1024,
    )
    return built


@cache
def _trained_tokenizer() -> str:
    """The tokenizer as JSON: learning it takes a second, and each caller gets one of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_corpus(), trainer=trainer)
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    trained: str = tokenizer.to_str()
    return trained


def _tokenizer_corpus() -> list[str]:
    """The testbed's words come thousands of times, so that each becomes one token."""
    shapes = {shape for preset in PRESETS.values() for shape in preset.shapes} | {"shape"}
    words = sorted({*shapes, *COLOURS, *EXTREMES, *" ".join(RELATIONS).split(), "the"})
    prompt = f"USER: \n{INSTRUCTION}" + " ".join(words) + " ASSISTANT: [0.1, 0.2, 1.0, 0.3]"
    characters = [f"{c} {c}" for c in LETTERS + PUNCTUATION]
    return [prompt, PAGE_PROMPT, *characters] * 5000 + [
        f" {word}" for word in COMMON_ENGLISH.split() for _ in range(20)
    ]


def build_processor(preset: str) -> LlavaProcessor:
    """CLIP preprocessing (shortest edge, centre crop) at the preset's size, and the tokenizer."""
    side = scene_preset(preset).image_size
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    )
    tokenizer = build_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    make: Any = LlavaProcessor
    processor: LlavaProcessor = make(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=MODEL_SIZES[preset].patch,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )
    return processor


def build_config(preset: str, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """LlavaConfig of a preset; ids come from the tokenizer."""
    size, side = MODEL_SIZES[preset], scene_preset(preset).image_size
    ids = {token: token_id(tokenizer, token) for token in SPECIAL_TOKENS}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.text_width,
        intermediate_size=2 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_width // size.head_width,
        max_position_embeddings=1024,
        pad_token_id=ids[PAD],
        bos_token_id=ids[BOS],
        eos_token_id=ids[EOS],
    )
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=3 * size.vision_width,
        num_hidden_layers=size.vision_layers,
        num_attention_heads=size.vision_width // size.head_width,
        image_size=side,
        patch_size=size.patch,
        projection_dim=size.vision_width,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=ids[IMAGE],
        image_seq_length=(side // size.patch) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of one token of the vocabulary."""
    return int(tokenizer.get_vocab()[token])


def build_model(config: LlavaConfig, seed: int) -> LlavaForConditionalGeneration:
    """Random weights from `seed`; the tower's positions start as 2-D sines and cosines."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    vision: Any = config.vision_config
    grid = vision.image_size // vision.patch_size
    table = torch.from_numpy(sincos_positions(grid, vision.hidden_size))
    embeddings = model.model.vision_tower.embeddings
    with torch.no_grad():
        embeddings.position_embedding.weight[1:].copy_(0.5 * table)
        # CLIP starts patches at 0.02; in a model this small, positions would outweigh them.
        fan_in = 3 * vision.patch_size**2
        torch.nn.init.normal_(
            embeddings.patch_embedding.weight,
            std=fan_in**-0.5,
            generator=torch.Generator().manual_seed(seed),
        )
        # Queries and keys start equal, so tokens first look at what is like them: a word at the
        # patches that show it.
        for layer in model.model.language_model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    return model


def sincos_positions(grid: int, width: int) -> NDArray[np.float32]:
    """Fixed 2-D table (grid * grid, width): a quarter each for sin and cos of column and row."""
    quarter = width // 4
    frequencies = np.pi * 2.0 ** np.linspace(-1, np.log2(grid) - 1, quarter)
    centers = (np.arange(grid) + 0.5) / grid
    angles = centers[:, None] * frequencies[None, :]
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    columns = np.tile(waves, (grid, 1))
    rows = np.repeat(waves, grid, axis=0)
    table: NDArray[np.float32] = np.concatenate([columns, rows], axis=1).astype(np.float32)
    return table


def hub_parameter_name(name: str) -> str:
    """Name in a hub checkpoint of a parameter of `LlavaForConditionalGeneration`."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name.replace("language_model.", "language_model.model.", 1)


def write_model_dir(
    target: Path,
    preset: str,
    weights: Mapping[str, torch.Tensor],
    config: LlavaConfig,
    processor: LlavaProcessor,
    record: Mapping[str, object],
    card: str,
) -> None:
    """Write a hub-layout checkpoint in fp16; no file is ever visible half-written.

    weights: parameters under their in-memory names. record: what testbed.json holds after `preset`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".writing-") as folder:
        draft = Path(folder)
        half = {hub_parameter_name(k): v.detach().half().contiguous() for k, v in weights.items()}
        save_file(half, draft / "model.safetensors", metadata={"format": "pt"})
        draft_config = type(config).from_dict(config.to_dict())
        draft_config.architectures = ["LlavaForConditionalGeneration"]
        draft_config.dtype = torch.float32  # to compute in: half precision is slow on a CPU
        draft_config.save_pretrained(draft)
        text: Any = config.text_config
        generation: Any = GenerationConfig
        generation(
            bos_token_id=text.bos_token_id,
            eos_token_id=text.eos_token_id,
            pad_token_id=text.pad_token_id,
        ).save_pretrained(draft)
        processor.save_pretrained(draft)
        described = {"preset": preset, **record}
        (draft / "testbed.json").write_text(json.dumps(described, indent=2) + "\n")
        (draft / "README.md").write_text(card)
        _publish(draft, target)


def _publish(draft: Path, target: Path) -> None:
    """Move the files into place one by one, each atomically; the weights come last."""
    target.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in draft.iterdir())
    names.sort(key=lambda name: name == "model.safetensors")
    for name in names:
        (draft / name).chmod(0o644)
        os.replace(draft / name, target / name)
    for path in target.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
