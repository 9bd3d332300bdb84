"""The further tasks that teach the tiny LLaVA to see: each loss against values derived by hand."""

import math

import pytest
import torch
from torch.nn import functional as F

from tools.testbed.learner import Learner
from tools.testbed.losses import pointing_loss
from tools.testbed.model import build_config, build_model, build_processor
from tools.testbed.packing import IGNORE, PackedRows, RowWriter, Targets
from tools.testbed.page_rows import CHARACTERS, COLUMNS, LINES

RED_CIRCLE, GREEN_CIRCLE = 0, 1  # classes count through the colours of a shape, then the shapes


@pytest.fixture(scope="module")
def processor():
    return build_processor("small")


@pytest.fixture(scope="module")
def learner(processor):
    return Learner("small", 0, processor).eval()


def no_objects():
    """Patches of a scene without objects, (1, 144, 5)."""
    return torch.zeros(1, 144, 5, dtype=torch.long)


def test_patches_are_named_by_the_embeddings_of_their_words(learner):
    """The cosine of a feature equal to a word's embedding is 1 there, and less at other words."""
    words = learner.model.model.language_model.embed_tokens.weight.detach()
    features, patches = torch.randn(1, 144, words.shape[1]), no_objects()
    features[0, 7], patches[0, 7, 0] = words[learner.colour_ids[GREEN_CIRCLE]], 1 + GREEN_CIRCLE
    seen = F.normalize(features[0, 7], dim=0)
    expected = 0.0
    for ids, at in ((learner.colour_ids, GREEN_CIRCLE), (learner.shape_ids, 0)):
        scores = float(learner.naming_scale.detach()) * F.normalize(words[ids], dim=1) @ seen
        expected += float(scores.logsumexp(0) - scores[at])
    with torch.no_grad():
        assert float(learner.naming_loss(features, patches)) == pytest.approx(expected, rel=1e-5)


def test_words_look_at_all_patches_that_show_them(learner):
    """Equal scores over the prefix: each patch has 1 / prefix; three red ones, two circles.

    Of the words, "red" names patches 3 to 5 and "circle" all of 3 to 6: the loss is
    log(prefix / 3) + log(prefix / 4).
    """
    patches = no_objects()
    patches[0, 3:6, 0], patches[0, 6, 0] = 1 + RED_CIRCLE, 1 + GREEN_CIRCLE
    ids = torch.stack([learner.colour_ids[0], learner.shape_ids[0]])[None, None]
    prefix = len(learner.scene_prefix)
    found = learner.looking_loss(torch.zeros(1, 2, prefix), ids, patches)
    assert float(found) == pytest.approx(math.log(prefix / 3) + math.log(prefix / 4), rel=1e-5)


def test_questions_that_name_nothing_have_no_loss_of_looking(learner):
    """Four questions such as "leftmost shape" name no colour: the mean over none is not NaN."""
    ids = torch.zeros(1, 4, 25, dtype=torch.long)
    looks = torch.zeros(1, 100, len(learner.scene_prefix), requires_grad=True)
    loss = learner.looking_loss(looks, ids, no_objects())
    loss.backward()
    assert float(loss.detach()) == 0.0 and not looks.grad.any()


def test_what_words_look_at_is_the_attention_of_the_first_layer(processor, learner):
    """The attention of an ordinary model, scaled to the prefix, in one conversation with a slot."""
    rows = PackedRows(
        RowWriter(processor.tokenizer, learner.image_tokens),
        preset="small",
        patch=8,
        seed=5,
        slots=1,
        targets=Targets(),
        easy_rows=0,
    ).batch(range(1))
    plain = build_model(build_config("small", processor.tokenizer), 0).eval()
    plain.set_attn_implementation("eager")
    prefix = len(learner.scene_prefix)
    ids = torch.cat([learner.scene_prefix[None], rows.slot_ids[:, 0]], 1)
    with torch.no_grad():
        features = learner.image_features(rows.pixel_values)
        _, looks = learner.scene_logits(features, rows.slot_ids, rows.labels != IGNORE)
        out = plain(input_ids=ids, pixel_values=rows.pixel_values, output_attentions=True)
    attention = out.attentions[0][:, 0, prefix:, :prefix]
    expected = attention / attention.sum(-1, keepdim=True)
    assert (looks.softmax(-1) - expected).abs().max() < 1e-5


def test_pointing_counts_rows_and_columns_of_characters_alone():
    """Equal scores over 12 rows and 12 columns: log 12 each; a line's end points nowhere."""
    points = [torch.zeros(3, 12), torch.zeros(3, 12)]
    places = [torch.tensor([0, 5, IGNORE]), torch.tensor([2, 11, IGNORE])]
    assert float(pointing_loss(points, places)) == pytest.approx(2 * math.log(12))
    points[0][1, 5] = points[1][1, 11] = 100.0
    assert float(pointing_loss(points, places)) == pytest.approx(math.log(12))


def test_characters_and_their_places_are_learned_where_there_are_any(processor):
    """A head that says nothing: the loss is the logarithm of the number of possible answers."""
    learner = Learner("small", 0, processor)
    torch.nn.init.zeros_(learner.character_head.weight)
    torch.nn.init.zeros_(learner.character_head.bias)
    patches = torch.zeros(1, 144, 4, dtype=torch.long)
    patches[..., 2:] = IGNORE
    patches[0, 0] = torch.tensor([1, 2, 0, 3])
    loss = learner.character_loss(torch.randn(1, 144, 192), patches)
    expected = 2 * math.log(1 + len(CHARACTERS)) + 0.3 * (math.log(LINES) + math.log(COLUMNS))
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
