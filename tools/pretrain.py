"""Pre-train a GC ViT on a folder of images without labels.

It reconstructs hidden parts of the images, or with --teacher predicts the features of another
model. Writes WORK_DIR.py, an ordinary config, and trains; the same command resumes. A checkpoint
is the init_cfg of any config with a backbone of this --arch.
"""

import argparse
import os
import sys
from pathlib import Path
from pprint import pformat

import _package  # noqa: F401

from gcvit_mm.cli import run
from gcvit_mm.errors import UserError
from gcvit_mm.zoo import TOOLS


def parse_args() -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details)
    parser.add_argument('folder', help='folder of images, also in its subfolders')
    parser.add_argument('--work-dir', help='default: work_dirs/FOLDER_pretrain')
    parser.add_argument('--arch', default='xxtiny', help='variant of GC ViT')
    parser.add_argument(
        '--teacher', metavar='NAME', help="timm's model whose features are predicted"
    )
    parser.add_argument('--mask-ratio', type=float, default=0.6, help='share of hidden cells')
    parser.add_argument('--size', type=int, default=224, help='side of the crops in pixels')
    parser.add_argument('--batch', type=int, default=64, help='images per process in a step')
    parser.add_argument('--lr', type=float, default=5e-4, help='learning rate for 64 images')
    parser.add_argument('--epochs', type=int, default=100)
    parser.add_argument(
        '--cfg-options', nargs='+', metavar='KEY=VALUE', default=[], help='as of tools/train.py'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from gcvit_mm.fileio import atomic_text
    from gcvit_mm.models import ARCHS

    folder = Path(args.folder)
    if not folder.is_dir():
        raise UserError(f'image folder {folder} does not exist: check the path')
    if args.arch not in (*ARCHS, 'nano'):
        raise UserError(f'--arch {args.arch} is unknown: choose nano, {", ".join(ARCHS)}')
    if min(args.size, args.batch, args.epochs) < 1 or args.lr <= 0 or not 0 < args.mask_ratio < 1:
        raise UserError('--size, --batch, --epochs and --lr must be positive, --mask-ratio < 1')
    work_dir = args.work_dir or f'work_dirs/{folder.resolve().name}_pretrain'
    config = f'{work_dir}.py'
    atomic_text(config, config_text(args, folder))
    print(f'config: {config}', flush=True)
    command = [sys.executable, str(TOOLS / 'train.py'), config, '--work-dir', work_dir, '--resume']
    options = ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    os.execv(sys.executable, [*command, *options])


def config_text(args: argparse.Namespace, folder: Path) -> str:
    """The config of the options, a short file on ``_base_/pretrain.py``."""
    bases = ['gcvit_mm::_base_/pretrain.py']
    arch = repr(args.arch)
    if args.arch == 'nano':
        bases.append('gcvit_mm::_base_/nano_arch.py')
        arch = '_base_.nano_arch'
    if args.teacher:
        teacher = dict(type='mmpretrain.TIMMBackbone', model_name=args.teacher, pretrained=True)
        method = f"'FeatureDistillation',\n    teacher={pformat(teacher)}"
    else:
        method = f"'MaskedImageModeling',\n    mask_ratio={args.mask_ratio}"
    warm_up = args.epochs // 20
    linear = f"dict(type='LinearLR', start_factor=0.01, end={warm_up}, convert_to_iter_based=True)"
    return f'''"""Pre-training on the images of {folder.name}, written by tools/pretrain.py."""

_base_ = {bases}

model = dict(
    type={method},
    backbone=dict(type='GCViT', arch={arch}, drop_path_rate=0.0),
)
train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = {args.size}
train_dataloader = dict(
    batch_size={args.batch},
    dataset=dict(data_root={str(folder.resolve())!r}, pipeline=train_pipeline),
)
train_cfg = dict(max_epochs={args.epochs})
optim_wrapper = dict(optimizer=dict(lr={args.lr}))
param_scheduler = [
    *[{linear if warm_up else ''}],
    dict(type='CosineAnnealingLR', begin={warm_up}, eta_min_ratio=0.01, convert_to_iter_based=True),
]
'''


if __name__ == '__main__':
    run(main)
