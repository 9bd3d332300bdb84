"""Lower the graphs that Dynamo traces of a layer on the CPU as if they had been traced on CUDA.

The graphs are traced with tensors on the CPU, moved to `cuda` and given to Inductor, which compiles
every Triton kernel to a binary. The first call of the layer ends there: nothing is computed.
"""

import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tools.check_cuda.cards import Card, PretendedCard
from tools.check_cuda.layers import Case, build, two_lists

CUDA = torch.device("cuda", 0)


class CompiledError(Exception):
    """Ends a layer's call once its graphs are compiled."""


@dataclass
class Graph:
    """A compiled graph: by kernel, the bytes of shared memory of each of its configurations."""

    case: Case
    kind: str
    seconds: float = 0.0
    kernels: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    error: str = ""

    @property
    def shared_memory(self) -> int:
        """Of the kernel that needs most, in its smallest configuration."""
        return max(map(min, self.kernels.values()), default=0)

    def fault(self, card: Card) -> str:
        """Why the graph would not run on the card; empty if it would."""
        if self.error:
            return self.error
        if not self.kernels:
            return "no kernels were compiled"
        if not any("flex_attention" in name for name in self.kernels):
            return "Flex was not compiled into a kernel"
        return "too much shared memory" if self.shared_memory > card.shared_memory else ""


class Compiler:
    """Compiles layers for a card and collects their graphs."""

    def __init__(self, card: PretendedCard) -> None:
        self.card = card
        self.graphs: list[Graph] = []
        self._kernels: dict[str, list[int]] = {}
        _set_up_inductor()
        self._record_kernels()
        self._trace_as_on_cuda()

    def compile(self, case: Case) -> list[Graph]:
        """The graphs of the reference (inference) and of training (forward, backward)."""
        from perpo_pipeline.config.train import TrainSettings
        from perpo_pipeline.train.compilation import compile_layers
        from perpo_pipeline.train.scope import make_trainable
        from perpo_pipeline.vlm.attention import use_shared_prefix_attention

        self.graphs = []
        vlm = build(case)
        inner: Any = vlm.model
        use_shared_prefix_attention(inner, flex=True)
        compile_layers(inner, case.row_lengths, backend=self._backend(case))
        with torch.no_grad():
            self._call(case, vlm, "inference")
        settings = TrainSettings(row_lengths=case.row_lengths, levers=list(case.levers))
        adapted: Any = make_trainable(vlm, settings).train()
        # As in every layer but the first: the input has a gradient.
        adapted.enable_input_require_grads()
        vlm.model = adapted
        self._call(case, vlm, "forward")
        torch._dynamo.reset()
        return self.graphs

    def _call(self, case: Case, vlm: Any, kind: str) -> None:
        from perpo_pipeline.train.shared_prefix import pack_lists, packed_logps

        batch = pack_lists(vlm, two_lists(vlm), row_lengths=case.row_lengths)
        try:
            packed_logps(vlm.model, batch)
        except CompiledError:
            return
        except Exception as error:  # noqa: BLE001 (whatever torch raises is the finding)
            if not (self.graphs and self.graphs[-1].error):
                self.graphs.append(Graph(case, kind, error=_last_line(error)))
            return
        self.graphs.append(Graph(case, kind, error="the layer was not compiled"))

    def _backend(self, case: Case) -> Any:
        from torch._dynamo.backends.common import aot_autograd
        from torch._functorch.partitioners import min_cut_rematerialization_partition
        from torch._inductor.decomposition import select_decomp_table

        return aot_autograd(
            fw_compiler=partial(self._lower, case, "forward"),
            bw_compiler=partial(self._lower, case, "backward"),
            inference_compiler=partial(self._lower, case, "inference"),
            partition_fn=partial(min_cut_rematerialization_partition, compiler="inductor"),
            decompositions=select_decomp_table(),
        )

    def _lower(
        self, case: Case, kind: str, module: torch.fx.GraphModule, inputs: Sequence[Any]
    ) -> Any:
        from torch._guards import detect_fake_mode
        from torch._inductor import virtualized
        from torch._inductor.compile_fx import compile_fx_inner

        graph = Graph(case, kind)
        self._kernels = graph.kernels
        self.graphs.append(graph)
        mode: Any = detect_fake_mode(inputs)
        moved = _move_to_cuda(module, inputs, mode)
        started = time.monotonic()
        try:
            with virtualized.V.set_fake_mode(mode), self.card.present():
                compile_fx_inner(module, moved, is_backward=kind == "backward")
        except Exception as error:
            graph.error = _last_line(error)
            raise
        finally:
            graph.seconds = time.monotonic() - started
        return _stop

    def _record_kernels(self) -> None:
        """Write down each kernel that is compiled; do not load it, there is no card."""
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner

        autotuner: Any = CachingAutotuner
        compile_config, precompile = autotuner._precompile_config, autotuner.precompile

        def recorded(self_: Any, config: Any) -> Any:
            result = compile_config(self_, config)
            self._kernels[self_.fn.__name__].append(result.kernel.metadata.shared)
            return result

        def only_compile(self_: Any, *_: Any, **__: Any) -> Any:
            return precompile(self_, warm_cache_only=True)

        autotuner._precompile_config, autotuner.precompile = recorded, only_compile

    def _trace_as_on_cuda(self) -> None:
        """Let Flex be traced on the CPU with a backward pass, and with the log-sum-exp that the
        backward reads."""
        from torch.nn.attention import flex_attention

        flex: Any = flex_attention
        options = flex._apply_kernel_options

        def with_logsumexp(*args: Any, **kwargs: Any) -> Any:
            return options(*args, **kwargs) | {"OUTPUT_LOGSUMEXP": True}

        flex._validate_device = lambda *_: None
        flex._apply_kernel_options = with_logsumexp


def _set_up_inductor() -> None:
    """Compile in this process, at once and without a cache of whole graphs."""
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config

    inductor: Any = inductor_config
    functorch: Any = functorch_config
    inductor.compile_threads = 1
    inductor.force_disable_caches = True
    inductor.use_static_cuda_launcher = False
    if hasattr(inductor, "use_static_triton_launcher"):
        inductor.use_static_triton_launcher = False
    functorch.force_non_lazy_backward_lowering = True


def _move_to_cuda(module: torch.fx.GraphModule, inputs: Sequence[Any], mode: Any) -> list[Any]:
    """Move a graph and its subgraphs to CUDA; returns its inputs there."""
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    def moved(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=CUDA)

    with mode:
        for part in module.modules():
            if not isinstance(part, torch.fx.GraphModule):
                continue
            for node in part.graph.nodes:
                if node.kwargs.get("device") is not None:
                    node.kwargs = {**node.kwargs, "device": CUDA}
                node.args = tuple(
                    CUDA if isinstance(arg, torch.device) else arg for arg in node.args
                )
                if "val" in node.meta and isinstance(node.meta["val"], Tensor):
                    node.meta["val"] = moved(node.meta["val"])
            part.recompile()
        there = [moved(value) for value in inputs]
    FakeTensorProp(module, mode).propagate_dont_convert_inputs(*there)
    return there


def _stop(*_: Any, **__: Any) -> Any:
    raise CompiledError


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
