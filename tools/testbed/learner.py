"""The tiny LLaVA in training: packed rows, and further tasks that teach it to see and to point."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaProcessor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from perpo_pipeline.testbed.scenes import scene_preset
from tools.testbed.attention import register_attention
from tools.testbed.model import build_config, build_model, token_id
from tools.testbed.packing import IGNORE, RowWriter
from tools.testbed.page_rows import CHARACTERS, COLUMNS, LINES, PageWriter

# The language model's layer after which the pointing task reads where the next character stands:
# the layers after it can look there.
POINTING_LAYER = 3


class Learner(nn.Module):
    """The model on packed rows, with the heads of the further tasks, which are discarded later."""

    scene_prefix: Tensor
    colour_ids: Tensor
    shape_ids: Tensor
    character_ids: Tensor
    page_prefix: Tensor

    def __init__(self, preset: str, seed: int, processor: LlavaProcessor) -> None:
        super().__init__()
        config: Any = build_config(preset, processor.tokenizer)
        self.model: Any = build_model(config, seed)
        self.image_tokens = config.image_seq_length
        self.grid = config.vision_config.image_size // config.vision_config.patch_size
        for name, writer in (
            ("scene_prefix", RowWriter(processor.tokenizer, self.image_tokens)),
            ("page_prefix", PageWriter(processor.tokenizer, self.image_tokens)),
        ):
            self.register_buffer(name, torch.tensor(writer.prefix_ids), persistent=False)
            self.image_start = writer.image_start
        name = register_attention()
        self.model.model.language_model.config._attn_implementation = name
        self.model.model.vision_tower.config._attn_implementation = name
        settings = scene_preset(preset)
        tokenizer = processor.tokenizer
        self.colours = len(settings.colours)
        for name, words in (("colour_ids", settings.colours), ("shape_ids", settings.shapes)):
            ids = [token_id(tokenizer, f"\u0120{word}") for word in words]
            self.register_buffer(name, torch.tensor(ids), persistent=False)
        pairs = [[token_id(tokenizer, f"{gap}{c}") for gap in ("", "\u0120")] for c in CHARACTERS]
        self.register_buffer("character_ids", torch.tensor(pairs), persistent=False)
        self.classes = 1 + len(settings.shapes) * len(settings.colours)
        self.character_parts = [1 + len(CHARACTERS)] * 2 + [LINES, COLUMNS]
        width = config.text_config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.naming_scale = nn.Parameter(torch.tensor(5.0))
            self.object_head = nn.Linear(width, self.classes + 4 * 21)
            self.character_head = nn.Linear(width, sum(self.character_parts))
            self.pointing_head = nn.Linear(width, 2 * self.grid)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Projected patch features (B, P, W)."""
        config = self.model.config
        outputs = self.model.model.get_image_features(
            pixel_values,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        )
        return torch.stack(list(outputs.pooler_output))

    def object_loss(self, features: Tensor, patches: Tensor) -> Tensor:
        """Cross-entropy of each patch's object and of the two digits of its four coordinates."""
        logits = self.object_head(features).float()
        kind, box = patches[..., 0], patches[..., 1:]
        classes, digits = logits.split([self.classes, 4 * 21], -1)
        loss = F.cross_entropy(classes.flatten(0, 1), kind.flatten())
        tens, ones = digits[kind > 0].view(-1, 4, 21).split([11, 10], -1)
        box = box[kind > 0]
        loss = loss + F.cross_entropy(tens.flatten(0, 1), (box // 10).flatten())
        return loss + F.cross_entropy(ones.flatten(0, 1), (box % 10).flatten())

    def _names(self, features: Tensor, ids: Tensor) -> Tensor:
        """Logits (..., N): how well each feature fits the embeddings of N words, (N,) or (N, 2)."""
        words = self.model.model.language_model.embed_tokens(ids).float()
        words = words.mean(1) if words.ndim == 3 else words
        return self.naming_scale * (
            F.normalize(features.float(), dim=-1) @ F.normalize(words, dim=-1).T
        )

    def naming_loss(self, features: Tensor, patches: Tensor) -> Tensor:
        """Cross-entropy of each object's colour and shape among the embeddings of their words.

        So what a patch shows and the word for it lie close together in the language model.
        """
        kind = patches[..., 0]
        seen, kind = features[kind > 0], kind[kind > 0] - 1
        colours = F.cross_entropy(self._names(seen, self.colour_ids), kind % self.colours)
        return colours + F.cross_entropy(self._names(seen, self.shape_ids), kind // self.colours)

    def spelling_loss(self, features: Tensor, patches: Tensor) -> Tensor:
        """Cross-entropy of each patch's first character among the embeddings of its two tokens."""
        kind = patches[..., 0]
        names = self._names(features[kind > 0], self.character_ids)
        return F.cross_entropy(names, kind[kind > 0] - 1)

    def character_loss(self, features: Tensor, patches: Tensor) -> Tensor:
        """Cross-entropy of each patch's characters, and of the first one's line and place in it."""
        parts = self.character_head(features).float().split(self.character_parts, -1)
        losses = [
            F.cross_entropy(logits.flatten(0, 1), patches[..., k].flatten(), ignore_index=IGNORE)
            for k, logits in enumerate(parts)
        ]
        return losses[0] + losses[1] + 0.3 * (losses[2] + losses[3])

    def looking_loss(self, looks: Tensor, slot_ids: Tensor, patches: Tensor) -> Tensor:
        """- log of the attention from each colour and shape to the patches that show it.

        looks: scores (B, K * L, prefix) of `scene_logits`. So a word's place knows where and what
        its object is, and the answer has to read it from there only. 0 where no word names any.
        """
        kind, ids = patches[..., 0] - 1, slot_ids.flatten(1)[..., None]
        start, stop = self.image_start, self.image_start + self.image_tokens
        chances = looks.log_softmax(-1)[..., start:stop]
        losses: list[Tensor] = []
        for words, shown in (
            (self.colour_ids, kind % self.colours),
            (self.shape_ids, kind.div(self.colours, rounding_mode="floor")),
        ):
            shows = (shown[..., None] == torch.arange(len(words), device=kind.device)) & (
                kind[..., None] >= 0
            )
            target = ((ids == words).float() @ shows.float().transpose(1, 2)) > 0  # (B, K * L, P)
            named = target.any(-1)
            seen = chances[named].masked_fill(~target[named], -1e4).logsumexp(-1)
            losses.append(-seen.sum() / max(1, len(seen)))
        return losses[0] + losses[1]

    def scene_logits(
        self, features: Tensor, slot_ids: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits (M, V) at the True places of `keep` (B, K, L), and what the words look at.

        The second are scores (B, K * L, prefix) of the first layer's first head, before the
        softmax over the tokens of the prefix.
        """
        _, slots, length = slot_ids.shape
        slot = torch.arange(length, device=features.device) + len(self.scene_prefix)
        _, hidden = self._language(
            features, self.scene_prefix, slot_ids.flatten(1), slot.repeat(slots), length
        )
        words = self.model.model.language_model.embed_tokens(slot_ids.flatten(1))
        looks = self._looks(features, words.to(features.dtype), slot.repeat(slots))
        return torch.as_tensor(self.model.lm_head(hidden[keep.flatten(1)])), looks

    def page_logits(
        self, features: Tensor, ids: Tensor, keep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (M, V) at the True places of `keep` (B, L), and of the next character's patch."""
        prefix = self.page_prefix[:-1]  # the first of `ids` is the prompt's last token
        places = torch.arange(ids.shape[1], device=features.device) + len(prefix)
        middle, hidden = self._language(features, prefix, ids, places, ids.shape[1])
        rows, columns = torch.split(self.pointing_head(middle[keep]).float(), self.grid, -1)
        return torch.as_tensor(self.model.lm_head(hidden[keep])), rows, columns

    def _looks(self, features: Tensor, words: Tensor, places: Tensor) -> Tensor:
        text = self.model.model.language_model
        layer, attention = text.layers[0], text.layers[0].self_attn
        prefix = text.embed_tokens(self.scene_prefix).expand(len(words), -1, -1)
        prefix = prefix.to(features.dtype)
        start, stop = self.image_start, self.image_start + self.image_tokens
        hidden = torch.cat([prefix[:, :start], features, prefix[:, stop:], words], 1)
        opening = prefix.shape[1]
        positions = torch.cat([torch.arange(opening, device=hidden.device), places])[None]
        normed, width = layer.input_layernorm(hidden), attention.head_dim
        query, key = (
            F.linear(normed, part.weight[:width])[:, None]
            for part in (attention.q_proj, attention.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, *text.rotary_emb(hidden, positions))
        scores = query[:, 0, opening:] @ key[:, 0, :opening].transpose(-1, -2)
        return torch.as_tensor(scores.float() * width**-0.5)

    def _language(
        self, features: Tensor, prefix_ids: Tensor, ids: Tensor, places: Tensor, slot: int
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, W) of `ids` (B, T) after the pointing layer and after the last."""
        text = self.model.model.language_model
        prefix = text.embed_tokens(prefix_ids).expand(len(ids), -1, -1).to(features.dtype)
        start, stop = self.image_start, self.image_start + self.image_tokens
        own = text.embed_tokens(ids).to(features.dtype)
        hidden = torch.cat([prefix[:, :start], features, prefix[:, stop:], own], 1)
        opening = len(prefix_ids)
        positions = torch.cat([torch.arange(opening, device=hidden.device), places])[None]
        rotary = text.rotary_emb(hidden, positions)
        middle = hidden
        for number, layer in enumerate(text.layers, 1):
            hidden = layer(hidden, position_embeddings=rotary, packing=(opening, slot))
            if number == POINTING_LAYER:
                middle = hidden
        return middle[:, opening:], text.norm(hidden)[:, opening:]
