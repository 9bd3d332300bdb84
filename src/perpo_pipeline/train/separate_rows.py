"""The plain way to a list's log-probabilities: one full row (prompt and answer) per completion.

It is slow (image and prompt are read N times) and simple: causal attention with a 2-D padding mask,
and positions that the model computes itself. `train.forward: separate` uses it, so do models whose
completions cannot share a prefix, and the shared prefix is checked against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perpo_pipeline.train.shared_prefix import CompletionList, check_lists, token_logps
from perpo_pipeline.vlm.models import Vlm, base_model, has_own_head, type_arguments
from perpo_pipeline.vlm.per_token import over_row
from perpo_pipeline.vlm.tensors import cast_tensors, move, stack_image_tensors


@dataclass(frozen=True)
class SeparateBatch:
    """B lists as M full rows of T tokens, one row per completion, right-padded.

    `input_ids`, `attention_mask` and `is_answer` (M, T); `images` the pixel tensors, one image per
    list, of which list b has `image_parts[name][b]` along the image axis; `rows` per list;
    `token_types` (M, T) for the families that compute positions from them; `places` (M,) index
    into B*N; `num_tokens` (B, N) as in `PackedBatch`; `num_packed` tokens without padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    is_answer: Tensor
    images: dict[str, Tensor]
    image_parts: dict[str, list[int]]
    rows: list[int]
    token_types: Tensor | None
    places: Tensor
    num_tokens: Tensor
    num_packed: int

    @property
    def mask(self) -> Tensor:
        """(B, N) true where there is a completion."""
        return self.num_tokens > 0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The pixel tensors with one image per row; they are repeated here, on the device."""
        repeated = {}
        for name, images in self.images.items():
            parts = zip(torch.split(images, self.image_parts[name]), self.rows, strict=True)
            repeated[name] = torch.cat(
                [part.repeat(rows, *[1] * (part.ndim - 1)) for part, rows in parts]
            )
        return repeated

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SeparateBatch":
        """The batch on `device`; accelerate calls this signature."""
        return move(self, device, non_blocking)


def separate_lists(
    vlm: Vlm, lists: Sequence[CompletionList], *, left_padding: int = 0
) -> SeparateBatch:
    """Full rows on the CPU, with `left_padding` tokens before each. Raises as `pack_lists` does."""
    check_lists(lists, vlm.image_token_ids)
    num = max(len(entry.completions) for entry in lists)
    rows = [(b, n, entry) for b, entry in enumerate(lists) for n in range(len(entry.completions))]
    lengths = [entry.prompt.num_tokens + len(entry.completions[n]) for _, n, entry in rows]
    shape = (len(rows), left_padding + max(lengths))
    ids = torch.full(shape, vlm.pad_token_id)
    attended, is_answer = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    token_types = torch.full(shape, vlm.layers.answer_type)
    num_tokens = torch.zeros(len(lists), num, dtype=torch.long)
    for row, ((b, n, entry), length) in enumerate(zip(rows, lengths, strict=True)):
        completion = entry.completions[n]
        prefix_end = left_padding + entry.prompt.num_tokens
        end = left_padding + length
        ids[row, left_padding:prefix_end] = entry.prompt.input_ids
        ids[row, prefix_end:end] = torch.as_tensor(completion)
        attended[row, left_padding:end] = 1
        is_answer[row, prefix_end:end] = True
        num_tokens[b, n] = len(completion)
        if entry.prompt.token_types is not None:
            token_types[row, left_padding:prefix_end] = entry.prompt.token_types
    typed = lists[0].prompt.token_types is not None
    prompts = [
        replace(p, tensors=over_row(p.tensors, left_padding, max(lengths) - p.num_tokens))
        for p in (entry.prompt for entry in lists)
    ]
    images = stack_image_tensors(prompts)
    return SeparateBatch(
        input_ids=ids,
        attention_mask=attended,
        is_answer=is_answer,
        images=images,
        image_parts={n: [len(p.tensors.get(n, ())) for p in prompts] for n in images},
        rows=[len(entry.completions) for entry in lists],
        token_types=token_types if typed else None,
        places=torch.tensor([b * num + n for b, n, _ in rows]),
        num_tokens=num_tokens,
        num_packed=sum(lengths),
    )


def separate_logps(model: nn.Module, batch: SeparateBatch) -> Tensor:
    """Summed log-probabilities (B, N) in nats, fp32; 0 at padding."""
    inner = base_model(model)
    batch = batch.to(inner.get_input_embeddings().weight.device)
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "use_cache": False,
        **type_arguments(inner, batch.token_types),
        **cast_tensors(batch.tensors, inner.dtype),
    }
    answers = batch.is_answer[:, 1:]
    targets = batch.input_ids[:, 1:][answers]
    if has_own_head(inner):
        hidden = inner.model(**inputs).last_hidden_state
        logps = token_logps(inner, hidden[:, :-1][answers], targets)
    else:  # Llama 4: the head is part of its language model
        logits = inner(**inputs).logits[:, :-1][answers].float()
        logps = -F.cross_entropy(logits, targets, reduction="none")
    by_row = logps.new_zeros(answers.shape).masked_scatter(answers, logps).sum(-1)
    table = logps.new_zeros(batch.num_tokens.numel()).index_put((batch.places,), by_row)
    return table.view(batch.num_tokens.shape)
