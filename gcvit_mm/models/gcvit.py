"""GC ViT, the Global Context Vision Transformer, as a backbone (https://arxiv.org/abs/2206.09959).

Feature maps are (B, H, W, C) inside the stages; convolutions get (B, C, H, W) views of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import ArgumentError
from .archs import arch_settings
from .attention import WindowAttention, resolve_attention
from .buffers import DropPath, compute_buffers
from .compilation import compile_backbone
from .fused import ChannelNorm, can_fuse, run_fused
from .graphs import CudaGraphs
from .resize import bicubic_weights, resize
from .windows import relative_position_index

STRIDES = (4, 8, 16, 32)

# Torch before 2.7 cannot tell.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)


class SqueezeExcite(nn.Module):
    """A gate for each channel, computed from its mean: linear, GELU, linear, sigmoid; no biases."""

    def __init__(self, dim: int, ratio: float = 0.25) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, int(dim * ratio), bias=False)
        self.fc2 = nn.Linear(int(dim * ratio), dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C)
        return self.fc2(F.gelu(self.fc1(x.mean(dim=(2, 3))))).sigmoid()


class MBConv(nn.Module):
    """Residual depthwise 3x3, GELU, squeeze-excite, pointwise 1x1; no biases, no norms."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.se = SqueezeExcite(dim)
        self.conv_pw = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        return x + self._mix(F.gelu(self.conv_dw(x)))

    def _mix(self, x: Tensor) -> Tensor:
        """Apply the gate to the pointwise convolution's weights, which are smaller than ``x``."""
        weight = self.conv_pw.weight.flatten(1) * self.se(x)[:, None]  # (B, C, C)
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2) @ weight.transpose(1, 2)
        return tokens.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve a feature map, (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out_dim)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(dim)
        self.conv = MBConv(dim)
        self.reduction = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = ChannelNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x).permute(0, 3, 1, 2)
        return self.norm2(self.reduction(self.conv(x)).permute(0, 2, 3, 1))


class Stem(nn.Module):
    """Patch embedding, (B, in_channels, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 3, stride=2, padding=1)
        self.down = Downsample(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.down(self.conv(x).permute(0, 2, 3, 1))


class GlobalQuery(nn.Module):
    """Computes the query that all windows of an image share from the input of a stage.

    It has one MBConv for each entry of ``pools``, and a 3x3 max-pool of stride 2 after it if the
    entry is True.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, pools: Sequence[bool]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.pools = tuple(pools)
        self.convs = nn.ModuleList(MBConv(dim) for _ in self.pools)
        self.weights: dict[tuple, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, N, C / heads), N = window_size ** 2."""
        x = x.permute(0, 3, 1, 2)
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x = conv(x)
            if pool:
                x = F.max_pool2d(x, 3, stride=2, padding=1)
        x = x.permute(0, 2, 3, 1)
        # An exported graph cannot branch on the size; resizing to the same size changes nothing.
        if _is_exporting():
            x = resize(x, *(bicubic_weights(n, self.window_size, x) for n in x.shape[1:3]))
        elif x.shape[1:3] != (self.window_size, self.window_size):
            kind = 'cpu' if x.is_meta else x.device.type  # the meta device has no autocast
            with torch.autocast(kind, enabled=False):
                x = resize(x, *(self._weights(n, x) for n in x.shape[1:3]))
        return x.flatten(1, 2).unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _weights(self, size: int, like: Tensor) -> Tensor:
        key = size, like.dtype, like.device
        if key not in self.weights:
            with torch.inference_mode(False):  # training must be able to use them
                self.weights[key] = bicubic_weights(size, self.window_size, like)
        return self.weights[key]


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A transformer block: attention and MLP, each with a pre-norm, layer scale and a residual."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        global_query: bool,
        mlp_ratio: float,
        layer_scale: float | None,
        drop_path: float,
        attn_impl: str,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window_size, global_query, attn_impl)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.gamma1 = _gamma(dim, layer_scale)
        self.gamma2 = _gamma(dim, layer_scale)

    def forward(self, x: Tensor, index: Tensor, q_global: Tensor | None) -> Tensor:
        x = x + self.drop_path(_scale(self.attn(self.norm1(x), index, q_global), self.gamma1))
        return x + self.drop_path(_scale(self.mlp(self.norm2(x)), self.gamma2))


def _gamma(dim: int, layer_scale: float | None) -> nn.Parameter | None:
    return None if layer_scale is None else nn.Parameter(torch.full((dim,), float(layer_scale)))


def _scale(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma


class Stage(nn.Module):
    """Blocks of one resolution: even blocks use local attention, odd blocks the global query."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        pools: Sequence[bool],
        drop_paths: Sequence[float],
        with_cp: bool,
        downsample: bool,
        **block: Any,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.window_size = window_size
        # All blocks share one index; checkpoints do not have it, and therefore fit any window.
        self.index: Tensor
        self.register_buffer('index', self.compute()['index'], persistent=False)
        # A stage of one block has no global attention, and needs no query.
        has_global = len(drop_paths) > 1
        self.global_query = GlobalQuery(dim, num_heads, window_size, pools) if has_global else None
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, window_size, global_query=i % 2 == 1, drop_path=rate, **block)
            for i, rate in enumerate(drop_paths)
        )
        self.downsample = Downsample(dim, 2 * dim) if downsample else None

    def compute(self) -> dict[str, Tensor]:
        return {'index': relative_position_index(self.window_size)}

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); the caller keeps the output and then downsamples."""
        q_global = self.global_query(x) if self.global_query else None
        if can_fuse(self.blocks, x):
            return run_fused([*self.blocks], x, self.index, q_global, self.with_cp)
        for i, block in enumerate(self.blocks):
            query = q_global if i % 2 else None
            if self.with_cp and torch.is_grad_enabled():
                x = cp.checkpoint(block, x, self.index, query, use_reentrant=False)
            else:
                x = block(x, self.index, query)
        return x


@MODELS.register_module()
class GCViT(BaseModule):
    """Global Context Vision Transformer, a backbone with a feature pyramid for images of any size.

    Args:
        arch: A key of ``ARCHS``, or a dict with exactly the keys dim, depths, num_heads, mlp_ratio,
            layer_scale and drop_path_rate.
        window_size: Side of the windows in tokens, for all stages or one per stage. None is the
            setting for ImageNet at 224 pixels: 7, 7, 14, 7.
        out_indices: Stages whose feature maps are returned, ascending. Later stages are not built.
        pretrain_size: Side in pixels of the images of the pre-training. It decides whether the
            global query of the third stage is pooled; the weights do not show it.
        drop_path_rate: Rate of the last block; it rises linearly from 0 at the first block. None
            takes the rate of the arch.
        frozen_stages: -1 freezes nothing, 0 the stem, i > 0 the stem and the first i stages with
            their output norms.
        with_cp: Recompute the activations of the blocks in the backward pass to save memory.
        attn_impl: 'eager', 'sdpa', 'triton' on CUDA devices, or 'auto', the fastest of them.
        compile_sides: Heights and widths in pixels. If given, ``torch.compile`` compiles the blocks
            once for each image size, and images are padded to the next of these sides so that
            there are few sizes; larger images keep theirs. ``()`` pads nothing. None does not
            compile. See ``gcvit_mm.models.compilation``.
        compile_mode: With ``compile_sides``, 'inductor' compiles the blocks by ``torch.compile``;
            'cuda_graphs' records the kernels of forward and backward pass for each image size and
            replays them, which takes no compiler. See ``gcvit_mm.models.graphs``.
        in_channels: Channels of the images.
        init_cfg: mmengine's initialisation. ``dict(type='Pretrained', checkpoint=FILE)`` takes
            files of the authors, of timm and of this package; see
            ``gcvit_mm.weights.load.load_pretrained`` for its options.

    Attributes:
        out_channels: Channels of each returned feature map.
        out_strides: Stride in pixels of each returned feature map.

    Raises:
        ArgumentError: An argument is not valid; an ArgumentError is also a ValueError.

    Examples:
        >>> model = GCViT('xxtiny').eval()
        >>> [tuple(x.shape) for x in model(torch.zeros(1, 3, 250, 333))]
        [(1, 64, 63, 84), (1, 128, 32, 42), (1, 256, 16, 21), (1, 512, 8, 11)]
    """

    def __init__(
        self,
        arch: str | Mapping,
        *,
        window_size: int | Sequence[int] | None = None,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrain_size: int = 224,
        drop_path_rate: float | None = None,
        frozen_stages: int = -1,
        with_cp: bool = False,
        attn_impl: str = 'auto',
        compile_sides: Sequence[int] | None = None,
        compile_mode: str = 'inductor',
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        settings = arch_settings(arch)
        windows = _window_sizes(window_size)
        self.out_indices = _check_out_indices(out_indices)
        if frozen_stages not in range(-1, 5):
            raise ArgumentError(
                f'frozen_stages={frozen_stages} is unknown: choose -1, 0, 1, 2, 3 or 4'
            )
        self.frozen_stages = frozen_stages
        self.attn_impl = resolve_attention(attn_impl)

        rate = settings['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        if not 0 <= rate < 1:
            raise ArgumentError(f'drop_path_rate={rate} is not in [0, 1)')
        depths = settings['depths']
        last_block = max(sum(depths) - 1, 1)
        rates = (rate * block / last_block for block in range(sum(depths)))
        drop_paths = [[next(rates) for _ in range(depth)] for depth in depths]
        # The third stage pools its query only if the feature map of the pre-training is larger than
        # its window.
        pools = ([True] * 3, [True] * 2, [windows[2] != pretrain_size // 16], [False])

        dim, last = settings['dim'], self.out_indices[-1]
        dims = [dim * 2**i for i in range(4)]
        block = {key: settings[key] for key in ('mlp_ratio', 'layer_scale')}
        block |= dict(attn_impl=self.attn_impl)
        self.stem = Stem(in_channels, dim)
        of_stages = zip(dims, settings['num_heads'], windows, pools, drop_paths, strict=True)
        self.stages = nn.ModuleList(
            Stage(*own, with_cp=with_cp, downsample=i < last, **block)
            for i, own in enumerate(of_stages)
            if i <= last
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', ChannelNorm(dims[i]))
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(STRIDES[i] for i in self.out_indices)

        self.graphs: CudaGraphs | None = None
        self.apply(_init_module)
        self.register_load_state_dict_post_hook(compute_buffers)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        if compile_sides is not None:
            blocks = [module for module in self.modules() if isinstance(module, Block)]
            compile_backbone(self, blocks, compile_sides, compile_mode)
        elif compile_mode != 'inductor':
            raise ArgumentError(f'compile_mode={compile_mode!r} needs compile_sides, such as ()')
        if self.graphs and with_cp:
            raise ArgumentError("compile_mode='cuda_graphs' cannot recompute: leave out with_cp")

    def _apply(self, fn: Callable, recurse: bool = True) -> 'GCViT':
        was_meta = self.stem.conv.weight.is_meta
        super()._apply(fn, recurse)
        if was_meta:
            compute_buffers(self)
        return self

    def init_weights(self) -> None:
        """Initialise the weights: from a checkpoint of any naming and windows, or at random.

        Raises:
            gcvit_mm.errors.UserError: The file is missing, damaged, or not of this model.
        """
        if isinstance(self.init_cfg, Mapping) and self.init_cfg['type'] == 'Pretrained':
            from ..weights.load import load_pretrained

            options = {key: value for key, value in self.init_cfg.items() if key != 'type'}
            load_pretrained(self, **options)
            self._is_init = True
        else:
            super().init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid.

        Args:
            x: Images of shape (B, in_channels, H, W), any H and W of at least one pixel.

        Returns:
            For each entry j of ``out_indices`` a feature map of shape (B, out_channels[j],
            ceil(H / s), ceil(W / s)), s = out_strides[j].
        """
        return self.graphs.run(self, x) if self.graphs else self.pyramid(x)

    def pyramid(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature pyramid without CUDA graphs; arguments are those of ``forward``."""
        outs = []
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                out = self.get_submodule(f'norm{i}')(x)
                outs.append(out.permute(0, 3, 1, 2).contiguous())
            if isinstance(stage.downsample, Downsample):
                x = stage.downsample(x)
        return tuple(outs)

    def train(self, mode: bool = True) -> 'GCViT':
        """Set the training mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The layer of a parameter and the number of layers, for layer-wise learning-rate decay.

        The stem is layer 0, each block is a layer, and everything after the blocks is the last
        layer. mmpretrain's backbones count in this way, and both its optimizer constructor and
        ``LayerDecayOptimWrapperConstructor`` expect it. The prefix is the backbone's place in the
        model, ``'backbone.'`` for example.
        """
        depths = [len([*stage.get_submodule('blocks').children()]) for stage in self.stages]
        last = sum(depths) + 1
        name = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or name[0] not in ('stem', 'stages'):
            # The output norms belong here too: ImageNet weights lack the first three, so they learn
            # as fast as a head.
            layer = last
        elif name[0] == 'stem':
            layer = 0
        else:
            stage, part = int(name[1]), name[2]
            before = sum(depths[:stage])
            if part == 'blocks':
                layer = before + int(name[3]) + 1
            elif part == 'downsample':  # with the last block, as in mmpretrain's Swin
                layer = before + depths[stage]
            else:  # the global query reads what the first block reads, and is read by the second
                layer = before + 1
        return layer, last + 1

    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        norms = [self.get_submodule(f'norm{i}') for i in self.out_indices if i < self.frozen_stages]
        return [self.stem, *self.stages[: self.frozen_stages], *norms]


def _init_module(module: nn.Module) -> None:
    """Initialise as the authors of the paper do; convolutions keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def _window_sizes(window_size: int | Sequence[int] | None) -> tuple[int, ...]:
    if window_size is None:
        return 7, 7, 14, 7
    windows = (window_size,) * 4 if isinstance(window_size, int) else tuple(window_size)
    if len(windows) != 4 or min(windows) < 1:
        raise ArgumentError(f'window_size must be a positive int or 4 of them, not {window_size}')
    return windows


def _check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices)) or not set(indices) <= set(range(4)):
        raise ArgumentError(f'out_indices must ascend within 0, 1, 2, 3, not {indices}')
    return indices
