"""Master weights against torch's AdamW in float32, and through files and the Trainer."""

import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_cosine_schedule_with_warmup,
)

from perpo_pipeline.errors import ArtifactError
from perpo_pipeline.train.master_weights import MasterAdamW

LR = 5e-6


class Regression(nn.Module):
    """A tiny network and its squared error, with the interface that the Trainer needs."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        self.layers = layers.to(torch.bfloat16).to(dtype)  # every type starts at the same place

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = self.layers(x.to(self.layers[0].weight.dtype))
        return {"loss": (found.float() - y).square().mean()}


def batches(num: int, seed: int = 1) -> Iterable[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(8, 4, generator=generator)
    for _ in range(num):
        x = torch.randn(32, 8, generator=generator)
        yield {"x": x, "y": x @ truth}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, num: int, seed: int = 1) -> None:
    for batch in batches(num, seed):
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().double().flatten() for t in tensors])


def assert_identical(found: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def two_groups(model: nn.Module) -> list[dict]:
    first, *others = model.parameters()
    return [{"params": [first], "lr": 3e-3, "weight_decay": 0.1}, {"params": others}]


# --- the arithmetic is torch's -------------------------------------------------------------------


def test_float32_weights_train_to_the_last_bit_as_with_torchs_adamw():
    ours, theirs = Regression(torch.float32), Regression(torch.float32)
    optimizer = MasterAdamW(two_groups(ours), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.02)
    train(ours, optimizer, 10)
    train(
        theirs,
        torch.optim.AdamW(two_groups(theirs), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.02),
        10,
    )
    assert_identical(ours.parameters(), theirs.parameters())
    for parameter, master in optimizer.masters().items():
        assert master.data_ptr() == parameter.data_ptr()  # no copies


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_masters_train_to_the_last_bit_as_float32_weights_with_the_same_gradients(dtype):
    """The scheduler's learning rates arrive too; the module holds the masters, rounded."""
    model, same = Regression(dtype), Regression(dtype).float()
    ours = MasterAdamW(two_groups(model), lr=1e-3)
    theirs = torch.optim.AdamW(two_groups(same), lr=1e-3)
    schedules = [get_cosine_schedule_with_warmup(o, 3, 10) for o in (ours, theirs)]
    for batch in batches(10):
        ours.zero_grad()
        model(**batch)["loss"].backward()
        for p, q in zip(model.parameters(), same.parameters(), strict=True):
            q.grad = p.grad.float()
        for steps in (ours, theirs, *schedules):
            steps.step()
    assert_identical(ours.masters().values(), same.parameters())
    assert_identical(model.parameters(), [master.to(dtype) for master in ours.masters().values()])
    assert all(state["master"].grad is None for state in ours.state.values())  # memory


def test_bf16_with_masters_ends_where_float32_training_ends_and_bf16_alone_hardly_moves():
    """200 steps at 5e-6 from one start, as shares of the distance that float32 training covers.

    Measured with four seeds: .0009 to .0012 with masters, whose gradients come from the bf16
    module, .9976 to 1.0000 without.
    """
    start = flat(Regression(torch.float32).parameters())
    exact, mastered, plain = (
        Regression(dtype) for dtype in (torch.float32, torch.bfloat16, torch.bfloat16)
    )
    optimizer = MasterAdamW(mastered.parameters(), lr=LR)
    train(exact, torch.optim.AdamW(exact.parameters(), lr=LR), 200)
    train(mastered, optimizer, 200)
    train(plain, torch.optim.AdamW(plain.parameters(), lr=LR), 200)
    end = flat(exact.parameters())
    way = (end - start).norm()
    assert (flat(optimizer.masters().values()) - end).norm() < 0.01 * way
    assert (flat(plain.parameters()) - end).norm() > 0.9 * way


class Calls(TorchDispatchMode):
    """Counts the calls of torch's operators."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


def test_the_calls_of_a_step_do_not_grow_with_the_number_of_matrices(monkeypatch):
    """Gradients in, fused update, weights out; what is allocated for the gradients aside."""
    weights = [nn.Parameter(torch.randn(2, 2).bfloat16()) for _ in range(448)]
    optimizer = MasterAdamW(weights, lr=LR, fused=True)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    monkeypatch.setattr(torch.optim.AdamW, "__init__", pytest.fail)  # kept from the first step
    with Calls() as calls:
        optimizer.step()
    assert calls.counts.pop("empty_like") == 448
    assert calls.counts["_fused_adamw_"] == 1 and calls.counts["_foreach_copy_"] == 2
    assert calls.counts.total() <= 8  # the profiler's marks among them


# --- what is trained, and from where -------------------------------------------------------------


def test_weights_without_a_gradient_stay_and_have_no_master_until_they_get_one():
    model = Regression(torch.bfloat16)
    optimizer = MasterAdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    frozen = model.layers[0].weight.requires_grad_(False)
    before = frozen.clone()
    train(model, optimizer, 2)
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state
    assert torch.equal(optimizer.masters()[frozen], before.float())
    frozen.requires_grad_()
    train(model, optimizer, 1)
    assert not torch.equal(frozen, before)


def test_weights_loaded_before_the_first_step_are_where_training_starts():
    """accelerate loads the still empty state into the optimiser as it wraps it."""
    late, early = Regression(torch.bfloat16, seed=3), Regression(torch.bfloat16, seed=4)
    optimizer = MasterAdamW(late.parameters(), lr=LR)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.masters()  # looking at them does not make them
    late.load_state_dict(early.state_dict())
    train(late, optimizer, 3)
    expected = MasterAdamW(early.parameters(), lr=LR)
    train(early, expected, 3)
    assert_identical(optimizer.masters().values(), expected.masters().values())


def test_a_closure_computes_the_gradients_of_the_step():
    model = Regression(torch.bfloat16)
    optimizer = MasterAdamW(model.parameters(), lr=1e-2)
    (batch,) = batches(1)

    def closure() -> Tensor:
        loss = model(**batch)["loss"]
        loss.backward()
        return loss

    first = optimizer.step(closure)
    assert model(**batch)["loss"] < first


# --- state ---------------------------------------------------------------------------------------


def through_a_file(state: dict) -> dict:
    """As the Trainer saves and loads it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_last_bit(dtype):
    """Masters, moments and module; the module's weights come back with the state where rounded."""
    model, resumed = Regression(dtype), Regression(dtype, seed=9)
    optimizer = MasterAdamW(two_groups(model), lr=LR)
    train(model, optimizer, 5)
    if dtype == torch.float32:
        resumed.load_state_dict(model.state_dict())
    continued = MasterAdamW(two_groups(resumed), lr=1.0)
    continued.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_identical(resumed.parameters(), model.parameters())
    train(model, optimizer, 5, seed=2)
    train(resumed, continued, 5, seed=2)
    assert_identical(resumed.parameters(), model.parameters())
    assert_identical(continued.masters().values(), optimizer.masters().values())
    for p, q in zip(resumed.parameters(), model.parameters(), strict=True):
        found, expected = continued.state[p], optimizer.state[q]
        assert found.keys() == expected.keys()
        assert_identical(found.values(), [expected[key] for key in found])
        assert found["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize(
    ("saved", "optimizer"),
    [
        pytest.param(torch.bfloat16, torch.optim.AdamW, id="bf16 without masters"),
        pytest.param(torch.float32, MasterAdamW, id="float32"),
    ],
)
def test_a_state_without_masters_is_refused_and_changes_nothing(saved, optimizer):
    model, other = Regression(torch.bfloat16), Regression(saved)
    saving = optimizer(other.parameters(), lr=LR)
    train(other, saving, 1)
    loading = MasterAdamW(model.parameters(), lr=1e-3)
    with pytest.raises(ArtifactError, match="another precision"):
        loading.load_state_dict(saving.state_dict())
    assert not loading.state
    assert loading.param_groups[0]["lr"] == 1e-3


def test_a_state_with_masters_is_refused_for_float32_weights():
    model, other = Regression(torch.float32), Regression(torch.bfloat16)
    saving = MasterAdamW(other.parameters(), lr=LR)
    train(other, saving, 1)
    with pytest.raises(ArtifactError, match="another precision"):
        MasterAdamW(model.parameters(), lr=LR).load_state_dict(saving.state_dict())


# --- through the Trainer -------------------------------------------------------------------------


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == self.step


def trained(directory: Path, how: str, *, stop_at: int = 8, resume: bool = False) -> Trainer:
    model = Regression(torch.bfloat16)
    if how == "class":
        options = {"optimizer_cls_and_kwargs": (MasterAdamW, {"lr": LR})}
    else:
        options = {"optimizers": (MasterAdamW(model.parameters(), lr=LR), None)}
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=8,
        save_steps=3,
        warmup_steps=2,
        learning_rate=LR,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=100,
        dataloader_pin_memory=False,
    )
    (batch,) = batches(1)
    rows = [{"x": x, "y": y} for x, y in zip(batch["x"], batch["y"], strict=True)]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=rows, callbacks=[StopAt(stop_at)], **options
    )
    trainer.train(resume_from_checkpoint=resume or None)
    assert trainer.state.global_step == stop_at
    return trainer


@pytest.mark.parametrize("how", ["class", "instance"])
def test_the_trainer_resumes_a_run_to_the_last_bit_of_the_uninterrupted_one(tmp_path: Path, how):
    whole = trained(tmp_path / "whole", how)
    trained(tmp_path / "halves", how, stop_at=3)
    resumed = trained(tmp_path / "halves", how, resume=True)
    assert_identical(resumed.model.parameters(), whole.model.parameters())
    found, expected = (list(t.optimizer.optimizer.masters().values()) for t in (resumed, whole))
    assert_identical(found, expected)
    assert not torch.equal(flat(expected), flat(whole.model.parameters()))  # unrounded indeed
