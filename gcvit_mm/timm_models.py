"""GC ViT for images of any size in timm, and in what builds on timm; importing this registers it.

``timm.create_model('gcvit_tiny.any')`` builds it, ``gcvit_tiny`` without the tag remains timm's own
model. Outputs at 224 pixels are those of timm's models.
"""

import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import timm.models.gcvit as own
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import DefaultCfg, FeatureInfo, PretrainedCfg, register_model
from torch import Tensor, nn

from .models import ARCHS, GCViT
from .models.gcvit import STRIDES
from .weights.files import read_checkpoint, state_dict_of
from .weights.hub import SCHEME, resolve
from .weights.load import load_pretrained
from .weights.names import convert_names

TAG = 'any'
_DATA: dict[str, Any] = dict(
    input_size=(3, 224, 224),
    fixed_input_size=False,
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    interpolation='bicubic',
    crop_pct=0.875,
    first_conv='stem.conv',
    classifier='head.fc',
    license='cc-by-nc-sa-4.0',
)


class TimmGCViT(GCViT):
    """``GCViT`` with the methods of timm's models: a classifier, or a pyramid of feature maps.

    Args:
        arch: As of ``GCViT``.
        features_only: Return the feature maps of the stages, a list. As in timm, only that of the
            last stage is normalised.
        out_indices: Stages whose maps are returned, or the number of last stages.
        num_classes: Number of classes; 0 for the pooled features.
        in_chans: Channels of the images.
        global_pool: Pooling of the classifier.
        drop_rate: Dropout of the classifier.
        settings: Other arguments of ``GCViT``, such as ``window_size``.
    """

    def __init__(
        self,
        arch: str,
        *,
        features_only: bool = False,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        **settings: Any,
    ) -> None:
        stages = range(4)[-out_indices:] if isinstance(out_indices, int) else out_indices
        stages = sorted(stage % 4 for stage in stages) if features_only else [3]
        super().__init__(arch, in_channels=in_chans, out_indices=stages[-1:], **settings)
        if stages[-1] < 3:
            self.add_module(f'norm{stages[-1]}', nn.Identity())
        dim = self.stem.conv.out_channels
        self.kept, self.features_only, self.num_classes = stages, features_only, num_classes
        self.num_features = self.head_hidden_size = 8 * dim
        maps = [
            dict(num_chs=dim * 2**i, reduction=STRIDES[i], module=f'stages.{i}')
            for i in range(len(self.stages))
        ]
        self.feature_info = FeatureInfo(maps, tuple(stages))
        self.pretrained_cfg = self.default_cfg = {**_DATA, 'num_classes': num_classes}
        if not features_only:
            self.head = ClassifierHead(8 * dim, num_classes, global_pool, drop_rate)

    def load(self, checkpoint: str) -> None:
        """Load weights of any naming and windows, with the classifier if it has as many classes."""
        load_pretrained(self, checkpoint)
        state = convert_names(state_dict_of(read_checkpoint(resolve(checkpoint))))[0]
        if self.num_classes == len(state.get('head.weight', ())) and not self.features_only:
            self.head.fc.load_state_dict(
                {'weight': state['head.weight'], 'bias': state['head.bias']}
            )

    def _maps(self, x: Tensor) -> Iterator[Tensor]:
        x = self.stem(x)
        for i, stage in enumerate(self.stages):
            x = stage(x)
            yield (self.norm3(x) if i == 3 else x).permute(0, 3, 1, 2).contiguous()
            if isinstance(stage.downsample, nn.Module):
                x = stage.downsample(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """The normalised map of the last stage, (B, C, H, W)."""
        return list(self._maps(x))[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Any:
        if self.features_only:
            return [x for i, x in enumerate(self._maps(x)) if i in self.kept]
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)


def _entrypoint(arch: str) -> Callable[..., nn.Module]:
    theirs = getattr(own, f'gcvit_{arch}', None)

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: dict | None = None,
        cache_dir: Any = None,
        **settings: Any,
    ) -> nn.Module:
        if theirs and getattr(pretrained_cfg, 'tag', pretrained_cfg) != TAG:
            others = dict(pretrained_cfg_overlay=pretrained_cfg_overlay, cache_dir=cache_dir)
            return theirs(
                pretrained=pretrained, pretrained_cfg=pretrained_cfg, **others, **settings
            )
        model = TimmGCViT(arch, **settings)
        if pretrained:
            model.load((pretrained_cfg_overlay or {}).get('file', SCHEME + arch))
        return model

    create.__name__ = f'gcvit_{arch}'
    return create


default_cfgs: dict[str, DefaultCfg] = {}
"""Those of timm, which registering would remove, and one with our tag."""
for _arch in ARCHS:
    _old = own.default_cfgs.get(f'gcvit_{_arch}', DefaultCfg())
    _cfgs = OrderedDict(_old.cfgs, **{TAG: PretrainedCfg(**_DATA)})
    default_cfgs[f'gcvit_{_arch}'] = DefaultCfg(deque([*_old.tags, TAG]), _cfgs, _old.is_pretrained)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='Overwriting gcvit_')
        register_model(_entrypoint(_arch))
