"""The Triton kernels of window attention, on a GPU or else in Triton's interpreter.

Without a GPU one test runs all others again with the interpreter on, which has to be before triton
is imported.
"""

import subprocess
import sys
from collections.abc import Sequence

import pytest
import torch
from interpreter import pass_in_the_interpreter
from torch import Tensor

if not hasattr(torch.library, 'custom_op'):
    pytest.skip('needs torch 2.4', allow_module_level=True)

from gcvit_mm import GCViT
from gcvit_mm.errors import ArgumentError
from gcvit_mm.models.attention import eager_attention
from gcvit_mm.models.kernels import window_attention as kernels
from gcvit_mm.models.kernels.window_attention import available, window_attention
from gcvit_mm.models.position_bias import PositionBias
from gcvit_mm.models.windows import relative_position_index

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
on_device = pytest.mark.skipif(
    not available(DEVICE), reason='no GPU; test_the_kernels_in_the_interpreter runs this'
)
natively = pytest.mark.skipif(
    available(torch.device('cpu')), reason='the interpreter of Triton is on'
)
needs_triton = pytest.mark.skipif(kernels.triton is None, reason='no triton')

# Batch, height, width, heads, channels of a head, window.
SHAPES = {
    'cells': (2, 2, 3, 2, 32, 1),
    'tiny windows': (1, 4, 6, 1, 16, 2),
    'divides': (2, 14, 7, 2, 32, 7),
    'padded at the right': (3, 7, 10, 1, 32, 7),
    'padded at the bottom': (1, 10, 7, 3, 16, 7),
    'padded both ways': (2, 9, 10, 2, 16, 7),
    'smaller than a window': (1, 5, 4, 2, 32, 7),
    'full blocks': (1, 8, 13, 2, 32, 8),
    'two blocks': (1, 9, 11, 1, 32, 9),
}
LARGE = {
    'local 14': (1, 14, 15, 1, 32, 14),
    'global 14': (1, 14, 15, 1, 32, 14),
    'local 24': (1, 24, 22, 1, 16, 24),
    'global 32': (1, 29, 32, 1, 16, 32),
}
QUERIES = ('local', 'global')


def make_inputs(
    shape: Sequence[int], query: str, dtypes: Sequence[torch.dtype] = (torch.float32,) * 4
) -> tuple[list[Tensor | None], Tensor]:
    """qkv, padding, table and q_global (None where it is local), and a gradient of the output."""
    B, H, W, heads, head_dim, window = shape
    channels = (3 if query == 'local' else 2) * heads * head_dim
    sizes = [(B, H, W, channels), (channels,), ((2 * window - 1) ** 2, heads)]
    if query == 'global':
        sizes.append((B, heads, window**2, head_dim))
    torch.manual_seed(0)
    inputs = [
        torch.randn(size).to(DEVICE, dtype).requires_grad_()
        for size, dtype in zip(sizes, dtypes, strict=False)
    ]
    grad = torch.randn(B, H, W, heads * head_dim).to(DEVICE, dtypes[0])
    return [*inputs, None][:4], grad


def eager(
    qkv: Tensor, padding: Tensor | None, table: Tensor, window: int, q_global: Tensor | None = None
) -> Tensor:
    """The package's readable attention, with the arguments of ``window_attention``."""
    padding = qkv.new_zeros(qkv.shape[-1]) if padding is None else padding
    index = relative_position_index(window).to(qkv.device)
    return eager_attention(qkv, padding, q_global, PositionBias(table, index, window))


def results(attention, inputs, grad, window, dtype=None, **options) -> dict[str, Tensor | None]:
    """The output and the gradients of the inputs, which are cast to a type if one is given."""
    leaves = [
        None if x is None else x.detach().to(dtype or x.dtype).requires_grad_(x.requires_grad)
        for x in inputs
    ]
    qkv, padding, table, q_global = leaves
    out = attention(qkv, padding, table, window, q_global, **options)
    out.backward(grad)
    names = ('qkv', 'padding', 'table', 'q_global')
    grads = {name: leaf.grad for name, leaf in zip(names, leaves, strict=True) if leaf is not None}
    return {'out': out.detach(), **grads}


def reference(inputs, grad, window) -> dict[str, Tensor | None]:
    """``results`` of eager attention in float64."""
    return results(eager, inputs, grad.double(), window, dtype=torch.float64)


def errors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest error of each result, relative to its largest entry, which may be 0, or to 1."""
    assert actual.keys() == expected.keys()
    return {
        name: ((actual[name].double() - value).abs().max() / value.abs().max().clamp(min=1)).item()
        for name, value in expected.items()
    }


# float32 rounds at 6e-8. Sums of up to 1024 terms, powers of two and the table's sums over windows
# make it some 1e-6 of the largest entry.
def check_float32(inputs, grad, window, **options) -> None:
    actual = results(window_attention, inputs, grad, window, **options)
    found = errors(actual, reference(inputs, grad, window))
    assert all(error < 1e-5 for error in found.values()), found


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch):
    """Multiply bfloat16 by value: the interpreter's tl.dot takes its bits for integers."""
    if DEVICE.type == 'cuda' or not available(DEVICE):
        return
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def widened(handle):
        if handle.dtype != bfloat16:
            return handle
        data = interpreter._convert_float(handle.data, bfloat16, float32, None)
        return interpreter.TensorHandle(data.view('float32'), float32)

    def create_dot(self, a, b, *rest):
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, 'create_dot', create_dot)


# --- Values and gradients ---------------------------------------------------------------------


@on_device
@pytest.mark.parametrize('query', QUERIES)
@pytest.mark.parametrize('shape', SHAPES.values(), ids=SHAPES)
def test_output_and_all_gradients_are_those_of_eager_attention_in_float64(shape, query):
    inputs, grad = make_inputs(shape, query)
    check_float32(inputs, grad, shape[-1])


@on_device
@pytest.mark.slow
@pytest.mark.parametrize('case', LARGE)
def test_large_windows_are_exact_over_many_blocks(case):
    inputs, grad = make_inputs(LARGE[case], case.split()[0])
    check_float32(inputs, grad, LARGE[case][-1])


@on_device
@pytest.mark.parametrize('query', QUERIES)
@pytest.mark.parametrize('shape', [(3, 9, 16, 1, 16, 7), (2, 8, 20, 1, 16, 9)], ids=str)
def test_few_programs_sum_over_many_windows(shape, query, monkeypatch):
    monkeypatch.setattr(kernels, 'PROGRAMS', 4)  # chunks of unequal size
    inputs, grad = make_inputs(shape, query)
    check_float32(inputs, grad, shape[-1])


@on_device
def test_a_backbone_gives_the_maps_and_gradients_of_eager_attention():
    arch = dict(
        dim=32, depths=(2, 2, 2, 1), num_heads=(2, 2, 4, 8), mlp_ratio=1, layer_scale=0.5,
        drop_path_rate=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    models = [
        GCViT(arch, window_size=(4, 3, 2, 1), attn_impl=impl).to(DEVICE)
        for impl in ('eager', 'triton')
    ]
    models[1].load_state_dict(models[0].state_dict())
    images = torch.randn(2, 3, 22, 30, device=DEVICE)
    found = []
    for model in models:
        outs = model(images)
        # Not ones, which the last norms give a gradient of 0.
        torch.autograd.backward(
            outs, [torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out) for out in outs]
        )
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
        found.append({'maps': torch.cat([out.flatten() for out in outs]).detach(), **grads})
    compared = errors(found[1], found[0])
    assert all(error < 1e-4 for error in compared.values()), compared


@on_device
@pytest.mark.parametrize('query', QUERIES)
def test_no_padding_vector_is_a_padding_of_zeros(query):
    shape = SHAPES['smaller than a window']
    (qkv, _, table, q_global), grad = make_inputs(shape, query)
    check_float32([qkv, None, table, q_global], grad, shape[-1])


@on_device
@pytest.mark.parametrize('query', QUERIES)
@pytest.mark.parametrize('window', [7, 9])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_exact_as_eager_attention(dtype, window, query):
    inputs, grad = make_inputs((1, 8, 13, 1, 32, window), query, (dtype,) * 4)
    expected = reference(inputs, grad, window)
    found = errors(results(window_attention, inputs, grad, window), expected)
    allowed = errors(results(eager, inputs, grad, window), expected)
    epsilon = torch.finfo(dtype).eps
    assert all(found[name] < 2 * allowed[name] + epsilon for name in found), (found, allowed)


@on_device
def test_inputs_of_mixed_types_as_under_autocast_get_gradients_of_their_own_types():
    shape, dtypes = SHAPES['smaller than a window'], (torch.float16, *[torch.float32] * 3)
    inputs, grad = make_inputs(shape, 'global', dtypes)
    actual = results(window_attention, inputs, grad, shape[-1])
    assert [value.dtype for value in actual.values()] == [torch.float16, *dtypes]
    found = errors(actual, reference(inputs, grad, shape[-1]))
    assert all(error < 4 * torch.finfo(torch.float16).eps for error in found.values()), found


@on_device
@pytest.mark.parametrize('query', QUERIES)
def test_large_scores_do_not_overflow(query):
    inputs, grad = make_inputs((1, 9, 8, 1, 32, 7), query)
    inputs = [None if x is None else (10 * x).detach().requires_grad_() for x in inputs]
    actual = results(window_attention, inputs, grad, 7)
    assert all(value.isfinite().all() for value in actual.values())
    # Scores near a thousand, logarithms of weights, are rounded at some 1e-4.
    found = errors(actual, reference(inputs, grad, 7))
    assert all(error < 1e-3 for error in found.values()), found


# --- Swin Transformer -------------------------------------------------------------------------


@on_device
@pytest.mark.parametrize(
    'shape',
    [
        *[(10, 16, 7, 3), (9, 7, 7, 0), (5, 4, 7, 6)],
        *(
            pytest.param(shape, marks=pytest.mark.slow)
            for shape in [(14, 14, 7, 3), (10, 13, 9, 4)]
        ),
    ],
    ids=str,
)
def test_shifted_windows_are_those_of_mmdets_swin(shape):
    from mmdet.models.backbones.swin import ShiftWindowMSA

    from gcvit_mm.models.kernels import swin

    height, width, window, shift = shape
    torch.manual_seed(0)
    module = ShiftWindowMSA(32, 2, window, shift).to(DEVICE)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, height * width, 32, device=DEVICE, requires_grad=True)
    grad = torch.randn_like(x)
    found = []
    for forward in (ShiftWindowMSA.forward, swin.mmdet_forward):
        out = forward(module, x, (height, width))
        grads = torch.autograd.grad(out, [x, *module.parameters()], grad)
        found.append({str(i): value.detach() for i, value in enumerate([out, *grads])})
    compared = errors(found[0], {name: value.double() for name, value in found[1].items()})
    assert all(error < 1e-5 for error in compared.values()), compared


@on_device
def test_one_import_runs_mmdets_swin_on_the_kernels(monkeypatch):
    from mmdet.models import SwinTransformer

    from gcvit_mm.models.kernels import swin

    shifts = []
    attention = swin.window_attention
    monkeypatch.setattr(
        swin,
        'window_attention',
        lambda *args, shift: (shifts.append(shift), attention(*args, shift=shift))[1],
    )
    torch.manual_seed(0)
    model = SwinTransformer(embed_dims=32, depths=(2, 1), num_heads=(1, 2), window_size=4,
        strides=(4, 2), out_indices=(0, 1), drop_path_rate=0.0).to(DEVICE)  # fmt: skip
    model.eval()
    images = torch.randn(1, 3, 37, 50, device=DEVICE)
    with torch.no_grad():
        ours = model(images)
        monkeypatch.setattr(swin, 'available', lambda device: False)
        theirs = model(images)
    assert shifts == [0, 2, 0]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@on_device
def test_a_shift_of_a_whole_window_is_refused():
    inputs, _ = make_inputs((1, 4, 4, 1, 16, 4), 'local')
    with pytest.raises(ArgumentError, match='shifted by 0 to 3, not 4'):
        window_attention(*inputs[:3], 4, shift=4)


# --- What a caller relies on ------------------------------------------------------------------


@on_device
@pytest.mark.parametrize('shape', [(2, 7, 9, 2, 16, 7), (1, 9, 8, 1, 16, 9)], ids=str)
def test_gradients_repeat_to_the_bit(shape):
    inputs, grad = make_inputs(shape, 'global')
    first, second = (results(window_attention, inputs, grad, shape[-1]) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@on_device
@pytest.mark.parametrize('window', [4, 9], ids=['one block', 'several blocks'])
@pytest.mark.parametrize('wanted', ['qkv', 'padding', 'table', 'q_global'])
def test_only_the_gradient_that_is_asked_for_is_given(wanted, window):
    inputs, grad = make_inputs((1, window, window + 1, 1, 16, window), 'global')
    for name, value in zip(('qkv', 'padding', 'table', 'q_global'), inputs, strict=True):
        value.requires_grad_(name == wanted)
    actual = results(window_attention, inputs, grad, window)
    assert {name for name, value in actual.items() if value is not None} == {'out', wanted}
    expected = reference(inputs, grad, window)
    found = errors(*({wanted: values[wanted]} for values in (actual, expected)))
    assert found[wanted] < 1e-5


@on_device
def test_inputs_and_gradients_of_any_strides_are_read_right():
    (qkv, padding, table, q_global), _ = make_inputs((2, 7, 8, 2, 16, 4), 'global')
    strided = [
        qkv.detach().transpose(1, 2).contiguous().transpose(1, 2),
        padding.detach().repeat_interleave(2)[::2],
        table.detach().t().contiguous().t(),
        q_global.detach().transpose(1, 2).contiguous().transpose(1, 2),
    ]
    assert not any(value.is_contiguous() for value in strided)
    grad = torch.tensor(0.5, device=DEVICE).expand(2, 7, 8, 32)
    check_float32([value.requires_grad_() for value in strided], grad, 4)


@on_device
@pytest.mark.parametrize('dynamic', [False, True])
def test_compiling_takes_a_call_as_one_graph(dynamic):
    inputs, grad = make_inputs((1, 6, 5, 1, 16, 4), 'global')

    def attention(qkv, padding, table, window, q_global):
        return window_attention(qkv * 1, padding, table, window, q_global) * 1

    compiled = torch.compile(attention, fullgraph=True, backend='aot_eager', dynamic=dynamic)
    found = errors(results(compiled, inputs, grad, 4), reference(inputs, grad, 4))
    assert all(error < 1e-5 for error in found.values()), found


@on_device
def test_the_operators_keep_pytorchs_rules_for_operators():
    inputs, grad = make_inputs((1, 6, 5, 1, 16, 4), 'global')
    qkv, padding, table, q_global = inputs
    args = (qkv, padding, table, 4, q_global, 1)
    torch.library.opcheck(kernels._attention, args)
    out, lse = kernels._attention(*args)
    args = [value.detach() if isinstance(value, Tensor) else value for value in (out, lse, *args)]
    torch.library.opcheck(kernels._attention_backward, (grad, *args))


@on_device
@pytest.mark.parametrize(
    'shape, message',
    [
        ((1, 4, 4, 1, 24, 2), 'heads of 16, 32, 64, 128 channels, not 24'),
        ((1, 4, 4, 1, 16, 33), 'windows of 1 to 32, not 33'),
    ],
)
def test_what_the_kernels_cannot_do_is_refused(shape, message):
    inputs, _ = make_inputs(shape, 'local')
    with pytest.raises(ArgumentError, match=message):
        window_attention(*inputs[:3], shape[-1])


@on_device
def test_wrong_types_and_shapes_are_refused():
    (qkv, padding, table, q_global), _ = make_inputs((1, 4, 4, 2, 16, 2), 'global')
    with pytest.raises(ArgumentError, match=r'does not support torch\.float64'):
        window_attention(qkv.double(), padding, table, 2, q_global)
    with pytest.raises(ArgumentError, match='table has shape'):
        window_attention(qkv, padding, table, 3, q_global[:, :, :1].expand(-1, -1, 9, -1))
    with pytest.raises(ArgumentError, match='q_global has shape'):
        window_attention(qkv, padding, table, 2, q_global[:, :, :3])
    with pytest.raises(ArgumentError, match='padding has shape'):
        window_attention(qkv, padding[:-1], table, 2, q_global)


# --- Without a GPU ----------------------------------------------------------------------------


@natively
def test_without_triton_the_module_imports_and_says_what_is_missing():
    script = (
        'import sys; sys.modules["triton"] = None; import torch;'
        'from gcvit_mm.models.kernels.window_attention import available, window_attention;'
        'print(available(torch.device("cuda")));'
        'window_attention(torch.zeros(1, 2, 2, 48), None, torch.zeros(9, 1), 2)'
    )
    run = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True)
    assert run.stdout == 'False\n', run.stderr
    assert 'ArgumentError: Triton attention needs the package triton' in run.stderr


@natively
@needs_triton
def test_a_cpu_is_refused():
    with pytest.raises(ArgumentError, match='CUDA device, not cpu'):
        window_attention(torch.zeros(1, 2, 2, 48), None, torch.zeros(9, 1), 2)


@natively
@needs_triton
@pytest.mark.parametrize('window', [7, 14], ids=['one block', 'several blocks'])
@pytest.mark.parametrize('query', QUERIES)
def test_kernels_compile_for_a_gpu_and_fit_it(query, window, monkeypatch, tmp_path):
    """The compiler needs no GPU, and refuses much that the interpreter takes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {torch.float32: '*fp32', torch.bfloat16: '*bf16'}
    compiled = {}

    def compile_only(kernel, *args, grid, warmup, num_warps, num_stages, maxnreg=None, **named):
        named |= zip((parameter.name for parameter in kernel.params), args, strict=False)
        signature, constants, divisible = {}, {}, {}
        for i, parameter in enumerate(kernel.params):
            value = named[parameter.name]
            if parameter.is_constexpr or value is None:
                signature[parameter.name], constants[(i,)] = 'constexpr', value
                continue
            is_tensor = isinstance(value, Tensor)
            signature[parameter.name] = types[value.dtype] if is_tensor else 'i32'
            if is_tensor or (value % 16 == 0 and not parameter.do_not_specialize):
                divisible[(i,)] = [['tt.divisibility', 16]]
        compiled[kernel.fn.__name__] = triton.compile(
            ASTSource(kernel, signature, constants, divisible),
            target=GPUTarget('cuda', 80, 32),
            options=dict(num_warps=num_warps, num_stages=num_stages, maxnreg=maxnreg),
        )

    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(triton.JITFunction, 'run', compile_only)
    monkeypatch.setattr(kernels, 'available', lambda device: True)
    dtypes = (torch.bfloat16, *[torch.float32] * 3)
    inputs, grad = make_inputs((1, window, window + 1, 2, 32, window), query, dtypes)
    # The compiler's results stay on the CPU, as do the inputs; nothing runs.
    inputs, grad = [None if x is None else x.detach().cpu() for x in inputs], grad.cpu()
    inputs = [None if x is None else x.requires_grad_() for x in inputs]
    results(window_attention, inputs, grad, window)
    names = {'_bias_kernel', '_forward_kernel', '_backward_kernel', '_offsets_kernel'}
    if window == 14:
        names |= {'_table_kernel'}
    assert compiled.keys() == names
    for kernel in compiled.values():
        assert kernel.metadata.shared <= 99 * 1024  # what a block of compute capability 8.6 has


@pytest.mark.skipif(available(DEVICE), reason='the tests run here')
@needs_triton
@pytest.mark.parametrize('marked', ['not slow', pytest.param('slow', marks=pytest.mark.slow)])
def test_the_kernels_in_the_interpreter(marked):
    pass_in_the_interpreter(__file__, '-m', marked)
