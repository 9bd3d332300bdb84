"""A CUDA card that is not there: what Inductor and Triton ask about it to compile for it.

Nothing runs on it. The answers are put into torch and Triton for the whole process.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

KIB = 1024


@dataclass(frozen=True)
class Card:
    """A kind of card: its compute capability, and shared memory per block in bytes (CUDA C++
    Programming Guide, table of technical specifications per compute capability)."""

    name: str
    capability: tuple[int, int]
    shared_memory: int
    processors: int
    memory_gib: int

    @property
    def target(self) -> str:
        """The architecture's name, such as `sm_90`."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    def properties(self) -> SimpleNamespace:
        """What `torch.cuda.get_device_properties` returns, as far as it is asked for."""
        return SimpleNamespace(
            name=self.name,
            major=self.capability[0],
            minor=self.capability[1],
            multi_processor_count=self.processors,
            total_memory=self.memory_gib * 2**30,
            regs_per_multiprocessor=65536,
            max_threads_per_multi_processor=2048,
            max_threads_per_block=1024,
            warp_size=32,
            shared_memory_per_block=48 * KIB,
            shared_memory_per_block_optin=self.shared_memory,
            shared_memory_per_multiprocessor=self.shared_memory + KIB,
            L2_cache_size=50 * 2**20,
            gcnArchName="",
            is_integrated=0,
            uuid="",
            clock_rate=1_980_000,
            memory_clock_rate=2_600_000,
            memory_bus_width=5120,
        )


CARDS = {
    card.target: card
    for card in (
        Card("H100 or H200", (9, 0), 227 * KIB, 132, 80),
        Card("A100", (8, 0), 163 * KIB, 108, 80),
        Card("RTX 4090 or L4", (8, 9), 99 * KIB, 128, 24),
        Card("RTX 3090 or A10", (8, 6), 99 * KIB, 82, 24),
    )
}


class _Driver:
    """What Triton asks its driver."""

    def __init__(self, card: Card) -> None:
        self.card = card
        self.utils = SimpleNamespace(get_device_properties=lambda _: self._properties())

    def _properties(self) -> dict[str, int]:
        return {
            "max_shared_mem": self.card.shared_memory,
            "multiprocessor_count": self.card.processors,
            "warpSize": 32,
            "max_num_regs": 65536,
        }

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        major, minor = self.card.capability
        return GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: Any = None) -> int:
        return 0

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_benchmarker(self) -> None:
        return None

    def is_active(self) -> bool:
        return True


class _AnyDevice(contextlib.nullcontext[None]):
    """`torch.cuda.device`, which torch also compares types with."""

    def __init__(self, *_: Any) -> None:
        super().__init__()


class PretendedCard:
    """Answers for a card; only inside `present()` does torch find one.

    Make it before Inductor, transformers or this package's modules are imported.
    """

    def __init__(self, card: Card) -> None:
        self.card, self._is_present = card, False
        self._answer_for_torch()
        self._answer_for_triton()

    @contextlib.contextmanager
    def present(self) -> Iterator[None]:
        """The time in which `torch.cuda.is_available()`."""
        self._is_present = True
        try:
            yield
        finally:
            self._is_present = False

    def _answer_for_torch(self) -> None:
        state = torch.zeros(16, dtype=torch.uint8)
        random = {
            "get_rng_state": lambda *_, **__: state,
            "set_rng_state": lambda *_, **__: None,
        }
        # First, because other modules of torch keep these functions when they are imported.
        _replace(
            torch.cuda,
            is_available=lambda: self._is_present,
            device_count=lambda: 1,
            current_device=lambda: 0,
            get_device_properties=lambda _=None: self.card.properties(),
            get_device_capability=lambda _=None: self.card.capability,
            get_device_name=lambda _=None: self.card.name,
            is_bf16_supported=lambda *_, **__: True,
            is_initialized=lambda: False,
            synchronize=lambda *_, **__: None,
            set_device=lambda *_: None,
            device=_AnyDevice,
            _lazy_init=lambda: None,
            _exchange_device=lambda *_: 0,
            _maybe_exchange_device=lambda *_: 0,
            **random,
        )
        _replace(torch.cuda.random, **random)
        import torch._subclasses.fake_tensor as fake_tensor
        import torch.utils._triton as torch_triton

        _replace(fake_tensor, init_gpu_context=lambda *_, **__: None)
        _replace(torch_triton, has_triton=lambda *_, **__: True)

    def _answer_for_triton(self) -> None:
        from torch._inductor import scheduler
        from torch._inductor.runtime import triton_helpers
        from triton.runtime import driver

        driver.set_active(_Driver(self.card))
        nothing = {
            name: lambda *_, **__: None for name in ("set_driver_to_gpu", "set_driver_to_cpu")
        }
        _replace(triton_helpers, **nothing)
        _replace(scheduler, has_triton=lambda *_, **__: True)


def _replace(module: ModuleType, **answers: Any) -> None:
    for name, answer in answers.items():
        setattr(module, name, answer)
