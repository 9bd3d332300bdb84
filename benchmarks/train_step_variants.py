"""The ways to make a training step that train_step.py compares; one function per way.

Each prepares its batch once and gives a `Work`: forward, loss and backward of one step.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_step_models import END, IMAGE, PAD, PATCH_PX, UNKNOWN, Regime

from perpo_pipeline.train.losses import perpo_loss
from perpo_pipeline.train.scope import lora_config, spare_the_tower
from perpo_pipeline.train.separate_rows import SeparateBatch, separate_lists
from perpo_pipeline.train.shared_prefix import (
    CompletionList,
    PackedBatch,
    RowLengths,
    pack_lists,
    packed_logps,
    token_logps,
)
from perpo_pipeline.vlm.models import Vlm, base_model
from perpo_pipeline.vlm.tensors import cast_tensors


@dataclass(frozen=True)
class Setup:
    """What every variant starts from; `twin` has the same weights without adapter, for TRL."""

    vlm: Vlm
    twin: nn.Module
    regime: Regime
    lists: Sequence[CompletionList]
    row_lengths: RowLengths = "any"


@dataclass(frozen=True)
class Work:
    """One step over `num_lists` lists in `rows`.

    `step` gives the completions' log-probabilities (B, N) in nats (TRL: its loss); it is run inside
    `settings()`, which is not timed. Gradients gather in `model`.
    """

    step: Callable[[], Tensor]
    model: nn.Module
    num_lists: int
    rows: PackedBatch | SeparateBatch
    settings: Callable[[], AbstractContextManager[Any]] = nullcontext


def shared_prefix(setup: Setup) -> Work:
    """Ours: one list after another in a row (on the CPU one row per list), every prefix once."""
    vlm, lists = setup.vlm, setup.lists[: setup.regime.lists]
    rows = pack_lists(vlm, lists, row_lengths=setup.row_lengths).to(vlm.device)

    def step() -> Tensor:
        return backward(packed_logps(vlm.model, rows))

    wanted = setup.regime.checkpointing
    return Work(step, vlm.model, len(lists), rows, lambda: checkpointing(vlm, wanted))


def concatenated_same_settings(setup: Setup) -> Work:
    """Full rows, everything else as ours: only what sharing the prefix itself gives is missing."""
    vlm, lists = setup.vlm, setup.lists[: setup.regime.full_lists]
    rows, positions = full_rows(vlm, lists)

    def step() -> Tensor:
        return backward(full_row_logps(vlm, rows, positions))

    wanted = setup.regime.checkpointing or setup.regime.full_checkpointing
    return Work(step, vlm.model, len(lists), rows, lambda: checkpointing(vlm, wanted))


def concatenated(setup: Setup) -> Work:
    """As the authors' code: every completion with its image, fp32 logits of all positions,
    the reference model online, PEFT's fp32 adapters, and on CUDA gradient checkpointing.
    """
    vlm, lists = setup.vlm, setup.lists[: setup.regime.full_lists]
    rows = separate_lists(vlm, lists).to(vlm.device)
    types = {} if rows.token_types is None else {"mm_token_type_ids": rows.token_types}
    tensors = rows.tensors  # one image per row, repeated before the time is taken

    def logps() -> Tensor:
        logits = vlm.model(
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            use_cache=False,
            **types,
            **cast_tensors(tensors, vlm.dtype),
        ).logits.float()
        of_tokens = logits[:, :-1].log_softmax(-1).gather(-1, rows.input_ids[:, 1:, None])[..., 0]
        return (of_tokens * rows.is_answer[:, 1:]).sum(-1).view(rows.num_tokens.shape)

    def step() -> Tensor:
        policy = logps()
        with torch.no_grad(), vlm.model.disable_adapter():
            reference = logps()
        return backward(policy, reference)

    wanted = setup.regime.checkpointing or vlm.device.type == "cuda"
    return Work(step, vlm.model, len(lists), rows, lambda: released_settings(vlm, wanted))


def trl(setup: Setup) -> Work:
    """TRL's DPOTrainer on the same pairs, set as its documentation has it for VLMs.

    That is `max_length=None` and else its defaults: gradient checkpointing, bf16 autocast (CUDA),
    reference online (precomputing it is refused for images), head at answer positions in chunks.
    Raises ImportError where trl, datasets or pillow are not installed.
    """
    from datasets import Dataset
    from PIL import Image
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from trl import DPOConfig, DPOTrainer

    vlm, lists, shape = setup.vlm, setup.lists[: setup.regime.full_lists], setup.regime.shape
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": shape.tile_px},
        crop_size={"height": shape.tile_px, "width": shape.tile_px},
    )
    blank = Image.new("RGB", (shape.tile_px, shape.tile_px))
    on_cuda = vlm.device.type == "cuda"
    arguments = DPOConfig(
        output_dir=tempfile.gettempdir(),
        max_length=None,
        bf16=on_cuda,
        use_cpu=not on_cuda,
        per_device_train_batch_size=len(lists),
        report_to="none",
    )
    trainer = DPOTrainer(
        setup.twin,
        args=arguments,
        train_dataset=Dataset.from_list([_pair(entry, blank) for entry in lists]),
        processing_class=_processor(shape.vocab, image_processor),
        peft_config=lora_config(vlm, shape.rank, 2 * shape.rank),
    )
    # What `trainer.train()` does before its first step.
    trainer.model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
    model = trainer.accelerator.prepare(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(lists))])
    # The lists' own pixels instead of the blank image's: first for the chosen, then the rejected.
    batch["pixel_values"] = torch.cat([e.prompt.tensors["pixel_values"] for e in lists] * 2)
    rows = separate_lists(vlm, lists).to(vlm.device)

    def step() -> Tensor:
        loss: Tensor = trainer.training_step(model, dict(batch))
        return loss

    return Work(step, trainer.model, len(lists), rows)


VARIANTS: dict[str, Callable[[Setup], Work]] = {
    "concatenated": concatenated,
    "concatenated-same-settings": concatenated_same_settings,
    "trl": trl,
    "shared-prefix": shared_prefix,
}


def backward(policy: Tensor, reference: Tensor | None = None) -> Tensor:
    """PerPO's loss with rising rewards, and its gradient; without `reference` it is cached.

    What a cached reference says does not change the time: the policy's own values stand for it.
    """
    rewards = torch.linspace(0, 1, policy.shape[1], device=policy.device).expand_as(policy)
    logps = policy.detach()
    perpo_loss(policy, logps if reference is None else reference, rewards).mean().backward()
    return logps


def full_row_logps(vlm: Vlm, rows: SeparateBatch, positions: Tensor | None) -> Tensor:
    """Log-probabilities (B, N); each image is encoded once, `rows` holds it once per list."""
    core = base_model(vlm.model).model
    found = core.get_image_features(**cast_tensors(rows.images, vlm.dtype)).pooler_output
    features = torch.stack(list(found)).repeat_interleave(rows.num_tokens.shape[1], dim=0)
    embeds = core.get_input_embeddings()(rows.input_ids)
    is_image = (rows.input_ids == IMAGE)[..., None].expand_as(embeds)
    hidden = core.language_model(
        inputs_embeds=embeds.masked_scatter(is_image, features.to(embeds.dtype)),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    answers = rows.is_answer[:, 1:]
    predictors, targets = hidden[:, :-1][answers], rows.input_ids[:, 1:][answers]
    logps = token_logps(base_model(vlm.model), predictors, targets)
    return logps.view(*rows.num_tokens.shape, -1).sum(-1)


def full_rows(
    vlm: Vlm, lists: Sequence[CompletionList], padding: int = 0
) -> tuple[SeparateBatch, Tensor | None]:
    """Rows with one image per list, `padding` tokens longer than needed, and their positions.

    Positions are (3, M, T) for the models with three axes, else None: counted from 0.
    """
    rows = separate_lists(vlm, lists)
    rows = replace(
        rows,
        input_ids=F.pad(rows.input_ids, (0, padding)),
        is_answer=F.pad(rows.is_answer, (0, padding)),
    )
    if vlm.family.position_axes == 1:
        return rows.to(vlm.device), None
    positions = []
    for entry in lists:
        for answer in entry.completions:
            after = entry.prompt.next_position + torch.arange(len(answer) + padding)
            positions.append(torch.cat([entry.prompt.positions, after.expand(3, -1)], dim=1))
    return rows.to(vlm.device), torch.stack(positions, dim=1).to(vlm.device)


@contextlib.contextmanager
def released_settings(vlm: Vlm, checkpointed: bool) -> Iterator[None]:
    """No compiled layers, and adapters in fp32."""
    with (
        torch.compiler.set_stance("force_eager"),
        checkpointing(vlm, checkpointed),
        adapters_in(torch.float32, vlm),
    ):
        yield


@contextlib.contextmanager
def checkpointing(vlm: Vlm, wanted: bool) -> Iterator[None]:
    """As `make_trainable` turns it on."""
    model: Any = vlm.model
    inner = base_model(model)
    if wanted:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        spare_the_tower(inner)
    try:
        yield
    finally:
        model.gradient_checkpointing_disable()
        inner.get_decoder().disable_input_require_grads()


@contextlib.contextmanager
def adapters_in(dtype: torch.dtype, vlm: Vlm) -> Iterator[None]:
    """The adapter's weights in another dtype; gradients are dropped, values are not changed."""
    trained = [p for p in vlm.model.parameters() if p.requires_grad]

    def cast(to: torch.dtype) -> None:
        for parameter in trained:
            parameter.grad = None
            parameter.data = parameter.data.to(to)

    cast(dtype)
    try:
        yield
    finally:
        cast(vlm.dtype)


def _pair(entry: CompletionList, image: Any) -> dict[str, Any]:
    """A list of two as TRL takes it; `backward` gives the second answer the higher reward."""
    ids = entry.prompt.input_ids.tolist()
    first = ids.index(IMAGE)
    text = [*_words(ids[:first]), "<image>", *_words(i for i in ids[first:] if i != IMAGE)]
    rejected, chosen = (" ".join(_words(answer)) for answer in entry.completions)
    return {"image": image, "prompt": " ".join(text), "chosen": chosen, "rejected": rejected}


def _words(ids: Any) -> list[str]:
    return [f"t{i}" for i in ids]


def _processor(vocab: int, image_processor: Any) -> Any:
    """A LLaVA processor whose tokenizer reads the word `t17` as token 17."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast

    special = {"<pad>": PAD, "<unk>": UNKNOWN, "</s>": END, "<image>": IMAGE}
    words = special | {f"t{i}": i for i in range(len(special), vocab)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
        ),
        patch_size=PATCH_PX,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
