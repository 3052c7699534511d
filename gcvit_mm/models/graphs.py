"""CUDA graphs of a backbone: its kernels are recorded once for each image size, then replayed.

Starting the kernels of a GC ViT takes Python longer than a fast GPU needs to run them.
"""

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .attention import RECORDING

MOST_SIZES = 64
"""Each recorded size keeps its output and the gradients of all weights in GPU memory."""


class CudaGraphs:
    """The recorded passes of a backbone, by the size of its images and all that changes kernels."""

    def __init__(self) -> None:
        self.recorded: dict[tuple, _Recorded] = {}
        self.addresses: tuple[int, ...] = ()
        self.pool: Any = None
        self.pending: Callable[[], Any] = lambda: None

    def __reduce__(self) -> tuple:
        return CudaGraphs, ()  # a copy of the backbone has other weights

    def run(self, backbone: Any, x: Tensor) -> tuple[Tensor, ...]:
        """Replay the pass of a backbone, which is recorded if it is the first of its kind.

        Passes run without graphs where these cannot be used: on other devices, with hooks on
        modules, with sharded weights, and while an earlier pass waits for its backward pass, which
        needs the memory that a replay writes to.
        """
        modules, tensors = _contents(backbone)
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        sharded = hasattr(tensors[0], 'full_tensor')
        traced = torch.compiler.is_compiling() or not x.is_cuda
        if traced or hooked or sharded or x.requires_grad or self.pending() is not None:
            return backbone.pyramid(x)
        with torch.cuda.device_of(x):
            return self._replay(backbone, x, modules, tensors)

    def _replay(
        self, backbone: Any, x: Tensor, modules: list[nn.Module], tensors: list[Tensor]
    ) -> tuple[Tensor, ...]:
        addresses = tuple(tensor.data_ptr() for tensor in tensors)
        if addresses != self.addresses:
            self.recorded.clear()
            self.addresses, self.pool = addresses, torch.cuda.graph_pool_handle()
        learns = torch.is_grad_enabled()
        learned = [tensor for tensor in tensors if tensor.requires_grad] if learns else []
        key = (
            x.shape,
            x.dtype,
            _autocast(),
            torch.is_inference_mode_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            tuple(module.training for module in modules),
            tuple(map(id, learned)),
        )
        if key not in self.recorded:
            if len(self.recorded) == MOST_SIZES:
                return backbone.pyramid(x)
            self.recorded[key] = self._record(backbone, x, learned)
        recorded = self.recorded[key]
        if not learned:
            return recorded.forward(x)
        token = _Token()
        outs = _Replay.apply(recorded, token, x, *learned)
        self.pending = weakref.ref(token)
        return outs

    def _record(self, backbone: Any, x: Tensor, learned: list[Tensor]) -> '_Recorded':
        started = time.perf_counter()
        wrapped = _Pyramid(backbone)
        names = {id(weight): name for name, weight in wrapped.named_parameters()}

        def compute(images: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
            named = {names[id(own)]: w for own, w in zip(learned, weights, strict=True)}
            return torch.func.functional_call(wrapped, named, (images,))

        # Leaves of their own: those of the optimizer stay tied to the stream of the training.
        leaves = [weight.detach().requires_grad_() for weight in learned]
        enabled, dtype = _autocast()
        with (
            torch.random.fork_rng([x.device]),  # recording draws random numbers
            torch.autocast('cuda', dtype, enabled=enabled, cache_enabled=False),
        ):
            token = RECORDING.set(True)
            try:
                recorded = _Recorded(compute, x, leaves, self.pool)
            finally:
                RECORDING.reset(token)
        size = ' x '.join(map(str, x.shape[2:]))
        seconds = time.perf_counter() - started
        kind = 'training' if learned else 'inference'
        print_log(
            f'recorded the CUDA graph of {kind} with {len(x)} images of {size} in {seconds:.1f} s',
            logger='current',
        )
        return recorded


class _Recorded:
    """A forward pass and, if there are weights to learn, its backward pass."""

    def __init__(self, compute: Callable, x: Tensor, weights: list[Tensor], pool: Any) -> None:
        self.x = x.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # tunes and compiles kernels, which must not happen in a recording
                outs = compute(self.x, weights)
                if weights:
                    cotangents = [torch.zeros_like(out) for out in outs]
                    torch.autograd.grad(outs, weights, cotangents, allow_unused=True)
        torch.cuda.synchronize()
        self.graphs = [torch.cuda.CUDAGraph() for _ in range(2 if weights else 1)]
        # In the mode 'global', a thread that pins memory for a data loader ends the recording.
        options: Any = dict(pool=pool, capture_error_mode='thread_local')
        with torch.cuda.graph(self.graphs[0], **options):
            outs = compute(self.x, weights)
        self.outs = [out.detach() for out in outs]
        self.cotangents = [torch.empty_like(out) for out in self.outs]
        if weights:
            with torch.cuda.graph(self.graphs[1], **options):
                self.grads = torch.autograd.grad(outs, weights, self.cotangents, allow_unused=True)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.x.copy_(x)
        self.graphs[0].replay()
        return tuple(out.clone() for out in self.outs)

    def backward(self, cotangents: Sequence[Tensor]) -> list[Tensor | None]:
        torch._foreach_copy_(self.cotangents, list(cotangents))
        self.graphs[1].replay()
        # Autograd keeps gradients, and the next replay writes to the recorded ones.
        own = [torch.empty_like(grad) for grad in self.grads if grad is not None]
        torch._foreach_copy_(own, [grad for grad in self.grads if grad is not None])
        copies = iter(own)
        return [None if grad is None else next(copies) for grad in self.grads]


class _Pyramid(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.backbone.pyramid(x)  # type: ignore[operator]


class _Token:
    """Exists as long as a backward pass may come."""


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, recorded: _Recorded, token: _Token, x: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.recorded, ctx.token = recorded, token
        return recorded.forward(x)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        if ctx.token is None:
            raise RuntimeError("compile_mode='cuda_graphs' allows one backward pass a forward pass")
        ctx.token = None
        return None, None, None, *ctx.recorded.backward(cotangents)


def _contents(backbone: nn.Module) -> tuple[list[nn.Module], list[Tensor]]:
    """The modules within a backbone, and all its weights and buffers.

    A GPU waits for this in each step: PyTorch's own iterators take five times as long.
    """
    modules: list[nn.Module] = []
    tensors: list[Tensor | None] = []
    waiting: list[Any] = [backbone]
    while waiting:
        module = waiting.pop()
        modules.append(module)
        waiting.extend(module._modules.values())
        tensors.extend(module._parameters.values())
        tensors.extend(module._buffers.values())
    return modules[1:], [tensor for tensor in tensors if tensor is not None]


def _autocast() -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(), torch.get_autocast_gpu_dtype()
