"""Residual addition and LayerNorm in one Triton kernel, between a feature map and its windows.

Between two linear layers, a block adds a branch to the residual stream, normalises the sum, casts
it for the next linear layer, and cuts it into windows or joins them: separate kernels for these
would read and write each value several times.

A branch or the normalised output is either a feature map (B, H, W, C), or the windows of the map
that is padded at the right and bottom, (B * nW, N, C) with N = window ** 2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from ..windows import partition, unpartition
from .window_attention import _INTERPRETED, _jit, tl, triton

PROGRAMS = 512
"""Programs of the backward kernel, each of which sums the gradients of weight and bias."""


def available(x: Tensor) -> bool:
    """Whether ``add_norm`` runs for a feature map."""
    return triton is not None and (x.is_cuda or _INTERPRETED)


def add_norm(
    x: Tensor,
    branch: Tensor | None,
    shift: Tensor | None,
    path: Tensor | None,
    norm: torch.nn.LayerNorm,
    window: int,
    dtype: torch.dtype,
    *,
    from_windows: bool = False,
    to_windows: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute y = x + path * (branch + shift) and its LayerNorm.

    Args:
        x: The residual stream, (B, H, W, C).
        branch: What is added, or None: a feature map, or windows with ``from_windows``.
        shift: The bias of the linear layer of the branch, (C,), or None.
        path: A factor for the branch of each image, (B,), or None. It gets no gradient.
        norm: The LayerNorm.
        window: Side of the windows.
        dtype: Type of the normalised output.
        from_windows: The branch is cut into windows, with tokens of the padding, which are dropped.
        to_windows: The normalised output is cut into windows; it is 0 in the padding.

    Returns:
        y, as ``x``, and the normalised output.
    """
    if not available(x):
        return _in_pytorch(x, branch, shift, path, norm, window, dtype, from_windows, to_windows)
    inputs = (
        x.contiguous(), None if branch is None else branch.contiguous(), shift, path, norm.weight,
        norm.bias, norm.eps, window, dtype, from_windows, to_windows,
    )  # fmt: skip
    if torch.is_grad_enabled():
        y, out = _AddNorm.apply(*inputs)
    else:
        y, out, *_ = _forward(*inputs)
    return (x if branch is None else y), out


def _in_pytorch(
    x: Tensor,
    branch: Tensor | None,
    shift: Tensor | None,
    path: Tensor | None,
    norm: torch.nn.LayerNorm,
    window: int,
    dtype: torch.dtype,
    from_windows: bool,
    to_windows: bool,
) -> tuple[Tensor, Tensor]:
    B, H, W, C = x.shape
    below, beside = -H % window, -W % window
    if branch is not None:
        if from_windows:
            windows = branch.view(B, -1, window**2, C)
            branch = unpartition(windows, window, window, (W + beside) // window)[:, :H, :W]
        branch = branch if shift is None else branch + shift
        x = x + (branch if path is None else branch * path[:, None, None, None])
    out = norm(x).to(dtype)
    if to_windows:
        out = partition(F.pad(out, (0, 0, 0, beside, 0, below)), window, window).flatten(0, 1)
    return x, out


class _AddNorm(torch.autograd.Function):
    """The kernels with a gradient; calling a custom operator would take five times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *inputs: Any) -> tuple[Tensor | None, Tensor]:
        branch, shift, path, weight, _, _, ctx.window, _, *ctx.windows = inputs
        y, out, mean, rstd = _forward(x, *inputs)
        ctx.branched = None if branch is None else branch.dtype
        ctx.shifted = None if shift is None else shift.dtype
        ctx.save_for_backward(x if y is None else y, mean, rstd, path, weight)
        ctx.set_materialize_grads(False)
        return y, out

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_out: Tensor | None) -> tuple:
        y, mean, rstd, path, weight = ctx.saved_tensors
        if grad_out is None:
            raise NotImplementedError('the normalised output of add_norm must be used')
        of_x, of_branch, sums = _backward(
            None if ctx.branched is None or grad_y is None else grad_y.contiguous(),
            grad_out.contiguous(), y, mean, rstd, path, weight, ctx.branched, ctx.window,
            *ctx.windows,
        )  # fmt: skip
        of_weight, of_bias, of_shift = sums.unbind()
        given = None if ctx.shifted is None else of_shift.to(ctx.shifted)
        norm = of_weight.to(weight.dtype), of_bias.to(weight.dtype)
        return of_x, of_branch, given, None, *norm, *[None] * 5


def _forward(
    x: Tensor,
    branch: Tensor | None,
    shift: Tensor | None,
    path: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    window: int,
    dtype: torch.dtype,
    from_windows: bool,
    to_windows: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Compute y, which is None without a branch, the output, and means and 1 / deviations."""
    mean, rstd = (x.new_empty(x.shape[:3], dtype=torch.float32) for _ in range(2))
    y = None if branch is None else torch.empty_like(x)
    out = x.new_empty(_shape(x, window, to_windows), dtype=dtype)
    options = _options(x, window, to_windows)
    grid = (triton.cdiv(options['tokens'], options['ROWS']),)
    _launch(
        _forward_kernel, grid, x, branch, shift, path, weight, bias, y, out, mean, rstd, eps,
        FROM_WINDOWS=from_windows, TO_WINDOWS=to_windows, **options,
    )  # fmt: skip
    return y, out, mean, rstd


def _shape(x: Tensor, window: int, in_windows: bool) -> tuple[int, ...]:
    B, H, W, C = x.shape
    windows = B * -(-H // window) * -(-W // window)
    return (windows, window**2, C) if in_windows else (B, H, W, C)


def _backward(
    grad_y: Tensor | None,
    grad_out: Tensor,
    y: Tensor,
    mean: Tensor,
    rstd: Tensor,
    path: Tensor | None,
    weight: Tensor,
    branched: torch.dtype | None,
    window: int,
    from_windows: bool,
    to_windows: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Compute the gradients of x and of the branch, and those of weight, bias and shift, (3, C)."""
    of_x = torch.empty_like(y)
    shape = _shape(y, window, from_windows)
    of_branch = None if branched is None else y.new_empty(shape, dtype=branched)
    options = _options(y, window, from_windows)
    programs = min(PROGRAMS, triton.cdiv(options['tokens'], options['ROWS']))
    sums = y.new_empty(programs, 3, y.shape[-1], dtype=torch.float32)
    _launch(
        _backward_kernel, (programs,), grad_y, grad_out, y, mean, rstd, path, weight, of_x,
        of_branch, sums, FROM_WINDOWS=from_windows, TO_WINDOWS=to_windows, **options,
    )  # fmt: skip
    return of_x, of_branch, sums.sum(dim=0)


def _launch(kernel: Any, grid: tuple[int], first: Any, *others: Any, **options: Any) -> None:
    tensor = others[0] if first is None else first
    if not isinstance(tensor, FakeTensor):  # those have shapes alone
        with torch.cuda.device_of(tensor):
            kernel[grid](first, *others, **options)


def _options(x: Tensor, window: int, by_window: bool) -> dict[str, Any]:
    """The sizes for a kernel that goes through the tokens of the windows or those of the map."""
    B, H, W, C = x.shape
    rows, columns = -(-H // window), -(-W // window)
    tokens = B * rows * columns * window**2 if by_window else B * H * W
    block = triton.next_power_of_2(C)
    return dict(
        tokens=tokens, H=H, W=W, rows=rows, columns=columns, C=C, BLOCK=block,
        ROWS=max(1, 2048 // block), WINDOW=window, num_warps=4,
    )  # fmt: skip


# --- Kernels ----------------------------------------------------------------------------------


@_jit
def _places(t, tokens, H, W, rows, columns, WINDOW: tl.constexpr, BY_WINDOW: tl.constexpr):
    """Image, place in the map, place in the windows and existence of tokens."""
    n: tl.constexpr = WINDOW * WINDOW
    if BY_WINDOW:
        cell, place = t % n, t // n
        image = place // (rows * columns)
        i = place // columns % rows * WINDOW + cell // WINDOW
        j = place % columns * WINDOW + cell % WINDOW
        windowed = t
    else:
        image, i, j = t // (H * W), t // W % H, t % W
        place = (image * rows + i // WINDOW) * columns + j // WINDOW
        windowed = place * n + i % WINDOW * WINDOW + j % WINDOW
    inside = (t < tokens) & (i < H) & (j < W)
    return image, (image * H + i) * W + j, windowed, inside


@_jit
def _forward_kernel(
    x_ptr, branch_ptr, shift_ptr, path_ptr, weight_ptr, bias_ptr, y_ptr, out_ptr, mean_ptr,
    rstd_ptr, eps, tokens, H, W, rows, columns,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WINDOW: tl.constexpr,
    FROM_WINDOWS: tl.constexpr, TO_WINDOWS: tl.constexpr,
):  # fmt: skip
    t = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    image, plain, windowed, inside = _places(t, tokens, H, W, rows, columns, WINDOW, TO_WINDOWS)
    c = tl.arange(0, BLOCK)
    channels = c < C
    mask = inside[:, None] & channels
    at = plain[:, None] * C + c
    x = tl.load(x_ptr + at, mask, 0.0).to(tl.float32)
    if branch_ptr is not None:
        source = windowed if FROM_WINDOWS else plain
        branch = tl.load(branch_ptr + source[:, None] * C + c, mask, 0.0).to(tl.float32)
        if shift_ptr is not None:
            branch += tl.load(shift_ptr + c, channels, 0.0).to(tl.float32)
        if path_ptr is not None:
            branch *= tl.load(path_ptr + image, inside, 0.0).to(tl.float32)[:, None]
        rounded = (x + branch).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + at, rounded, mask)
        x = rounded.to(tl.float32)
    mean = tl.sum(x, 1) / C
    centred = tl.where(mask, x - mean[:, None], 0.0)
    rstd = 1 / tl.sqrt(tl.sum(centred * centred, 1) / C + eps)
    tl.store(mean_ptr + plain, mean, inside)
    tl.store(rstd_ptr + plain, rstd, inside)
    weight = tl.load(weight_ptr + c, channels, 0.0).to(tl.float32)
    bias = tl.load(bias_ptr + c, channels, 0.0).to(tl.float32)
    out = tl.where(mask, centred * rstd[:, None] * weight + bias, 0.0)
    target = windowed if TO_WINDOWS else plain
    written = (t < tokens)[:, None] & channels
    tl.store(out_ptr + target[:, None] * C + c, out.to(out_ptr.dtype.element_ty), written)


@_jit
def _backward_kernel(
    grad_y_ptr, grad_out_ptr, y_ptr, mean_ptr, rstd_ptr, path_ptr, weight_ptr, of_x_ptr,
    of_branch_ptr, sums_ptr, tokens, H, W, rows, columns,
    C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, WINDOW: tl.constexpr,
    FROM_WINDOWS: tl.constexpr, TO_WINDOWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK)
    channels = c < C
    weight = tl.load(weight_ptr + c, channels, 0.0).to(tl.float32)
    of_weight = tl.zeros([BLOCK], tl.float32)
    of_bias = tl.zeros([BLOCK], tl.float32)
    of_shift = tl.zeros([BLOCK], tl.float32)
    for block in range(program, tl.cdiv(tokens, ROWS), tl.num_programs(0)):
        t = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        image, plain, windowed, inside = _places(
            t, tokens, H, W, rows, columns, WINDOW, FROM_WINDOWS
        )
        mask = inside[:, None] & channels
        at = plain[:, None] * C + c
        source = windowed if TO_WINDOWS else plain
        grad = tl.load(grad_out_ptr + source[:, None] * C + c, mask, 0.0).to(tl.float32)
        y = tl.load(y_ptr + at, mask, 0.0).to(tl.float32)
        mean = tl.load(mean_ptr + plain, inside, 0.0)
        rstd = tl.load(rstd_ptr + plain, inside, 0.0)
        normed = tl.where(mask, (y - mean[:, None]) * rstd[:, None], 0.0)
        of_weight += tl.sum(grad * normed, 0)
        of_bias += tl.sum(grad, 0)
        scaled = grad * weight
        first = tl.sum(scaled, 1) / C
        second = tl.sum(scaled * normed, 1) / C
        total = (scaled - first[:, None] - normed * second[:, None]) * rstd[:, None]
        if grad_y_ptr is not None:
            total += tl.load(grad_y_ptr + at, mask, 0.0).to(tl.float32)
        tl.store(of_x_ptr + at, total.to(of_x_ptr.dtype.element_ty), mask)
        if of_branch_ptr is not None:
            if path_ptr is not None:
                total *= tl.load(path_ptr + image, inside, 0.0).to(tl.float32)[:, None]
            total = tl.where(mask, total, 0.0)
            of_shift += tl.sum(total, 0)
            of_branch = total.to(of_branch_ptr.dtype.element_ty)
            target = windowed if FROM_WINDOWS else plain
            written = (t < tokens)[:, None] & channels
            tl.store(of_branch_ptr + target[:, None] * C + c, of_branch, written)
    place = sums_ptr + program * 3 * C + c
    tl.store(place, of_weight, channels)
    tl.store(place + C, of_bias, channels)
    tl.store(place + 2 * C, of_shift, channels)
