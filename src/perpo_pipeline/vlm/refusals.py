"""What an error says about a model: that it cannot do something, or only that memory ran out."""

import torch

from perpo_pipeline.errors import PerpoError

# What processors and forwards raise that cannot take our prompts, masks, positions or cache. Some
# have other causes: see the functions below.
REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    PerpoError,
    RuntimeError,
    TypeError,
    ValueError,
)
# torch's words for a CPU's full memory (a plain RuntimeError) and cuBLAS's for a GPU's.
FULL = ("DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of an accelerator or of the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)


def says_nothing(error: BaseException) -> bool:
    """Whether the error is about the accelerator, not about the model: no more can run on it."""
    if isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and str(error).startswith("CUDA error")
