"""Window attention by Triton kernels that read and write the feature map directly.

The feature map is not partitioned in memory: each program computes the addresses of the tokens in
its windows. Kernels also compute padded tokens and the relative-position bias. Forward and backward
are ``torch.library.custom_op``s, and not an ``autograd.Function`` of ``triton_op``s, because
``torch.compile`` treats a custom op as one node, without graph breaks and without tracing it. This
also works with Triton's interpreter.

Notation: w is the side of a window, N = w * w, and d the channels of a head. A chunk is a number of
windows that one program computes in turn.
"""

import math
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import ArgumentError

try:
    import triton
    import triton.language as tl
except ImportError:
    triton, tl = None, SimpleNamespace(constexpr=int)  # for the annotations of kernels

MAX_WINDOW = 32
HEAD_DIMS = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

PROGRAMS = 2048
"""Approximate number of programs of a kernel, enough to fill any device."""


def available(device: torch.device) -> bool:
    """Whether ``window_attention`` runs on a device: CUDA, or any device in the interpreter.

    TRITON_INTERPRET=1 in the environment before the import enables the slow interpreter for tests.
    """
    return triton is not None and (device.type == 'cuda' or _INTERPRETED)


def window_attention(
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    window: int,
    q_global: Tensor | None = None,
    deterministic: bool | None = None,
) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + bias) v in each window of a feature map.

    A feature map that the windows do not divide is padded at the right and bottom. Padded tokens
    take part as keys; their outputs are dropped.

    Args:
        qkv: Queries, keys and values, (B, H, W, 3 C), or with ``q_global`` keys and values,
            (B, H, W, 2 C), in float32, float16 or bfloat16. The channels are ordered by query /
            key / value, head, and channel of the head.
        padding: ``qkv`` of a padded token, (3 C,) or (2 C,): the bias of the layer that computes
            ``qkv``. None is zeros.
        table: Relative-position bias, ((2 w - 1)^2, heads), in the order of
            ``relative_position_index``.
        window: Side of a window, in tokens, 1 to 32.
        q_global: The query that all windows of an image share, (B, heads, N, d).
        deterministic: Sum the gradient of ``table`` without atomic additions, so that it is
            reproducible, as all other gradients are. None uses
            ``torch.are_deterministic_algorithms_enabled()``.

    Returns:
        Feature map (B, H, W, C) in the dtype of ``qkv``. Floating-point inputs may differ in dtype,
        as under autocast; each gradient has the dtype of its input.

    Raises:
        ArgumentError: Triton or a device for it is missing, or the kernels do not support the
            inputs.
    """
    _check(qkv, padding, table, window, q_global)
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    return _attention(qkv, padding, table, window, q_global, deterministic)[0]


def _check(
    qkv: Tensor, padding: Tensor | None, table: Tensor, window: int, q_global: Tensor | None
) -> None:
    if triton is None:
        raise ArgumentError('Triton attention needs the package triton: pip install triton')
    if not available(qkv.device):
        raise ArgumentError(f'Triton attention needs a CUDA device, not {qkv.device}')
    if qkv.dtype not in DTYPES:
        raise ArgumentError(f'Triton attention does not support {qkv.dtype}: use one of {DTYPES}')
    if not 1 <= window <= MAX_WINDOW:
        raise ArgumentError(f'Triton attention needs windows of 1 to {MAX_WINDOW}, not {window}')
    heads, channels = table.shape[1], qkv.shape[-1]
    parts = 3 if q_global is None else 2
    head_dim = channels // (parts * heads)
    if head_dim not in HEAD_DIMS:
        raise ArgumentError(
            f'Triton attention needs heads of {", ".join(map(str, HEAD_DIMS))} channels, not'
            f' {head_dim}'
        )
    expected = {
        'qkv': (qkv, (*qkv.shape[:3], parts * heads * head_dim)),
        'padding': (padding, (channels,)),
        'table': (table, ((2 * window - 1) ** 2, heads)),
        'q_global': (q_global, (qkv.shape[0], heads, window**2, head_dim)),
    }
    for name, (value, shape) in expected.items():
        if value is not None and value.shape != shape:
            raise ArgumentError(f'{name} has shape {tuple(value.shape)}: needs {tuple(shape)}')


# --- Operators --------------------------------------------------------------------------------


class _Geometry(NamedTuple):
    """Sizes that all kernels share."""

    batch: int
    height: int
    width: int
    heads: int
    head_dim: int
    window: int
    block: int  # rows of a block of queries, and of keys
    warps: int

    @property
    def blocks(self) -> int:
        """Blocks of queries, and of keys, in a window."""
        return -(-(self.window**2) // self.block)

    @property
    def windows(self) -> int:
        """Windows in an image."""
        return -(-self.height // self.window) * -(-self.width // self.window)

    @property
    def padded(self) -> bool:
        return bool(self.height % self.window or self.width % self.window)


class _Chunks(NamedTuple):
    """The division of windows into chunks for the programs of a kernel, within groups."""

    group: int  # windows in a group
    size: int  # windows in a chunk; the last chunk of a group may have fewer
    per_group: int
    total: int


def _geometry(qkv: Tensor, table: Tensor, window: int, q_global: Tensor | None) -> _Geometry:
    batch, height, width, channels = qkv.shape
    heads = table.shape[1]
    head_dim = channels // heads // (3 if q_global is None else 2)
    # These sizes give few register spills by ptxas for sm_90, and have not been tuned on a device
    # with tools/benchmark.py. Autotuning would slow down the first steps, and runs with different
    # choices would round differently.
    itemsize = qkv.element_size()
    block = 64 if head_dim * itemsize <= 128 else 32
    block = min(block, max(16, 1 << (window**2 - 1).bit_length()))
    warps = {16: 1, 32: 4, 64: 4}[block] * (2 if itemsize == 4 else 1)
    return _Geometry(batch, height, width, heads, head_dim, window, block, warps)


def _chunks(geometry: _Geometry, programs_per_chunk: int, by_image: bool) -> _Chunks:
    """Divide windows for about ``PROGRAMS`` programs; ``by_image`` keeps chunks within images."""
    groups = geometry.batch if by_image else 1
    group = geometry.windows if by_image else geometry.batch * geometry.windows
    wanted = PROGRAMS // max(1, groups * programs_per_chunk)
    size = -(-group // max(1, min(group, wanted)))
    per_group = -(-group // max(1, size))
    return _Chunks(group, size, per_group, groups * per_group)


def _launch(kernel: Any, geometry: _Geometry, chunks: _Chunks, blocks: int, **values: Any) -> None:
    """Run a kernel with a program per chunk, block and head."""
    kernel[(chunks.total * blocks * geometry.heads,)](
        **values,
        height=geometry.height,
        width=geometry.width,
        channels=geometry.heads * geometry.head_dim,
        group=chunks.group,
        chunk=chunks.size,
        chunks=chunks.per_group,
        WINDOW=geometry.window,
        HEAD_DIM=geometry.head_dim,
        BLOCK=geometry.block,
        num_warps=geometry.warps,
        num_stages=1,  # more stages need more registers than there are
    )


def _inputs(
    geometry: _Geometry,
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    q_global: Tensor | None,
) -> dict[str, Any]:
    """Prepare the inputs of kernels, which cast them when they read them.

    The table is transposed for locality, and scaled by log2(e) because kernels use powers of two.
    """
    return dict(
        qkv=qkv.contiguous(),
        # Without padding, or if it is zero, kernels are compiled without it.
        padding=padding.contiguous() if padding is not None and geometry.padded else None,
        table=(table.float().t() * math.log2(math.e)).contiguous(),
        q_global=None if q_global is None else q_global.contiguous(),
    )


@torch.library.custom_op('gcvit_mm::window_attention', mutates_args=())
def _attention(
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    window: int,
    q_global: Tensor | None,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the output and log2 of the softmax denominators, (B, H, W, heads) in float32."""
    geometry = _geometry(qkv, table, window, q_global)
    out, lse = _empty_outputs(qkv, padding, table, window, q_global, deterministic)
    with torch.cuda.device_of(qkv):
        _launch(
            _forward_kernel,
            geometry,
            _chunks(geometry, geometry.blocks * geometry.heads, by_image=False),
            geometry.blocks,
            **_inputs(geometry, qkv, padding, table, q_global),
            out=out,
            lse=lse,
        )
    return out, lse


@_attention.register_fake
def _empty_outputs(
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    window: int,
    q_global: Tensor | None,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    B, H, W, channels = qkv.shape
    out = qkv.new_empty(B, H, W, channels // (3 if q_global is None else 2))
    return out, qkv.new_empty(B, H, W, table.shape[1], dtype=torch.float32)


@torch.library.custom_op('gcvit_mm::window_attention_backward', mutates_args=())
def _attention_backward(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    window: int,
    q_global: Tensor | None,
    deterministic: bool,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of qkv, padding, table and q_global; those not ``needed`` are empty."""
    geometry = _geometry(qkv, table, window, q_global)
    blocks, heads, N = geometry.blocks, geometry.heads, window**2
    want_qkv, want_padding, want_table, want_query = needed
    # With one block per window, a program has all pairs of tokens and computes all gradients.
    single = blocks == 1
    keys = _chunks(geometry, blocks * heads, by_image=single and want_query)
    queries = keys if single else _chunks(geometry, blocks * heads, by_image=want_query)
    pairs = keys if single else _chunks(geometry, blocks**2 * heads, by_image=False)

    # Sums over windows are in float32. Each program writes its own part of them, so their size
    # depends on PROGRAMS and not on the feature map.
    sums = partial(torch.empty, dtype=torch.float32, device=qkv.device)
    grad_qkv = qkv.new_empty(qkv.shape) if want_qkv else None
    grad_padding = grad_query = grad_table = None
    if want_padding and geometry.padded:
        grad_padding = sums(keys.total * blocks, 2 * heads * geometry.head_dim)
    if want_query:
        grad_query = sums(queries.total, heads, N, geometry.head_dim)
    if want_table and deterministic:
        # About PROGRAMS blocks of pairs, but at least one block for all pairs, heads * N * N.
        grad_table = sums(pairs.total, heads, N, N)
    elif want_table:
        grad_table = sums(heads, table.shape[0]).zero_()

    lse, grad_out = lse.contiguous(), grad_out.contiguous()
    values = _inputs(geometry, qkv, padding, table, q_global)
    values |= dict(lse=lse, grad_out=grad_out, delta=None)
    of_table: dict[str, Any] = dict(grad_table=grad_table, ATOMIC=not deterministic)
    run = partial(_launch, geometry=geometry)
    with torch.cuda.device_of(qkv):
        if single:
            run(
                _keys_kernel,
                chunks=keys,
                blocks=1,
                grad_qkv=grad_qkv,
                grad_padding=grad_padding,
                grad_query=grad_query,
                **of_table,
                **values,
            )
        else:
            values['delta'] = delta = torch.empty_like(lse)
            of_out: dict[str, Any] = dict(out=out.contiguous(), grad_out=grad_out, delta=delta)
            run(_delta_kernel, chunks=keys, blocks=blocks, **of_out)
            if want_qkv or grad_padding is not None:
                run(
                    _keys_kernel,
                    chunks=keys,
                    blocks=blocks,
                    grad_qkv=grad_qkv,
                    grad_padding=grad_padding,
                    grad_query=None,
                    grad_table=None,
                    ATOMIC=False,
                    **values,
                )
            if want_query or (want_qkv and q_global is None):
                run(
                    _queries_kernel,
                    chunks=queries,
                    blocks=blocks,
                    grad_qkv=grad_qkv,
                    grad_query=grad_query,
                    **values,
                )
            if want_table:
                run(_table_kernel, chunks=pairs, blocks=blocks**2, **of_table, **values)

    none = partial(qkv.new_empty, 0)
    return (
        none() if grad_qkv is None else grad_qkv,
        none() if padding is None or not want_padding else _finish_padding(grad_padding, padding),
        none() if grad_table is None else _finish_table(grad_table, table, window),
        none() if grad_query is None or q_global is None else _finish_query(grad_query, q_global),
    )


def _finish_padding(sums: Tensor | None, padding: Tensor) -> Tensor:
    """Reduce (programs, 2 C) to the shape of the padding; None gives zeros."""
    if sums is None:
        return torch.zeros_like(padding)
    # The outputs of padded tokens are dropped, so their queries have no gradient.
    return F.pad(sums.sum(0), (len(padding) - sums.shape[1], 0)).to(padding.dtype)


def _finish_query(sums: Tensor, q_global: Tensor) -> Tensor:
    """Reduce (B * chunks, heads, N, d) to (B, heads, N, d)."""
    images = len(q_global)
    return sums.view(images, len(sums) // max(1, images), *sums.shape[1:]).sum(1).to(q_global.dtype)


def _finish_table(sums: Tensor, table: Tensor, window: int) -> Tensor:
    """Reduce (heads, entries) or (chunks, heads, N, N) to (entries, heads)."""
    if sums.ndim == 4:
        sums = _sum_by_offset(sums.sum(0), window)
    return sums.t().to(table.dtype).contiguous()


def _sum_by_offset(pairs: Tensor, window: int) -> Tensor:
    """Sum pairs of tokens by their entry of the table, (heads, N, N) -> (heads, entries).

    ``index_add`` would need atomic additions.
    """
    pairs = pairs.unflatten(2, (window, window)).unflatten(1, (window, window))
    columns = _sum_diagonals(pairs.transpose(2, 3))  # (heads, y_i, y_j, x)
    return _sum_diagonals(columns.movedim(3, 1)).transpose(1, 2).flatten(1)


def _sum_diagonals(x: Tensor) -> Tensor:
    """Sum entries (i, j) by i - j, (..., w, w) -> (..., 2 w - 1)."""
    w = x.shape[-1]
    # Reading rows of 2 w as rows of 2 w - 1 shifts each row by one more than the previous one.
    x = F.pad(x.flip(-1), (0, w)).flatten(-2)[..., :-w]
    return x.unflatten(-1, (w, 2 * w - 1)).sum(-2)


@_attention_backward.register_fake
def _empty_gradients(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    window: int,
    q_global: Tensor | None,
    deterministic: bool,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = (qkv, padding, table, q_global)
    first, second, third, fourth = (
        qkv.new_empty(0) if value is None or not need else value.new_empty(value.shape)
        for value, need in zip(inputs, needed, strict=True)
    )
    return first, second, third, fourth


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, padding, table, ctx.window, q_global, ctx.deterministic = inputs
    ctx.save_for_backward(*output, qkv, padding, table, q_global)
    ctx.set_materialize_grads(False)  # lse is not returned to callers and has no gradient


def _backward(ctx: Any, grad_out: Tensor, _: None) -> tuple[Tensor | None, ...]:
    out, lse, qkv, padding, table, q_global = ctx.saved_tensors
    needs = ctx.needs_input_grad
    needed = [needs[0], needs[1], needs[2], needs[4]]
    grads = _attention_backward(
        grad_out,
        out,
        lse,
        qkv,
        padding,
        table,
        ctx.window,
        q_global,
        ctx.deterministic,
        needed,
    )
    of_qkv, of_padding, of_table, of_query = (
        grad if need else None for grad, need in zip(grads, needed, strict=True)
    )
    return of_qkv, of_padding, of_table, None, of_query, None


_attention.register_autograd(_backward, setup_context=_setup_context)


# --- Kernels ----------------------------------------------------------------------------------
#
# A program computes a head, a block of positions in the window, and a chunk of windows. The origin
# of a window is int64, because the size of large feature maps exceeds int32; offsets of tokens from
# the origin are int32, which needs half of the registers.


def _jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


def _kernel(function: Any) -> Any:
    if triton is None:
        return function
    # Otherwise kernels would be recompiled for some sizes of feature maps during training.
    sizes = ['height', 'width', 'group', 'chunk', 'chunks']
    return triton.jit(function, do_not_specialize=sizes)


@_jit
def _work(heads, blocks, group, chunk, chunks):
    """The head, block and chunk of this program, and the range of windows of the chunk."""
    # Neighbouring programs have the heads of one token, which share cache lines.
    program = tl.program_id(0)
    piece = program // (heads * blocks)
    start = piece // chunks * group
    first = start + piece % chunks * chunk
    last = tl.minimum(first + chunk, start + group)
    return program % heads, program // heads % blocks, piece, first, last


@_jit
def _origin(window, height, width, WINDOW: tl.constexpr):
    """The image of a window, its first token in the batch, and the rows and columns from there."""
    columns = tl.cdiv(width, WINDOW)
    windows = columns * tl.cdiv(height, WINDOW)
    image = (window // windows).to(tl.int64)
    top = window % windows // columns * WINDOW
    left = window % columns * WINDOW
    return image, (image * height + top) * width + left, height - top, width - left


@_jit
def _tokens(positions, width, down, right, WINDOW: tl.constexpr):
    """Offsets of tokens from the origin of a window, and whether they are in the feature map."""
    y = positions // WINDOW
    x = positions % WINDOW
    return y * width + x, (positions < WINDOW * WINDOW) & (y < down) & (x < right)


@_jit
def _read(pointer, rows, stride, mask, padding, HEAD_DIM: tl.constexpr):
    """Read the channels of a head, (rows, HEAD_DIM); masked rows get the padding or 0."""
    lanes = tl.arange(0, HEAD_DIM)
    address = pointer + (rows[:, None] * stride + lanes[None, :])
    values = tl.load(address, mask=mask[:, None], other=0.0)
    if padding is not None:
        outside = tl.load(padding + lanes).to(values.dtype)
        values = tl.where(mask[:, None], values, outside[None, :])
    return values


@_jit
def _write(pointer, rows, stride, mask, values, HEAD_DIM: tl.constexpr):
    lanes = tl.arange(0, HEAD_DIM)
    address = pointer + (rows[:, None] * stride + lanes[None, :])
    tl.store(address, values.to(pointer.dtype.element_ty), mask=mask[:, None])


@_jit
def _read_query(
    qkv,
    q_global,
    image,
    origin,
    tokens,
    valid,
    positions,
    head,
    channels,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    if q_global is None:
        stride = 3 * channels
        at = qkv + origin * stride + head * HEAD_DIM
        query = _read(at, tokens, stride, valid, None, HEAD_DIM)
    else:
        N: tl.constexpr = WINDOW * WINDOW
        at = q_global + (image * (channels // HEAD_DIM) + head) * (N * HEAD_DIM)
        query = _read(at, positions, HEAD_DIM, positions < N, None, HEAD_DIM)
        query = query.to(qkv.dtype.element_ty)
    return query


@_jit
def _read_keys(qkv, padding, origin, tokens, valid, head, channels, parts, HEAD_DIM: tl.constexpr):
    """Read keys and values of tokens in a window, including padded tokens."""
    stride = parts * channels
    at = stride - 2 * channels + head * HEAD_DIM
    pointer = qkv + origin * stride + at
    if padding is None:
        keys = _read(pointer, tokens, stride, valid, None, HEAD_DIM)
        values = _read(pointer + channels, tokens, stride, valid, None, HEAD_DIM)
    else:
        keys = _read(pointer, tokens, stride, valid, padding + at, HEAD_DIM)
        outside = padding + at + channels
        values = _read(pointer + channels, tokens, stride, valid, outside, HEAD_DIM)
    return keys, values


@_jit
def _entries(queries, keys, WINDOW: tl.constexpr):
    """Entries of the table for pairs of positions, and whether both are in the window."""
    # Entry: (difference of rows) * (length of a row of the table) + (difference of columns).
    q = queries // WINDOW * (2 * WINDOW - 1) + queries % WINDOW
    k = keys // WINDOW * (2 * WINDOW - 1) + keys % WINDOW
    N: tl.constexpr = WINDOW * WINDOW
    inside = (queries < N)[:, None] & (keys < N)[None, :]
    return q[:, None] - k[None, :] + 2 * WINDOW * (WINDOW - 1), inside


@_jit
def _bias(table, head, queries, keys, WINDOW: tl.constexpr):
    """Read the bias of pairs of positions; it is -inf for keys beyond the window."""
    entries, inside = _entries(queries, keys, WINDOW)
    table += head * ((2 * WINDOW - 1) * (2 * WINDOW - 1))
    bias = tl.load(table + entries, mask=inside, other=0.0)
    return tl.where((keys < WINDOW * WINDOW)[None, :], bias, float('-inf'))


@_jit
def _scores(query, key, bias, HEAD_DIM: tl.constexpr):
    """Compute the attention scores, multiplied by log2(e)."""
    scale: tl.constexpr = 1.4426950408889634 * HEAD_DIM**-0.5
    return tl.dot(query, tl.trans(key), input_precision='ieee') * scale + bias


@_kernel
def _forward_kernel(
    qkv,
    padding,
    table,
    q_global,
    out,
    lse,
    height,
    width,
    channels,
    group,
    chunk,
    chunks,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute attention of a block of queries, with an online softmax over blocks of keys."""
    N: tl.constexpr = WINDOW * WINDOW
    parts: tl.constexpr = 3 if q_global is None else 2
    heads = channels // HEAD_DIM
    head, block, _piece, first, last = _work(heads, tl.cdiv(N, BLOCK), group, chunk, chunks)
    queries = block * BLOCK + tl.arange(0, BLOCK)
    if BLOCK >= N:
        bias = _bias(table, head, queries, tl.arange(0, BLOCK), WINDOW)
    for window in range(first, last):
        image, origin, down, right = _origin(window, height, width, WINDOW)
        tokens, valid = _tokens(queries, width, down, right, WINDOW)
        query = _read_query(
            qkv, q_global, image, origin, tokens, valid, queries, head, channels, WINDOW, HEAD_DIM
        )
        largest = tl.full((BLOCK,), float('-inf'), tl.float32)
        total = tl.zeros((BLOCK,), tl.float32)
        mean = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
        for start in range(0, N, BLOCK):
            keys = start + tl.arange(0, BLOCK)
            key_tokens, key_valid = _tokens(keys, width, down, right, WINDOW)
            key, value = _read_keys(
                qkv, padding, origin, key_tokens, key_valid, head, channels, parts, HEAD_DIM
            )
            if BLOCK < N:
                bias = _bias(table, head, queries, keys, WINDOW)
            scores = _scores(query, key, bias, HEAD_DIM)
            larger = tl.maximum(largest, tl.max(scores, 1))
            weights = tl.exp2(scores - larger[:, None])
            shrink = tl.exp2(largest - larger)
            total = total * shrink + tl.sum(weights, 1)
            mean = mean * shrink[:, None]
            mean = tl.dot(weights.to(value.dtype), value, mean, input_precision='ieee')
            largest = larger
        mean = mean / total[:, None]
        _write(out + origin * channels + head * HEAD_DIM, tokens, channels, valid, mean, HEAD_DIM)
        rows = (origin + tokens) * heads + head
        tl.store(lse + rows, largest + tl.log2(total), mask=valid)


@_kernel
def _delta_kernel(
    out,
    grad_out,
    delta,
    height,
    width,
    channels,
    group,
    chunk,
    chunks,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum out * grad_out over the channels of a head, for the gradient of the softmax."""
    heads = channels // HEAD_DIM
    blocks = tl.cdiv(WINDOW * WINDOW, BLOCK)
    head, block, _piece, first, last = _work(heads, blocks, group, chunk, chunks)
    positions = block * BLOCK + tl.arange(0, BLOCK)
    for window in range(first, last):
        _image, origin, down, right = _origin(window, height, width, WINDOW)
        tokens, valid = _tokens(positions, width, down, right, WINDOW)
        at = origin * channels + head * HEAD_DIM
        o = _read(out + at, tokens, channels, valid, None, HEAD_DIM)
        do = _read(grad_out + at, tokens, channels, valid, None, HEAD_DIM)
        products = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        tl.store(delta + (origin + tokens) * heads + head, products, mask=valid)


@_jit
def _score_gradient(query, key, value, bias, grad, lse, delta, rows, valid, HEAD_DIM: tl.constexpr):
    """Compute the softmax weights, and the gradient of the scores without the factor log2(e).

    lse and delta are read at ``rows``. Delta is computed if it is None; the block must then have
    all keys.
    """
    # Infinity sets the weights of queries outside the feature map to 0.
    row_lse = tl.load(lse + rows, mask=valid, other=float('inf'))
    weights = tl.exp2(_scores(query, key, bias, HEAD_DIM) - row_lse[:, None])
    slopes = tl.dot(grad, tl.trans(value), input_precision='ieee')
    if delta is None:
        row_delta = tl.sum(weights * slopes, 1)
    else:
        row_delta = tl.load(delta + rows, mask=valid, other=0.0)
    return weights, weights * (slopes - row_delta[:, None])


@_jit
def _add_to_table(
    grad_table,
    sums,
    head,
    heads,
    piece,
    queries,
    keys,
    WINDOW: tl.constexpr,
    ATOMIC: tl.constexpr,
):
    N: tl.constexpr = WINDOW * WINDOW
    entries, inside = _entries(queries, keys, WINDOW)
    if ATOMIC:
        grad_table += head * ((2 * WINDOW - 1) * (2 * WINDOW - 1))
        tl.atomic_add(grad_table + entries, sums, mask=inside, sem='relaxed')
    else:
        grad_table += (piece.to(tl.int64) * heads + head) * (N * N)
        tl.store(grad_table + (queries[:, None] * N + keys[None, :]), sums, mask=inside)


@_kernel
def _keys_kernel(
    qkv,
    padding,
    table,
    q_global,
    lse,
    grad_out,
    delta,
    grad_qkv,
    grad_padding,
    grad_query,
    grad_table,
    height,
    width,
    channels,
    group,
    chunk,
    chunks,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ATOMIC: tl.constexpr,
):
    """Compute gradients of a block of keys and values, and all others if it is the only block."""
    N: tl.constexpr = WINDOW * WINDOW
    SINGLE: tl.constexpr = BLOCK >= N
    parts: tl.constexpr = 3 if q_global is None else 2
    scale: tl.constexpr = HEAD_DIM**-0.5
    heads = channels // HEAD_DIM
    stride = parts * channels
    head, block, piece, first, last = _work(heads, tl.cdiv(N, BLOCK), group, chunk, chunks)
    keys = block * BLOCK + tl.arange(0, BLOCK)
    if SINGLE:
        bias = _bias(table, head, keys, keys, WINDOW)
    if grad_table is not None:
        pair_sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    if grad_query is not None:
        query_sums = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    if grad_padding is not None:
        key_padding = tl.zeros((HEAD_DIM,), tl.float32)
        value_padding = tl.zeros((HEAD_DIM,), tl.float32)
    for window in range(first, last):
        image, origin, down, right = _origin(window, height, width, WINDOW)
        key_tokens, key_valid = _tokens(keys, width, down, right, WINDOW)
        key, value = _read_keys(
            qkv, padding, origin, key_tokens, key_valid, head, channels, parts, HEAD_DIM
        )
        dk = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
        dv = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
        for start in range(0, N, BLOCK):
            queries = start + tl.arange(0, BLOCK)
            tokens, valid = _tokens(queries, width, down, right, WINDOW)
            query = _read_query(
                qkv,
                q_global,
                image,
                origin,
                tokens,
                valid,
                queries,
                head,
                channels,
                WINDOW,
                HEAD_DIM,
            )
            at = grad_out + origin * channels + head * HEAD_DIM
            grad = _read(at, tokens, channels, valid, None, HEAD_DIM)
            if not SINGLE:
                bias = _bias(table, head, queries, keys, WINDOW)
            rows = (origin + tokens) * heads + head
            weights, ds = _score_gradient(
                query, key, value, bias, grad, lse, delta, rows, valid, HEAD_DIM
            )
            narrow = ds.to(query.dtype)
            dv = tl.dot(tl.trans(weights.to(query.dtype)), grad, dv, input_precision='ieee')
            dk = tl.dot(tl.trans(narrow), query, dk, input_precision='ieee')
            if SINGLE and grad_table is not None:
                pair_sums += ds
            if SINGLE and grad_query is not None:
                query_sums = tl.dot(narrow, key, query_sums, input_precision='ieee')
            if SINGLE and q_global is None and grad_qkv is not None:
                dq = tl.dot(narrow, key, input_precision='ieee') * scale
                at = grad_qkv + origin * stride + head * HEAD_DIM
                _write(at, tokens, stride, valid, dq, HEAD_DIM)
        dk *= scale
        if grad_qkv is not None:
            at = grad_qkv + origin * stride + (stride - 2 * channels + head * HEAD_DIM)
            _write(at, key_tokens, stride, key_valid, dk, HEAD_DIM)
            _write(at + channels, key_tokens, stride, key_valid, dv, HEAD_DIM)
        if grad_padding is not None:
            # Gradients of positions beyond the window are 0.
            key_padding += tl.sum(tl.where(key_valid[:, None], 0.0, dk), 0)
            value_padding += tl.sum(tl.where(key_valid[:, None], 0.0, dv), 0)
    if grad_padding is not None:
        slot = (piece * tl.cdiv(N, BLOCK) + block) * 2 * channels + head * HEAD_DIM
        lanes = tl.arange(0, HEAD_DIM)
        tl.store(grad_padding + slot + lanes, key_padding)
        tl.store(grad_padding + slot + channels + lanes, value_padding)
    if grad_query is not None:
        at = grad_query + (piece.to(tl.int64) * heads + head) * (N * HEAD_DIM)
        _write(at, keys, HEAD_DIM, keys < N, query_sums * scale, HEAD_DIM)
    if grad_table is not None:
        _add_to_table(grad_table, pair_sums, head, heads, piece, keys, keys, WINDOW, ATOMIC)


@_kernel
def _queries_kernel(
    qkv,
    padding,
    table,
    q_global,
    lse,
    grad_out,
    delta,
    grad_qkv,
    grad_query,
    height,
    width,
    channels,
    group,
    chunk,
    chunks,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute the gradient of a block of queries, summed over windows if they share the query."""
    N: tl.constexpr = WINDOW * WINDOW
    parts: tl.constexpr = 3 if q_global is None else 2
    scale: tl.constexpr = HEAD_DIM**-0.5
    heads = channels // HEAD_DIM
    stride = parts * channels
    head, block, piece, first, last = _work(heads, tl.cdiv(N, BLOCK), group, chunk, chunks)
    queries = block * BLOCK + tl.arange(0, BLOCK)
    dq = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
    for window in range(first, last):
        image, origin, down, right = _origin(window, height, width, WINDOW)
        tokens, valid = _tokens(queries, width, down, right, WINDOW)
        query = _read_query(
            qkv, q_global, image, origin, tokens, valid, queries, head, channels, WINDOW, HEAD_DIM
        )
        at = grad_out + origin * channels + head * HEAD_DIM
        grad = _read(at, tokens, channels, valid, None, HEAD_DIM)
        rows = (origin + tokens) * heads + head
        if q_global is None:
            dq = tl.zeros((BLOCK, HEAD_DIM), tl.float32)
        for start in range(0, N, BLOCK):
            keys = start + tl.arange(0, BLOCK)
            key_tokens, key_valid = _tokens(keys, width, down, right, WINDOW)
            key, value = _read_keys(
                qkv, padding, origin, key_tokens, key_valid, head, channels, parts, HEAD_DIM
            )
            bias = _bias(table, head, queries, keys, WINDOW)
            _weights, ds = _score_gradient(
                query, key, value, bias, grad, lse, delta, rows, valid, HEAD_DIM
            )
            dq = tl.dot(ds.to(key.dtype), key, dq, input_precision='ieee')
        if q_global is None:
            at = grad_qkv + origin * stride + head * HEAD_DIM
            _write(at, tokens, stride, valid, dq * scale, HEAD_DIM)
    if q_global is not None:
        at = grad_query + (piece.to(tl.int64) * heads + head) * (N * HEAD_DIM)
        _write(at, queries, HEAD_DIM, queries < N, dq * scale, HEAD_DIM)


@_kernel
def _table_kernel(
    qkv,
    padding,
    table,
    q_global,
    lse,
    grad_out,
    delta,
    grad_table,
    height,
    width,
    channels,
    group,
    chunk,
    chunks,
    WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ATOMIC: tl.constexpr,
):
    """Sum the gradient of the table over windows, for a block of queries and one of keys."""
    N: tl.constexpr = WINDOW * WINDOW
    parts: tl.constexpr = 3 if q_global is None else 2
    heads = channels // HEAD_DIM
    blocks = tl.cdiv(N, BLOCK)
    head, pair, piece, first, last = _work(heads, blocks * blocks, group, chunk, chunks)
    queries = pair // blocks * BLOCK + tl.arange(0, BLOCK)
    keys = pair % blocks * BLOCK + tl.arange(0, BLOCK)
    bias = _bias(table, head, queries, keys, WINDOW)
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for window in range(first, last):
        image, origin, down, right = _origin(window, height, width, WINDOW)
        tokens, valid = _tokens(queries, width, down, right, WINDOW)
        query = _read_query(
            qkv, q_global, image, origin, tokens, valid, queries, head, channels, WINDOW, HEAD_DIM
        )
        at = grad_out + origin * channels + head * HEAD_DIM
        grad = _read(at, tokens, channels, valid, None, HEAD_DIM)
        key_tokens, key_valid = _tokens(keys, width, down, right, WINDOW)
        key, value = _read_keys(
            qkv, padding, origin, key_tokens, key_valid, head, channels, parts, HEAD_DIM
        )
        rows = (origin + tokens) * heads + head
        _weights, ds = _score_gradient(
            query, key, value, bias, grad, lse, delta, rows, valid, HEAD_DIM
        )
        sums += ds
    _add_to_table(grad_table, sums, head, heads, piece, queries, keys, WINDOW, ATOMIC)


_INTERPRETED = triton is not None and not isinstance(_forward_kernel, triton.JITFunction)
