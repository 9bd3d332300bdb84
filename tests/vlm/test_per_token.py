"""What two families want for each token beside its id."""

import pytest
import torch
from tiny_models import noise_image
from tiny_untried import save_untried

from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import Vlm
from perpo_pipeline.vlm.per_token import EXPERT_TYPES, MASK, over_row
from perpo_pipeline.vlm.prompts import encode_prompt, render_prompt


@pytest.fixture(scope="module")
def ernie(tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    directory = save_untried("ernie4_5_vl_moe", tmp_path_factory.mktemp("ernie"))
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


@torch.no_grad()
def test_ernies_experts_are_chosen_by_its_processors_types(ernie: Vlm) -> None:
    image = noise_image(0)
    prompt = encode_prompt(ernie, image, "where is it?")
    assert EXPERT_TYPES not in prompt.tensors
    given = ernie.processor(
        images=image, text=[render_prompt(ernie, "where is it?")], return_tensors="pt"
    )
    types = given[EXPERT_TYPES]
    assert types.sum() > (given["mm_token_type_ids"] == 1).sum() > 0  # the marks count, too
    asked = {k: v for k, v in given.items() if k != EXPERT_TYPES}
    computed = ernie.model(**asked).logits
    assert torch.equal(computed, ernie.model(**given).logits)
    text = ernie.model(**asked, **{EXPERT_TYPES: torch.zeros_like(types)}).logits
    assert (computed - text).abs().max() > 1e-2


def test_a_mask_of_images_goes_on_as_for_the_prompts_last_token() -> None:
    mask = torch.tensor([[0, 0], [1, 0], [1, 1]])[None, :, None]  # (1, P, 1, tiles)
    found = over_row({MASK: mask, "pixel_values": torch.ones(1)}, before=1, after=2)
    assert found[MASK][0, :, 0].tolist() == [[0, 0], [0, 0], [1, 0], [1, 1], [1, 1], [1, 1]]
    assert over_row({"pixel_values": mask}, 1, 2) == {"pixel_values": mask}
