"""Window attention by Triton kernels that read and write the feature map directly.

The feature map is not partitioned in memory: each program computes the addresses of the tokens in
its windows. Kernels also compute padded tokens and the relative-position bias. Forward and backward
are ``torch.library.custom_op``s, and not an ``autograd.Function`` of ``triton_op``s, because
``torch.compile`` treats a custom op as one node, without graph breaks and without tracing it. This
also works with Triton's interpreter.

Notation: w is the side of a window, N = w * w, and d the channels of a head. A chunk is a number of
windows that one program computes in turn.
"""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

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
    shift: int = 0,
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
        shift: Rows and columns by which windows are shifted, as in Swin Transformer. Tokens before
            the first whole window attend to one another, and not to those of the last windows.

    Returns:
        Feature map (B, H, W, C) in the dtype of ``qkv``. Floating-point inputs may differ in dtype,
        as under autocast; each gradient has the dtype of its input.

    Raises:
        ArgumentError: Triton or a device for it is missing, or the kernels do not support the
            inputs.
    """
    _check(qkv, padding, table, window, q_global)
    if not 0 <= shift < window:
        raise ArgumentError(f'Windows of {window} can be shifted by 0 to {window - 1}, not {shift}')
    inputs = qkv, padding, table, window, q_global, shift
    if torch.compiler.is_compiling() or isinstance(qkv, FakeTensor):
        return _attention(*inputs)[0]
    return (_Attention.apply if torch.is_grad_enabled() else _compute)(*inputs)[0]


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


class Tile(NamedTuple):
    """The queries and keys whose pairs a program computes at once, and how."""

    queries: int
    keys: int
    warps: int
    stages: int  # of the software pipeline that reads the next tile
    registers: int | None = None  # of a thread, at most


TILES = {
    ('forward', 8): Tile(64, 64, 4, 2),
    ('forward', 16): Tile(64, 64, 4, 1),
    ('forward', 32): Tile(64, 64, 4, 1),
    ('backward', 8): Tile(64, 64, 4, 2, 240),
    ('backward', 16): Tile(64, 64, 4, 1, 168),
    ('backward', 32): Tile(64, 64, 4, 1, 168),
    ('table', 16): Tile(64, 64, 4, 1),
    ('table', 32): Tile(64, 64, 4, 1, 168),
}
"""Tiles in half precision, by kernel and the largest window that they are for."""


class _Geometry(NamedTuple):
    """Sizes that all kernels share."""

    batch: int
    height: int
    width: int
    heads: int
    head_dim: int
    window: int
    lead: int  # rows and columns of the first windows that are before the feature map
    itemsize: int
    shared: bool  # whether the windows of an image share the query

    @property
    def windows(self) -> int:
        """Windows in an image."""
        rows, columns = -(-self.height // self.window), -(-self.width // self.window)
        return (rows + bool(self.lead)) * (columns + bool(self.lead))

    @property
    def single(self) -> bool:
        """Whether one tile has all pairs of tokens in a window."""
        return self.window**2 <= self.tile('backward').keys

    def tile(self, kernel: str) -> Tile:
        """The tile of a kernel. Autotuning would slow down first steps and round differently."""
        if self.itemsize == 4 or self.head_dim > 64:
            block = 64 if self.head_dim * self.itemsize <= 128 else 32
            tile = Tile(block, block, block // 8, 1)
        else:
            tile = TILES[kernel, next(most for most in (8, 16, 32) if self.window <= most)]
        most = max(16, 1 << (self.window**2 - 1).bit_length())
        return tile._replace(queries=min(tile.queries, most), keys=min(tile.keys, most))

    def blocks(self, kernel: str) -> int:
        """Programs of a kernel for a window and head."""
        tile, tokens = self.tile(kernel), self.window**2
        queries, keys = -(-tokens // tile.queries), -(-tokens // tile.keys)
        return {'forward': queries, 'backward': 1, 'table': queries * keys}[kernel]

    def chunks(self, kernel: str) -> tuple[int, int, int]:
        """Windows in a group, windows in a chunk of a group, and the number of chunks.

        A group is an image if its windows sum the gradient of their query, or else the batch.
        """
        groups = self.batch if self.shared and kernel == 'backward' else 1
        group = self.batch * self.windows // max(1, groups)
        wanted = PROGRAMS // max(1, groups * self.heads * self.blocks(kernel))
        chunk = -(-group // max(1, min(group, wanted)))
        return group, chunk, groups * -(-group // max(1, chunk))


def _geometry(
    qkv: Tensor, table: Tensor, window: int, q_global: Tensor | None, shift: int
) -> _Geometry:
    batch, height, width, channels = qkv.shape
    heads = table.shape[1]
    shared = q_global is not None
    head_dim = channels // heads // (2 if shared else 3)
    lead = (window - shift) % window
    return _Geometry(
        batch, height, width, heads, head_dim, window, lead, qkv.element_size(), shared
    )


def _launch(name: str, kernel: Any, geometry: _Geometry, **values: Any) -> None:
    """Run a kernel with a program per chunk, block and head."""
    tile = geometry.tile(name)
    group, chunk, pieces = geometry.chunks(name)
    kernel[(pieces * geometry.blocks(name) * geometry.heads,)](
        **values,
        height=geometry.height,
        width=geometry.width,
        channels=geometry.heads * geometry.head_dim,
        group=group,
        chunk=chunk,
        WINDOW=geometry.window,
        LEAD=geometry.lead,
        HEAD_DIM=geometry.head_dim,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
        maxnreg=tile.registers,
    )


def _inputs(
    geometry: _Geometry,
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    q_global: Tensor | None,
) -> dict[str, Any]:
    """Prepare the inputs of kernels, which cast them when they read them."""
    side = -(-(geometry.window**2) // 128) * 128
    bias = qkv.new_empty(geometry.heads, side, side)
    _bias_kernel[((side // 64) ** 2 * geometry.heads,)](
        table.contiguous(), bias, heads=geometry.heads, WINDOW=geometry.window,
        HEAD_DIM=geometry.head_dim, num_warps=4, num_stages=1,
    )  # fmt: skip
    return dict(
        qkv=qkv.contiguous(),
        padding=(
            qkv.new_zeros(qkv.shape[-1]) if padding is None else padding.to(qkv.dtype).contiguous()
        ),
        bias=bias,
        q_global=None if q_global is None else q_global.contiguous(),
    )


def _compute(
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    window: int,
    q_global: Tensor | None,
    shift: int,
) -> tuple[Tensor, Tensor]:
    """Compute the output and log2 of the softmax denominators, (B, H, W, heads) in float32."""
    geometry = _geometry(qkv, table, window, q_global, shift)
    out, lse = _empty_outputs(qkv, padding, table, window, q_global, shift)
    with torch.cuda.device_of(qkv):
        values = _inputs(geometry, qkv, padding, table, q_global)
        _launch('forward', _forward_kernel, geometry, **values, out=out, lse=lse)
    return out, lse


_attention = torch.library.custom_op('gcvit_mm::window_attention', _compute, mutates_args=())


@_attention.register_fake
def _empty_outputs(
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    window: int,
    q_global: Tensor | None,
    shift: int,
) -> tuple[Tensor, Tensor]:
    B, H, W, channels = qkv.shape
    out = qkv.new_empty(B, H, W, channels // (3 if q_global is None else 2))
    return out, qkv.new_empty(B, H, W, table.shape[1], dtype=torch.float32)


def _differentiate(
    grad_out: Tensor,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    padding: Tensor | None,
    table: Tensor,
    window: int,
    q_global: Tensor | None,
    shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of qkv, padding, table and q_global; the gradient of None is empty."""
    geometry = _geometry(qkv, table, window, q_global, shift)
    images, heads, N, head_dim = len(qkv), geometry.heads, window**2, geometry.head_dim
    of_table = 'backward' if geometry.single else 'table'
    # Sums over windows are in float32. Each program writes its own part of them, so that they are
    # reproducible, and their size depends on PROGRAMS and not on the feature map.
    sums = partial(torch.empty, dtype=torch.float32, device=qkv.device)
    pairs = sums(geometry.chunks(of_table)[-1], heads, N, N)
    shared = sums(geometry.chunks('backward')[-1], heads, N, head_dim)
    cut = geometry.height % window or geometry.width % window
    slots = images * geometry.windows * -(-N // geometry.tile('backward').keys) if cut else 0
    edge = sums(slots, 2 * heads * head_dim).zero_()
    grad_qkv, grad_table = qkv.new_empty(qkv.shape), table.new_empty(table.shape)
    with torch.cuda.device_of(qkv):
        values = _inputs(geometry, qkv, padding, table, q_global)
        values |= dict(lse=lse.contiguous(), grad_out=grad_out.contiguous(), pairs=pairs)
        values['delta'] = torch.empty_like(values['lse'])
        _launch(
            'backward', _backward_kernel, geometry, **values, out=out.contiguous(),
            grad_qkv=grad_qkv, grad_padding=edge if cut else None, grad_query=shared,
        )  # fmt: skip
        if not geometry.single:
            _launch('table', _table_kernel, geometry, **values)
        _offsets_kernel[((2 * window - 1) * heads,)](
            pairs.sum(0), grad_table, heads=heads, WINDOW=window,
            BLOCK=triton.next_power_of_2(2 * window), num_warps=4, num_stages=1,
        )  # fmt: skip
    grad_padding, grad_query = qkv.new_empty(0), qkv.new_empty(0)
    if padding is not None:
        # The outputs of padded tokens are dropped, so their queries have no gradient.
        grad_padding = F.pad(edge.sum(0), (len(padding) - edge.shape[1], 0)).to(padding.dtype)
    if q_global is not None:
        parts = shared.view(images, len(shared) // max(1, images), heads, N, head_dim)
        grad_query = (parts.sum(1) * head_dim**-0.5).to(q_global.dtype)
    return grad_qkv, grad_padding, grad_table, grad_query


_attention_backward = torch.library.custom_op(
    'gcvit_mm::window_attention_backward', _differentiate, mutates_args=()
)


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
    shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first, second, third, fourth = (
        qkv.new_empty(0) if value is None else value.new_empty(value.shape)
        for value in (qkv, padding, table, q_global)
    )
    return first, second, third, fourth


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    qkv, padding, table, ctx.window, q_global, ctx.shift = inputs
    ctx.save_for_backward(*output, qkv, padding, table, q_global)
    ctx.set_materialize_grads(False)  # lse is not returned to callers and has no gradient


def _backward(
    ctx: Any, grad_out: Tensor, _: None, differentiate: Callable = _differentiate
) -> tuple[Tensor | None, ...]:
    out, lse, qkv, padding, table, q_global = ctx.saved_tensors
    grads = differentiate(grad_out, out, lse, qkv, padding, table, ctx.window, q_global, ctx.shift)
    needs = ctx.needs_input_grad
    of_qkv, of_padding, of_table, of_query = (
        grad if need else None for grad, need in zip(grads, (*needs[:3], needs[4]), strict=True)
    )
    return of_qkv, of_padding, of_table, None, of_query, None


_attention.register_autograd(
    partial(_backward, differentiate=_attention_backward), setup_context=_setup_context
)


class _Attention(torch.autograd.Function):
    """The operator for calls that are not traced, where PyTorch's custom operators are slow."""

    forward = staticmethod(_compute)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)


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
    return triton.jit(function, do_not_specialize=['height', 'width', 'group', 'chunk'])


@_jit
def _work(blocks, group, chunk, channels, HEAD_DIM: tl.constexpr):
    """The head, block and chunk of this program, and the range of windows of the chunk."""
    # Neighbouring programs have the heads of one token, which share cache lines.
    heads = channels // HEAD_DIM
    program = tl.program_id(0)
    piece = program // (heads * blocks)
    pieces = tl.cdiv(group, chunk)
    start = piece // pieces * group
    first = start + piece % pieces * chunk
    last = tl.minimum(first + chunk, start + group)
    return program % heads, program // heads % blocks, piece, first, last


@_jit
def _origin(window, height, width, WINDOW: tl.constexpr, LEAD: tl.constexpr):
    """The image of a window, its first token in the batch, and the rows and columns from there."""
    columns = tl.cdiv(width, WINDOW) + (LEAD > 0)
    windows = columns * (tl.cdiv(height, WINDOW) + (LEAD > 0))
    image = (window // windows).to(tl.int64)
    top = window % windows // columns * WINDOW - LEAD
    left = window % columns * WINDOW - LEAD
    return image, (image * height + top) * width + left, height - top, width - left


@_jit
def _tokens(positions, height, width, down, right, WINDOW: tl.constexpr, LEAD: tl.constexpr):
    """Offsets of tokens from the origin of a window, and whether they are in the feature map."""
    y = positions // WINDOW
    x = positions % WINDOW
    valid = (positions < WINDOW * WINDOW) & (y < down) & (x < right)
    if LEAD:
        valid &= (y >= down - height) & (x >= right - width)
    return y * width + x, valid


@_jit
def _exclude(offset, keys, height, width, down, right, WINDOW: tl.constexpr, LEAD: tl.constexpr):
    """Exclude keys that are not in the padded feature map, as windows with a lead have them."""
    if LEAD:
        y = keys // WINDOW + height - down
        x = keys % WINDOW + width - right
        inside = (y >= 0) & (y < tl.cdiv(height, WINDOW) * WINDOW)
        inside &= (x >= 0) & (x < tl.cdiv(width, WINDOW) * WINDOW)
        offset = tl.where(inside[None, :], offset, -30000.0)  # not infinite: it may be all keys
    return offset


@_jit
def _read(pointer, rows, stride, mask, HEAD_DIM: tl.constexpr):
    """Read the channels of a head, (rows, HEAD_DIM); masked rows get 0."""
    lanes = tl.arange(0, HEAD_DIM)
    return tl.load(pointer + (rows[:, None] * stride + lanes[None, :]), mask=mask[:, None], other=0)


@_jit
def _write(pointer, rows, stride, mask, values, HEAD_DIM: tl.constexpr):
    lanes = tl.arange(0, HEAD_DIM)
    address = pointer + (rows[:, None] * stride + lanes[None, :])
    tl.store(address, values.to(pointer.dtype.element_ty), mask=mask[:, None])


@_jit
def _read_query(
    qkv, q_global, image, origin, tokens, valid, positions, head, channels,
    WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    if q_global is None:
        stride = 3 * channels
        at = qkv + origin * stride + head * HEAD_DIM
        query = _read(at, tokens, stride, valid, HEAD_DIM)
    else:
        N: tl.constexpr = WINDOW * WINDOW
        at = q_global + (image * (channels // HEAD_DIM) + head) * (N * HEAD_DIM)
        query = _read(at, positions, HEAD_DIM, positions < N, HEAD_DIM)
        query = query.to(qkv.dtype.element_ty)
    return query


@_jit
def _read_keys(qkv, padding, origin, tokens, valid, head, channels, parts, HEAD_DIM: tl.constexpr):
    """Read keys and values of tokens in a window; those outside the feature map have padding."""
    stride = parts * channels
    lanes = stride - 2 * channels + head * HEAD_DIM + tl.arange(0, HEAD_DIM)
    inside = qkv + origin * stride + tokens[:, None] * stride + lanes[None, :]
    outside = padding + 0 * tokens[:, None] + lanes[None, :]
    address = tl.where(valid[:, None], inside, outside)
    return tl.load(address), tl.load(address + channels)


@_jit
def _bias_kernel(table, bias, heads, WINDOW: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Write the bias of pairs of positions, divided by the scale of products of query and key.

    It is -inf for keys beyond the window.
    """
    N: tl.constexpr = WINDOW * WINDOW
    SIDE: tl.constexpr = (N + 127) // 128 * 128
    block = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    queries = block // (SIDE // 64) * 64 + tl.arange(0, 64)
    keys = block % (SIDE // 64) * 64 + tl.arange(0, 64)
    # Entry: (difference of rows) * (length of a row of the table) + (difference of columns).
    q = queries // WINDOW * (2 * WINDOW - 1) + queries % WINDOW
    k = keys // WINDOW * (2 * WINDOW - 1) + keys % WINDOW
    entries = q[:, None] - k[None, :] + 2 * WINDOW * (WINDOW - 1)
    inside = (queries < N)[:, None] & (keys < N)[None, :]
    values = tl.load(table + entries * heads + head, mask=inside, other=0.0).to(tl.float32)
    values = tl.where((keys < N)[None, :], values * HEAD_DIM**0.5, float('-inf'))
    at = bias + (head * SIDE + queries)[:, None] * SIDE + keys[None, :]
    tl.store(at, values.to(bias.dtype.element_ty))


@_jit
def _read_bias(bias, head, queries, keys, WINDOW: tl.constexpr):
    SIDE: tl.constexpr = (WINDOW * WINDOW + 127) // 128 * 128
    return tl.load(bias + (head * SIDE + queries)[:, None] * SIDE + keys[None, :]).to(tl.float32)


@_kernel
def _forward_kernel(
    qkv, padding, bias, q_global, out, lse, height, width, channels, group, chunk,
    WINDOW: tl.constexpr, LEAD: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Compute attention of a block of queries, with an online softmax over blocks of keys."""
    N: tl.constexpr = WINDOW * WINDOW
    parts: tl.constexpr = 3 if q_global is None else 2
    scale: tl.constexpr = 1.4426950408889634 * HEAD_DIM**-0.5
    heads = channels // HEAD_DIM
    head, block, _piece, first, last = _work(tl.cdiv(N, QUERIES), group, chunk, channels, HEAD_DIM)
    queries = block * QUERIES + tl.arange(0, QUERIES)
    if KEYS >= N:
        offset = _read_bias(bias, head, queries, tl.arange(0, KEYS), WINDOW)
    for window in range(first, last):
        image, origin, down, right = _origin(window, height, width, WINDOW, LEAD)
        tokens, valid = _tokens(queries, height, width, down, right, WINDOW, LEAD)
        query = _read_query(
            qkv, q_global, image, origin, tokens, valid, queries, head, channels, WINDOW, HEAD_DIM
        )
        largest = tl.full((QUERIES,), float('-inf'), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        mean = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
        for start in range(0, N, KEYS):
            keys = start + tl.arange(0, KEYS)
            key_tokens, key_valid = _tokens(keys, height, width, down, right, WINDOW, LEAD)
            key, value = _read_keys(
                qkv, padding, origin, key_tokens, key_valid, head, channels, parts, HEAD_DIM
            )
            if KEYS < N:
                offset = _read_bias(bias, head, queries, keys, WINDOW)
            bounded = _exclude(offset, keys, height, width, down, right, WINDOW, LEAD)
            scores = tl.dot(query, tl.trans(key), bounded, input_precision='ieee')
            larger = tl.maximum(largest, tl.max(scores, 1) * scale)
            weights = tl.exp2(scores * scale - larger[:, None])
            shrink = tl.exp2(largest - larger)
            total = total * shrink + tl.sum(weights, 1)
            mean = mean * shrink[:, None]
            mean = tl.dot(weights.to(value.dtype), value, mean, input_precision='ieee')
            largest = larger
        mean = mean * (1 / total)[:, None]
        _write(out + origin * channels + head * HEAD_DIM, tokens, channels, valid, mean, HEAD_DIM)
        tl.store(lse + (origin + tokens) * heads + head, largest + tl.log2(total), mask=valid)


@_jit
def _weights(query, key, offset, row_lse):
    """Compute the softmax weights again."""
    scale: tl.constexpr = 1.4426950408889634 * query.shape[1] ** -0.5
    scores = tl.dot(query, tl.trans(key), offset, input_precision='ieee')
    return tl.exp2(scores * scale - row_lse[:, None])


@_jit
def _write_pairs(pairs, sums, piece, head, heads, queries, keys, WINDOW: tl.constexpr):
    N: tl.constexpr = WINDOW * WINDOW
    at = pairs + (piece.to(tl.int64) * heads + head) * (N * N)
    inside = (queries < N)[:, None] & (keys < N)[None, :]
    tl.store(at + (queries[:, None] * N + keys[None, :]), sums, mask=inside)


@_kernel
def _backward_kernel(
    qkv, padding, bias, q_global, lse, grad_out, delta, out, grad_qkv, grad_padding, grad_query,
    pairs, height, width, channels, group, chunk,
    WINDOW: tl.constexpr, LEAD: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of qkv and q_global, and of the bias if one tile has all pairs.

    Gradients of queries are summed over blocks of keys, and over windows that share the query, in
    ``grad_query``, (chunks, heads, N, HEAD_DIM).
    """
    N: tl.constexpr = WINDOW * WINDOW
    SINGLE: tl.constexpr = KEYS >= N
    parts: tl.constexpr = 3 if q_global is None else 2
    scale: tl.constexpr = HEAD_DIM**-0.5
    SHARED: tl.constexpr = q_global is not None
    heads = channels // HEAD_DIM
    stride = parts * channels
    head, _block, piece, first, last = _work(1, group, chunk, channels, HEAD_DIM)
    query_sums = grad_query + (piece.to(tl.int64) * heads + head) * (N * HEAD_DIM)
    if SINGLE:
        sums = tl.zeros((QUERIES, KEYS), tl.float32)
        dq_sums = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    for window in range(first, last):
        image, origin, down, right = _origin(window, height, width, WINDOW, LEAD)
        at_out = origin * channels + head * HEAD_DIM
        at_row = origin * heads + head
        at_query = grad_qkv + origin * stride + head * HEAD_DIM
        if not SINGLE:
            tl.debug_barrier()
            for start in range(0, N, QUERIES):
                queries = start + tl.arange(0, QUERIES)
                tokens, valid = _tokens(queries, height, width, down, right, WINDOW, LEAD)
                grad = _read(grad_out + at_out, tokens, channels, valid, HEAD_DIM)
                mean = _read(out + at_out, tokens, channels, valid, HEAD_DIM)
                row_delta = tl.sum(mean.to(tl.float32) * grad.to(tl.float32), 1)
                tl.store(delta + at_row + tokens * heads, row_delta, mask=valid)
        for key_start in range(0, N, KEYS):
            keys = key_start + tl.arange(0, KEYS)
            key_tokens, key_valid = _tokens(keys, height, width, down, right, WINDOW, LEAD)
            key, value = _read_keys(
                qkv, padding, origin, key_tokens, key_valid, head, channels, parts, HEAD_DIM
            )
            dk = tl.zeros((KEYS, HEAD_DIM), tl.float32)
            dv = tl.zeros((KEYS, HEAD_DIM), tl.float32)
            if not SINGLE:
                tl.debug_barrier()  # before other threads read gradients of queries
            for start in range(0, N, QUERIES):
                queries = start + tl.arange(0, QUERIES)
                tokens, valid = _tokens(queries, height, width, down, right, WINDOW, LEAD)
                query = _read_query(
                    qkv, q_global, image, origin, tokens, valid, queries, head, channels,
                    WINDOW, HEAD_DIM,
                )  # fmt: skip
                grad = _read(grad_out + at_out, tokens, channels, valid, HEAD_DIM)
                offset = _read_bias(bias, head, queries, keys, WINDOW)
                offset = _exclude(offset, keys, height, width, down, right, WINDOW, LEAD)
                # Infinity sets the weights of queries outside the feature map to 0.
                row_lse = tl.load(lse + at_row + tokens * heads, mask=valid, other=float('inf'))
                weights = _weights(query, key, offset, row_lse)
                # This order of products needs the fewest registers.
                dv = tl.dot(tl.trans(weights.to(query.dtype)), grad, dv, input_precision='ieee')
                slopes = tl.dot(grad, tl.trans(value), input_precision='ieee')
                if SINGLE:
                    row_delta = tl.sum(weights * slopes, 1)
                else:
                    row_delta = tl.load(delta + at_row + tokens * heads, mask=valid, other=0.0)
                ds = weights * (slopes - row_delta[:, None])
                if SINGLE:
                    sums += ds
                narrow = ds.to(query.dtype)
                dq = tl.dot(narrow, key, input_precision='ieee')
                dk = tl.dot(tl.trans(narrow), query, dk, input_precision='ieee')
                if SINGLE and SHARED:
                    dq_sums += dq
                elif SINGLE:
                    _write(at_query, tokens, stride, valid, dq * scale, HEAD_DIM)
                else:
                    old = (queries < N) & ((key_start > 0) | SHARED & (window > first))
                    dq += _read(query_sums, queries, HEAD_DIM, old, HEAD_DIM)
                    _write(query_sums, queries, HEAD_DIM, queries < N, dq, HEAD_DIM)
            dk *= scale
            at = grad_qkv + origin * stride + (stride - 2 * channels + head * HEAD_DIM)
            _write(at, key_tokens, stride, key_valid, dk, HEAD_DIM)
            _write(at + channels, key_tokens, stride, key_valid, dv, HEAD_DIM)
            if grad_padding is not None and (down < WINDOW) | (right < WINDOW):
                # Gradients of positions beyond the window are 0.
                slot = window * tl.cdiv(N, KEYS) + key_start // KEYS
                edge = grad_padding + slot * 2 * channels + head * HEAD_DIM + tl.arange(0, HEAD_DIM)
                tl.store(edge, tl.sum(tl.where(key_valid[:, None], 0.0, dk), 0))
                tl.store(edge + channels, tl.sum(tl.where(key_valid[:, None], 0.0, dv), 0))
        if not SINGLE and q_global is None:
            tl.debug_barrier()
            for start in range(0, N, QUERIES):
                queries = start + tl.arange(0, QUERIES)
                tokens, valid = _tokens(queries, height, width, down, right, WINDOW, LEAD)
                dq = _read(query_sums, queries, HEAD_DIM, valid, HEAD_DIM)
                _write(at_query, tokens, stride, valid, dq * scale, HEAD_DIM)
    if SINGLE:
        positions = tl.arange(0, KEYS)
        _write_pairs(pairs, sums, piece, head, heads, positions, positions, WINDOW)
        if SHARED:
            _write(query_sums, positions, HEAD_DIM, positions < N, dq_sums, HEAD_DIM)


@_kernel
def _table_kernel(
    qkv, padding, bias, q_global, lse, grad_out, delta, pairs,
    height, width, channels, group, chunk,
    WINDOW: tl.constexpr, LEAD: tl.constexpr, HEAD_DIM: tl.constexpr, QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of the scores over windows, for a block of queries and one of keys."""
    N: tl.constexpr = WINDOW * WINDOW
    parts: tl.constexpr = 3 if q_global is None else 2
    heads = channels // HEAD_DIM
    blocks: tl.constexpr = (N + KEYS - 1) // KEYS
    head, pair, piece, first, last = _work(
        tl.cdiv(N, QUERIES) * blocks, group, chunk, channels, HEAD_DIM
    )
    queries = pair // blocks * QUERIES + tl.arange(0, QUERIES)
    keys = pair % blocks * KEYS + tl.arange(0, KEYS)
    offset = _read_bias(bias, head, queries, keys, WINDOW)
    sums = tl.zeros((QUERIES, KEYS), tl.float32)
    for window in range(first, last):
        image, origin, down, right = _origin(window, height, width, WINDOW, LEAD)
        tokens, valid = _tokens(queries, height, width, down, right, WINDOW, LEAD)
        query = _read_query(
            qkv, q_global, image, origin, tokens, valid, queries, head, channels, WINDOW, HEAD_DIM
        )
        at = grad_out + origin * channels + head * HEAD_DIM
        grad = _read(at, tokens, channels, valid, HEAD_DIM)
        key_tokens, key_valid = _tokens(keys, height, width, down, right, WINDOW, LEAD)
        key, value = _read_keys(
            qkv, padding, origin, key_tokens, key_valid, head, channels, parts, HEAD_DIM
        )
        rows = (origin + tokens) * heads + head
        row_lse = tl.load(lse + rows, mask=valid, other=float('inf'))
        row_delta = tl.load(delta + rows, mask=valid, other=0.0)
        bounded = _exclude(offset, keys, height, width, down, right, WINDOW, LEAD)
        weights = _weights(query, key, bounded, row_lse)
        slopes = tl.dot(grad, tl.trans(value), input_precision='ieee')
        sums += weights * (slopes - row_delta[:, None])
    _write_pairs(pairs, sums, piece, head, heads, queries, keys, WINDOW)


@_jit
def _offsets_kernel(pairs, grad_table, heads, WINDOW: tl.constexpr, BLOCK: tl.constexpr):
    """Sum pairs of positions, (heads, N, N), by their entry of the table, for a row of entries."""
    N: tl.constexpr = WINDOW * WINDOW
    SIDE: tl.constexpr = 2 * WINDOW - 1
    head = tl.program_id(0) // SIDE
    down = tl.program_id(0) % SIDE - (WINDOW - 1)
    right = tl.arange(0, BLOCK) - (WINDOW - 1)
    x = tl.arange(0, BLOCK // 2)[:, None]  # of the query
    key_x = x - right[None, :]
    inside = (x < WINDOW) & (key_x >= 0) & (key_x < WINDOW)
    at = pairs + head * (N * N) + x * N + key_x
    sums = tl.zeros((BLOCK,), tl.float32)
    for y in range(tl.maximum(0, down), tl.minimum(WINDOW, WINDOW + down)):
        start = at + (y * N + y - down) * WINDOW
        sums += tl.sum(tl.load(start, mask=inside, other=0.0), 0)
    entries = (down + WINDOW - 1) * SIDE + right + (WINDOW - 1)
    at = grad_table + entries * heads + head
    tl.store(at, sums.to(grad_table.dtype.element_ty), mask=right < WINDOW)


_INTERPRETED = triton is not None and not isinstance(_forward_kernel, triton.JITFunction)
