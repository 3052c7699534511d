"""GC ViT, the Global Context Vision Transformer, as a backbone (https://arxiv.org/abs/2206.09959).

Inside the stages maps are channels-last, (B, H, W, C); convolutions see (B, C, H, W) views.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..errors import ArgumentError
from .archs import ARCHS, KEYS
from .attention import WindowAttention, resolve_attention
from .compilation import compile_blocks
from .windows import relative_position_index

STRIDES = (4, 8, 16, 32)

# Torch before 2.7 cannot tell.
_is_exporting = getattr(torch.compiler, 'is_exporting', lambda: False)


class SqueezeExcite(nn.Module):
    """Gate of each channel from the map's mean: linear, GELU, linear, sigmoid; no biases."""

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
        """Gate and pointwise convolution; gated are an image's weights instead of its map."""
        weight = self.conv_pw.weight.flatten(1) * self.se(x)[:, None]  # (B, C, C)
        cells = x.permute(0, 2, 3, 1).flatten(1, 2) @ weight.transpose(1, 2)
        return cells.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve a map, (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), out_dim)."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.conv = MBConv(dim)
        self.reduction = nn.Conv2d(dim, out_dim, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.LayerNorm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x).permute(0, 3, 1, 2)
        return self.norm2(self.reduction(self.conv(x)).permute(0, 2, 3, 1))


class Stem(nn.Module):
    """Image to the first map, (B, in_channels, H, W) -> (B, ceil(H / 4), ceil(W / 4), dim)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 3, stride=2, padding=1)
        self.down = Downsample(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return self.down(self.conv(x).permute(0, 2, 3, 1))


class GlobalQuery(nn.Module):
    """The query that all windows of an image share, from the stage's input map.

    Args:
        dim: Channels.
        num_heads: Heads.
        window_size: Side of a window, in cells.
        pools: One MBConv per entry; True where a 3x3 max-pool of stride 2 follows it.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int, pools: Sequence[bool]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.pools = tuple(pools)
        self.convs = nn.ModuleList(MBConv(dim) for _ in self.pools)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, heads, N, C / heads), N = window_size ** 2."""
        x = x.permute(0, 3, 1, 2)
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x = conv(x)
            if pool:
                x = F.max_pool2d(x, 3, stride=2, padding=1)
        size = (self.window_size, self.window_size)
        # A graph for other sizes too cannot ask; of one that fits, resizing makes the same.
        if _is_exporting() or x.shape[2:] != size:
            x = F.interpolate(x, size, mode='bicubic', align_corners=False)
        return x.flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)


class Mlp(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drop the residual branch of whole items of a batch, at random, while training."""

    keep: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.drops = rate > 0
        # A tensor, for a compiled block must not depend on what differs from block to block.
        self.register_buffer('keep', torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.drops):
            return x
        keep = self.keep.to(x.dtype)
        mask = torch.bernoulli(keep.expand(x.shape[0], *[1] * (x.ndim - 1)))
        return x * (mask / keep)


class Block(nn.Module):
    """Attention and MLP, each normalised before, optionally scaled, and added."""

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
    """Blocks of one resolution: even ones attend locally, odd ones with the global query."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        pools: Sequence[bool],
        drop_paths: Sequence[float],
        mlp_ratio: float,
        layer_scale: float | None,
        attn_impl: str,
        with_cp: bool,
        downsample: bool,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        # One index for the stage, and none in checkpoints, which then fit any window.
        self.register_buffer('index', relative_position_index(window_size), persistent=False)
        # A stage of one block has no global attention to ask for the query.
        has_global = len(drop_paths) > 1
        self.global_query = GlobalQuery(dim, num_heads, window_size, pools) if has_global else None
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                window_size,
                global_query=i % 2 == 1,
                mlp_ratio=mlp_ratio,
                layer_scale=layer_scale,
                drop_path=rate,
                attn_impl=attn_impl,
            )
            for i, rate in enumerate(drop_paths)
        )
        self.downsample = Downsample(dim, 2 * dim) if downsample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C); the caller downsamples, after it took its output."""
        q_global = self.global_query(x) if self.global_query else None
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
        window_size: Side of the windows in cells, for all stages or one per stage. None is the
            ImageNet setting of 224 pixels: 7, 7, 14, 7.
        out_indices: Stages whose maps are returned, ascending. Stages behind the last one are not
            built.
        pretrain_size: Side in pixels of the images that the weights were trained on. It decides
            whether the third stage's global query is pooled (no parameter tells).
        drop_path_rate: Rate of the last block, rising linearly from 0 at the first; None takes the
            arch's.
        frozen_stages: 0 freezes the stem, i > 0 also the first i stages with their output norms;
            -1 freezes nothing.
        norm_eval: Keep norm layers in evaluation mode while training. GC ViT's own are LayerNorms,
            which compute the same in both modes.
        with_cp: Recompute the blocks' activations in the backward pass to save memory.
        attn_impl: 'auto', 'eager', 'sdpa', or 'triton' on CUDA devices.
        compile_sides: Not None compiles the blocks with ``torch.compile``, once for each shape of
            images. So that there are few, images are padded with zeros to the next of these
            heights and widths, as a larger image in their batch would, and the maps are cut back;
            larger ones keep their size, and with ``()`` all do, which fits crops of one size.
        in_channels: Channels of the images.
        init_cfg: mmengine's initialisation. ``dict(type='Pretrained', checkpoint=FILE)`` takes
            official, timm's and this package's files; see
            ``gcvit_mm.weights.load.load_pretrained`` for its options.

    Attributes:
        out_channels: Channels of each returned map.
        out_strides: Input pixels per cell of each returned map.

    Raises:
        ArgumentError: An argument is none of the valid choices; also a ValueError.

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
        norm_eval: bool = False,
        with_cp: bool = False,
        attn_impl: str = 'auto',
        compile_sides: Sequence[int] | None = None,
        in_channels: int = 3,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        settings = _arch_settings(arch)
        windows = _window_sizes(window_size)
        self.out_indices = _check_out_indices(out_indices)
        if frozen_stages not in range(-1, 5):
            raise ArgumentError(
                f'frozen_stages={frozen_stages} is unknown: choose -1, 0, 1, 2, 3 or 4'
            )
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.attn_impl = resolve_attention(attn_impl)

        rate = settings['drop_path_rate'] if drop_path_rate is None else drop_path_rate
        if not 0 <= rate < 1:
            raise ArgumentError(f'drop_path_rate={rate} is not in [0, 1)')
        depths = settings['depths']
        last_block = max(sum(depths) - 1, 1)
        rates = (rate * block / last_block for block in range(sum(depths)))
        drop_paths = [[next(rates) for _ in range(depth)] for depth in depths]
        # The third stage's query keeps its size where it is window-sized on the images of the
        # pre-training, by the window alone.
        pools = ([True] * 3, [True] * 2, [windows[2] != pretrain_size // 16], [False])

        dim, last = settings['dim'], self.out_indices[-1]
        dims = [dim * 2**i for i in range(4)]
        self.stem = Stem(in_channels, dim)
        self.stages = nn.ModuleList(
            Stage(
                dims[i],
                settings['num_heads'][i],
                windows[i],
                pools[i],
                drop_paths[i],
                mlp_ratio=settings['mlp_ratio'],
                layer_scale=settings['layer_scale'],
                attn_impl=self.attn_impl,
                with_cp=with_cp,
                downsample=i < last,
            )
            for i in range(last + 1)
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(dims[i]))
        self.out_channels = tuple(dims[i] for i in self.out_indices)
        self.out_strides = tuple(STRIDES[i] for i in self.out_indices)

        self.apply(_init_module)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.compile_sides: list[int] = []
        if compile_sides is not None:
            self.compile_sides = _check_compile_sides(compile_sides)
            compile_blocks([module for module in self.modules() if isinstance(module, Block)])

    def init_weights(self) -> None:
        """Load ``init_cfg``'s checkpoint, of whatever naming and windows, and report on every key.

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
            A map of shape (B, out_channels[j], ceil(H / s), ceil(W / s)), s = out_strides[j], for
            each entry j of ``out_indices``.
        """
        height, width = x.shape[2:]
        padded = self._padded(height) - height, self._padded(width) - width
        if not any(padded):
            return self._pyramid(x)
        outs = self._pyramid(F.pad(x, (0, padded[1], 0, padded[0])))
        return tuple(
            out[:, :, : -(-height // stride), : -(-width // stride)]
            for out, stride in zip(outs, self.out_strides, strict=True)
        )

    def _padded(self, side: int) -> int:
        return next((padded for padded in self.compile_sides if padded >= side), side)

    def _pyramid(self, x: Tensor) -> tuple[Tensor, ...]:
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
        """Set the mode; frozen parts, and norms with ``norm_eval``, stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.LayerNorm | nn.modules.batchnorm._NormBase):
                    module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Say which layer a parameter is of, for learning rates that fall from layer to layer.

        The stem is layer 0, each block is a layer, and the last one is all that follows. The
        numbers are those of mmpretrain's backbones, as its own constructor of optimizers and
        ``LayerDecayOptimWrapperConstructor`` take them.

        Args:
            param_name: Name of a parameter of the model.
            prefix: Where the backbone is in the model, ``'backbone.'`` for example.

        Returns:
            The layer, from 0, and the number of layers: that of the built blocks plus 2.
        """
        depths = [len([*stage.get_submodule('blocks').children()]) for stage in self.stages]
        last = sum(depths) + 1
        name = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix) or name[0] not in ('stem', 'stages'):
            # The output norms too: no ImageNet weights have the first three, so they learn as
            # fast as a head.
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
    """Initialise as the paper's authors do; convolutions keep PyTorch's default."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def _arch_settings(arch: str | Mapping) -> Mapping:
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ArgumentError(f'arch={arch!r} is unknown: choose one of {list(ARCHS)}')
        return ARCHS[arch]
    if not isinstance(arch, Mapping) or set(arch) != KEYS:
        given = sorted(arch) if isinstance(arch, Mapping) else arch
        raise ArgumentError(
            f'arch is one of {list(ARCHS)} or a dict with exactly the keys {sorted(KEYS)}, '
            f'not {given}'
        )
    for key in ('depths', 'num_heads'):
        if len(arch[key]) != 4 or min(arch[key]) < 1:
            raise ArgumentError(f'arch[{key!r}] must hold 4 positive numbers, not {arch[key]}')
    for i, heads in enumerate(arch['num_heads']):
        if arch['dim'] * 2**i % heads:
            raise ArgumentError(f'stage {i} has {arch["dim"] * 2**i} channels for {heads} heads')
    return arch


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


def _check_compile_sides(compile_sides: Sequence[int]) -> list[int]:
    try:
        sides = sorted(int(side) for side in compile_sides)
    except (TypeError, ValueError):
        sides = [0]
    if any(side < 1 for side in sides):
        raise ArgumentError(f'compile_sides must be a list of pixels, not {compile_sides!r}')
    return sides
