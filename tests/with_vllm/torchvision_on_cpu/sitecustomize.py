"""Lets torchvision be imported beside a CPU build of torch; its folder must be on PYTHONPATH.

vLLM's processors need torchvision's Python part. The package registry has it with operators that
are compiled for CUDA and cannot be loaded here, and its import then fails on two of them. It is
enough to declare these two, without any code behind: nothing in the tests calls them. Python runs a
`sitecustomize` at the start of every process, vLLM's own among them; torch is imported only where
somebody asks for torchvision.
"""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

DECLARATIONS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing itself; declares the operators at the first look for torchvision."""

    library: Any = None  # the declarations end with it

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == "torchvision" and self.library is None:
            import torch

            type(self).library = torch.library.Library("torchvision", "DEF")
            for declaration in DECLARATIONS:
                self.library.define(declaration)


sys.meta_path.insert(0, _BeforeTorchvision())
