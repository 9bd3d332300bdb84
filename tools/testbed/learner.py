"""The tiny LLaVA in training: packed rows, and a second task that teaches the tower to see."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaProcessor

from perpo_pipeline.testbed.scenes import scene_preset
from tools.testbed.model import build_config, build_model
from tools.testbed.packing import RowWriter, register_packed_attention


class Learner(nn.Module):
    """The model on packed rows, with the heads of the patch task, which are discarded later."""

    def __init__(self, preset: str, seed: int, processor: LlavaProcessor) -> None:
        super().__init__()
        config: Any = build_config(preset, processor.tokenizer)
        self.model: Any = build_model(config, seed)
        writer = RowWriter(processor.tokenizer, config.image_seq_length)
        self.register_buffer("prefix_ids", torch.tensor(writer.prefix_ids), persistent=False)
        self.image_start, self.image_tokens = writer.image_start, config.image_seq_length
        name = register_packed_attention(len(writer.prefix_ids))
        self.model.model.language_model.config._attn_implementation = name
        settings = scene_preset(preset)
        self.classes = 1 + len(settings.shapes) * len(settings.colours)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.patch_head = nn.Linear(config.text_config.hidden_size, self.classes + 4 * 21)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Projected patch features (B, P, W)."""
        config = self.model.config
        outputs = self.model.model.get_image_features(
            pixel_values,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        )
        return torch.stack(list(outputs.pooler_output))

    def patch_loss(self, features: Tensor, patches: Tensor) -> Tensor:
        """Cross-entropy of each patch's object and of the two digits of its four coordinates."""
        logits = self.patch_head(features).float()
        kind, box = patches[..., 0], patches[..., 1:]
        classes, digits = logits.split([self.classes, 4 * 21], -1)
        loss = F.cross_entropy(classes.flatten(0, 1), kind.flatten())
        tens, ones = digits[kind > 0].view(-1, 4, 21).split([11, 10], -1)
        box = box[kind > 0]
        loss = loss + F.cross_entropy(tens.flatten(0, 1), (box // 10).flatten())
        return loss + F.cross_entropy(ones.flatten(0, 1), (box % 10).flatten())

    def answer_logits(self, features: Tensor, slot_ids: Tensor, keep: Tensor) -> Tensor:
        """Logits (M, V) at the True places of `keep` (B, K, L)."""
        batch, slots, length = slot_ids.shape
        text = self.model.model.language_model
        prefix = text.embed_tokens(self.prefix_ids).expand(batch, -1, -1).to(features.dtype)
        start, stop = self.image_start, self.image_start + self.image_tokens
        asked = text.embed_tokens(slot_ids.flatten(1)).to(features.dtype)
        embeds = torch.cat([prefix[:, :start], features, prefix[:, stop:], asked], 1)
        opening = torch.arange(prefix.shape[1], device=embeds.device)
        slot = torch.arange(length, device=embeds.device) + len(opening)
        positions = torch.cat([opening, slot.repeat(slots)])[None].expand(batch, -1)
        hidden = text(
            inputs_embeds=embeds, attention_mask=None, position_ids=positions, use_cache=False
        ).last_hidden_state[:, len(opening) :]
        return torch.as_tensor(self.model.lm_head(hidden[keep.flatten(1)]))
