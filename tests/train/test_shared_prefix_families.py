"""The shared prefix on all families, against transformers' own plain forward of each completion.

The untried ones have windows, chunks, a softcap, sinks or experts; the oracle computes attention by
transformers' eager formula where SDPA would leave something out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from tiny_by_hand import BY_HAND, prompts_by_hand, vlm_by_hand
from tiny_families import MODEL_TYPES, save_tiny_family
from tiny_models import noise_image
from tiny_training import completions_of
from tiny_untried import UNTRIED, save_untried
from torch import Tensor

from perpo_pipeline.errors import ConfigError, InputError
from perpo_pipeline.train.engine import choose_forward
from perpo_pipeline.train.scope import LORA_LINEARS, lora_config
from perpo_pipeline.train.self_check import check_own_head
from perpo_pipeline.train.separate_rows import separate_lists, separate_logps
from perpo_pipeline.train.shared_prefix import CompletionList, pack_lists, packed_logps
from perpo_pipeline.vlm.attention import block_mask, use_shared_prefix_attention
from perpo_pipeline.vlm.decoding import sample_lists
from perpo_pipeline.vlm.files import resolve_model
from perpo_pipeline.vlm.image_place import turns_of
from perpo_pipeline.vlm.loading import load_vlm
from perpo_pipeline.vlm.models import EncodedPrompt, Vlm, Way, type_arguments
from perpo_pipeline.vlm.plain_decoding import force_list
from perpo_pipeline.vlm.prompts import count_prompt_tokens, encode_prompt
from perpo_pipeline.vlm.ways import plain_logprob

# Images that are cut or kept in different ways, with prompts of different lengths; the last prompt
# has two images and an earlier turn.
PROMPTS = [
    ([(48, 40)], "where is it?"),
    ([(90, 40)], "Where is the red square right_of the blue circle?"),
    ([(64, 64), (40, 72)], "red"),
]
EARLIER = [("user", "Is <image> left of <image>?"), ("assistant", "it is")]
LENGTHS = [[5, 9, 2, 7], [1, 12], [4, 4, 3]]  # tokens of each completion


@dataclass(frozen=True)
class Family:
    """A tiny model of a family, loaded anew by each `load()`, and prompts for it."""

    load: Callable[[], Vlm]
    prompts: Callable[[Vlm], list[EncodedPrompt]]


@pytest.fixture(scope="module", params=[*MODEL_TYPES, *UNTRIED, *BY_HAND])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name = request.param
    if name in BY_HAND:
        return Family(lambda: vlm_by_hand(name), lambda vlm: prompts_by_hand(name, vlm))
    save = save_untried if name in UNTRIED else save_tiny_family
    directory = save(name, tmp_path_factory.mktemp(name))
    return Family(lambda: load(directory), prompts)


@pytest.fixture(scope="module")
def vlm(family: Family) -> Vlm:
    """As transformers itself computes it."""
    loaded = family.load()
    if loaded.layers.changed_scores:
        loaded.model.set_attn_implementation({"text_config": "eager"})  # type: ignore[operator]
    return loaded


def load(directory: Path) -> Vlm:
    return load_vlm(resolve_model(str(directory)), dtype="float32", device="cpu")


def prompts(vlm: Vlm) -> list[EncodedPrompt]:
    found = []
    for seed, (sizes, text) in enumerate(PROMPTS):
        images = [noise_image(seed + 3 * index, *size) for index, size in enumerate(sizes)]
        turns = turns_of(text, EARLIER if len(images) > 1 else (), len(images))
        found.append(encode_prompt(vlm, images, turns, box_image=len(images) - 1))
        assert found[-1].num_tokens == (
            count_prompt_tokens(vlm, found[-1].text, *sizes) or found[-1].num_tokens
        )
    return found


def uneven_lists(family: Family, vlm: Vlm) -> list[CompletionList]:
    completion = completions_of(vlm)
    return [
        CompletionList(prompt, [completion(length) for length in lengths])
        for prompt, lengths in zip(family.prompts(vlm), LENGTHS, strict=True)
    ]


@torch.no_grad()
def own_forward(vlm: Vlm, prompt: EncodedPrompt, completion: Sequence[int]) -> float:
    """One plain forward of the whole transformers model; it computes positions and mask itself."""
    ids = torch.cat([prompt.input_ids, torch.tensor(completion)])[None]
    types = prompt.token_types
    if types is not None:
        other = 1 if vlm.family.name == "paligemma" else 0
        types = torch.nn.functional.pad(types, (0, len(completion)), value=other)[None]
    arguments = type_arguments(vlm.model, types) | prompt.tensors
    logits = vlm.model(input_ids=ids, **arguments).logits[0]
    logps = logits[prompt.num_tokens - 1 : -1].log_softmax(-1)
    return float(logps.gather(1, torch.tensor(completion)[:, None]).sum())


def own_forwards(vlm: Vlm, lists: Sequence[CompletionList]) -> Tensor:
    rows = [[own_forward(vlm, entry.prompt, y) for y in entry.completions] for entry in lists]
    width = max(map(len, rows))
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("split", [False, True])
def test_packed_logps_equal_the_models_own_forwards(
    family: Family, vlm: Vlm, split: bool, one_row: bool
) -> None:
    """With transformers' SDPA over the whole mask, and with the prefix as a causal part of it."""
    lists = uneven_lists(family, vlm)
    batch = pack_lists(vlm, lists, one_row=one_row)
    assert len(batch.input_ids) == (1 if one_row else 3)
    packing = family.load()
    if split:
        use_shared_prefix_attention(packing.model, flex=False)
    with torch.no_grad():
        logps = packed_logps(packing.model, batch)
    torch.testing.assert_close(logps, own_forwards(vlm, lists), atol=1e-4, rtol=0)


def test_separate_logps_equal_the_models_own_forwards(family: Family, vlm: Vlm) -> None:
    lists = uneven_lists(family, vlm)
    with torch.no_grad():
        logps = separate_logps(vlm.model, separate_lists(vlm, lists))
    torch.testing.assert_close(logps, own_forwards(vlm, lists), atol=1e-4, rtol=0)


def test_a_model_with_its_head_elsewhere_gets_separate_rows() -> None:
    """Llama 4."""
    vlm = vlm_by_hand("llama4")
    assert vlm.way == Way(False, "its head is inside its language model")
    with pytest.raises(ConfigError, match="its head is inside its language model"):
        choose_forward(vlm, "shared-prefix")
    family = Family(lambda: vlm, lambda _: prompts_by_hand("llama4", vlm))
    lists = uneven_lists(family, vlm)
    with torch.no_grad():
        logps = separate_logps(vlm.model, separate_lists(vlm, lists))
    torch.testing.assert_close(logps, own_forwards(vlm, lists), atol=1e-4, rtol=0)
    (row, *_) = sample_lists(
        vlm, family.prompts(vlm)[:1], num_samples=2, temperature=1.0, max_new_tokens=3, seeds=[0]
    )
    for one in row:
        expected = own_forward(vlm, lists[0].prompt, one.token_ids)
        assert one.sampler_logprob == pytest.approx(expected, abs=1e-4)


def test_a_model_with_layers_that_look_at_images_gets_separate_rows(tmp_path: Path) -> None:
    """Llama 3.2 Vision, as transformers' own decoding computes it token by token; its mask of the
    images is as long as the prompt."""
    vlm = load(save_untried("mllama", tmp_path))
    assert "look at images" in vlm.way.why and not vlm.shares_prefix
    family = Family(lambda: vlm, prompts)
    lists = uneven_lists(family, vlm)
    rows = [force_list(vlm, entry.prompt, entry.completions) for entry in lists]
    own = torch.tensor([row + [0.0] * (4 - len(row)) for row in rows], dtype=torch.float64)
    for padding in (0, 5):
        for some in (slice(0, 2), slice(2, 3)):
            batch = separate_lists(vlm, lists[some], left_padding=padding)
            with torch.no_grad():
                logps = separate_logps(vlm.model, batch).double()
            torch.testing.assert_close(logps, own[some, : logps.shape[1]], atol=1e-4, rtol=0)
        found = plain_logprob(vlm, lists[1].prompt, lists[1].completions[1], padding)
        assert found == pytest.approx(rows[1][1], abs=1e-4)
    with pytest.raises(InputError, match="prompts with 1 and 2 images together"):
        separate_lists(vlm, lists)
    check_own_head(vlm, lists[1])
    blind = replace(lists[0].prompt, tensors={})
    assert abs(force_list(vlm, blind, lists[0].completions[:1])[0] - rows[0][0]) > 1e-2


# The six known families, windows with images both ways, and a softcap: torch compiles a kernel for
# each on the CPU. Sinks need a GPU.
@pytest.mark.slow
@pytest.mark.parametrize("family", [*MODEL_TYPES, "gemma3-wide", "gemma2"], indirect=True)
def test_flex_attention_gives_the_models_own_forwards(family: Family, vlm: Vlm) -> None:
    """The first list is long enough for blocks in which nothing is masked."""
    question = "".join(f" {number}" for number in range(60))
    answers = [[*range(start, start + 60), vlm.eos_token_ids[0]] for start in (20, 90, 160)]
    long = CompletionList(encode_prompt(vlm, noise_image(7), question), answers)
    lists = [long, *uneven_lists(family, vlm)]
    flex = family.load()
    use_shared_prefix_attention(flex.model, flex=True)
    batch = pack_lists(flex, lists)
    assert len(batch.input_ids) == 1
    assert block_mask(batch.spans).full_kv_num_blocks.sum() > 0
    with torch.no_grad():
        logps = packed_logps(flex.model, batch)
    torch.testing.assert_close(logps, own_forwards(vlm, lists), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # PEFT's own, for experts
def test_lora_gradients_equal_those_of_separate_forwards(family: Family) -> None:
    """In separate rows and in one row, with both masks, from an adapter that is not zero."""
    vlm = family.load()
    torch.manual_seed(3)
    vlm.model = get_peft_model(vlm.model, lora_config(vlm, rank=4, alpha=8)).train()
    for name, parameter in vlm.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    lists = uneven_lists(family, vlm)
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    def gradients(logps: Tensor) -> dict[str, Tensor]:
        (logps * weights).sum().backward()
        named = dict(vlm.model.named_parameters())
        found = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
        vlm.model.zero_grad()
        return found

    plain = gradients(separate_logps(vlm.model, separate_lists(vlm, lists)))
    layers = vlm.model.get_base_model().get_decoder().layers
    linears = [
        name
        for name, module in layers.named_modules()
        if name.split(".")[-1] in LORA_LINEARS.split("|")
    ]
    assert len(linears) >= 4 * len(layers)
    trained = {name for name, p in vlm.model.named_parameters() if p.requires_grad}
    assert plain.keys() == trained
    if vlm.family.name != "glm-4.5v":  # there PEFT chooses experts instead of some linear layers
        assert len(plain) == len(linears) * 2  # A and B
    for split, one_row in product((False, True), (False, True)):
        if split:
            use_shared_prefix_attention(vlm.model.get_base_model(), flex=False)
        ours = gradients(packed_logps(vlm.model, pack_lists(vlm, lists, one_row=one_row)))
        assert ours.keys() == plain.keys()
        for name, gradient in ours.items():
            assert gradient.norm() > 0
            assert (gradient - plain[name]).norm() < 1e-4 * plain[name].norm(), name


def test_sampled_logprobs_equal_the_models_own_forwards(family: Family, vlm: Vlm) -> None:
    packing, given = replace(family.load(), prove=None), family.prompts(vlm)
    assert packing.shares_prefix
    drawn = sample_lists(
        packing, given, num_samples=5, temperature=1.0, max_new_tokens=6, seeds=[0, 1, 2]
    )
    lists = [
        CompletionList(prompt, [c.token_ids for c in row])
        for prompt, row in zip(given, drawn, strict=True)
    ]
    sampled = torch.tensor([[c.sampler_logprob for c in row] for row in drawn])
    torch.testing.assert_close(sampled, own_forwards(vlm, lists), atol=1e-4, rtol=0)
