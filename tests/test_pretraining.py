"""Pre-training without labels: losses fall, trainings resume, and the result starts a detector."""

import os
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from command_line import ROOT, fail, succeed
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import gcvit_mm.pretraining as pretraining
from gcvit_mm import GCViT
from gcvit_mm.errors import UserError
from gcvit_mm.weights.files import read_checkpoint
from gcvit_mm.weights.load import load_pretrained

ARCH = dict(dim=16, depths=(1, 1, 2, 1), num_heads=(1, 1, 1, 1), mlp_ratio=2, layer_scale=None,
            drop_path_rate=0.0)  # fmt: skip
STUDENT = dict(type='GCViT', arch=ARCH, window_size=2)


def masked(ratio: float = 0.5) -> pretraining.MaskedImageModeling:
    torch.manual_seed(0)
    return pretraining.MaskedImageModeling(dict(STUDENT), ratio)


def pictures(count: int = 4, height: int = 64, width: int = 64) -> torch.Tensor:
    """Smooth images, whose hidden parts can be guessed."""
    torch.manual_seed(1)
    return F.interpolate(torch.randn(count, 3, 2, 2), (height, width), mode='bilinear')


def train(model: torch.nn.Module, images: torch.Tensor, steps: int = 40) -> list[float]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3)
    losses = []
    for _ in range(steps):
        loss = model(images, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# --- Masked images ----------------------------------------------------------------------------


@pytest.mark.parametrize(('ratio', 'size', 'cells'), [(0.5, (64, 96), 3), (0.6, (70, 33), 4),
                                                      (0.01, (20, 20), 1)])  # fmt: skip
def test_masks_hide_a_share_of_the_whole_cells_of_the_last_stage(ratio, size, cells):
    images = torch.ones(3, 3, *size)
    model = masked(ratio)
    mask = model.mask(images)
    rows, columns = model.backbone(images)[0].shape[2:]
    assert mask.shape == (3, 1, *size)
    for single in mask[:, 0]:
        squares = [single[32 * i : 32 * i + 32, 32 * j : 32 * j + 32]
                   for i in range(rows) for j in range(columns)]  # fmt: skip
        assert all(square.unique().numel() == 1 for square in squares)
        assert sum(square.max().item() for square in squares) == cells
    assert len({tuple(m.flatten().tolist()) for m in mask}) > 1 or cells == 1


def test_hidden_pixels_reach_the_loss_only_as_what_is_to_be_reconstructed(monkeypatch):
    model, images = masked(), pictures(2)
    mask = model.mask(images)
    monkeypatch.setattr(model, 'mask', lambda _: mask)
    seen = []
    model.backbone.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    other = images + mask * 5
    model.loss(images), model.loss(other)
    assert torch.equal(*seen)
    # Pixels that are seen have no part in the error.
    shown = model.decoder(model.backbone(seen[0])[0])
    expected = (shown - images).abs()[mask.expand_as(images) == 1].mean()
    torch.testing.assert_close(model.loss(images), expected)


def test_the_loss_falls_and_every_parameter_learns():
    model = masked()
    losses = train(model, pictures(8), 60)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    assert all(p.grad is not None for p in model.parameters())


# --- Distillation -----------------------------------------------------------------------------


def test_a_student_learns_the_features_of_a_larger_gc_vit_from_a_file(tmp_path):
    torch.manual_seed(2)
    larger = {**ARCH, 'dim': 32}
    torch.save(GCViT(larger, out_indices=(3,)).state_dict(), tmp_path / 'teacher.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'teacher.pth'))
    teacher = dict(type='GCViT', arch=larger, out_indices=(3,), init_cfg=init_cfg)
    model = pretraining.FeatureDistillation(dict(STUDENT), teacher)
    weights = read_checkpoint(tmp_path / 'teacher.pth')
    own = model._teacher[0].state_dict()
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    losses = train(model, pictures(8))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    assert not any('teacher' in name for name in model.state_dict())
    assert {name.split('.')[0] for name in model.state_dict()} == {'backbone', 'projection'}


@pytest.mark.parametrize(
    ('teacher', 'channels'),
    [
        (dict(type='mmpretrain.TIMMBackbone', model_name='convnext_atto'), 320),
        (dict(type='mmpretrain.TIMMBackbone', model_name='vit_tiny_patch16_224',
              dynamic_img_size=True), 192),
        (dict(type='mmpretrain.ResNet', depth=18), 512),
        (dict(type='mmpretrain.VisionTransformer', arch='deit-tiny', out_type='raw'), 192),
    ],
    ids=['timm-convnext', 'timm-vit', 'mmpretrain-resnet', 'mmpretrain-vit'],
)  # fmt: skip
def test_teachers_of_timm_and_mmpretrain_give_maps(teacher, channels):
    import mmpretrain.models  # noqa: F401  (registers)

    init_default_scope('mmpretrain')
    model = pretraining.FeatureDistillation(dict(STUDENT), teacher)
    images = pictures(2, 96, 160)
    features = model.teach(images)
    assert features.shape[1] == channels
    height, width = features.shape[2:]
    assert height / width == pytest.approx(96 / 160)
    torch.testing.assert_close(features.mean(1), torch.zeros(2, height, width), atol=1e-4, rtol=0)
    loss = model(images, mode='loss')['loss']
    loss.backward()
    assert loss.isfinite() and model.backbone.stem.conv.weight.grad.count_nonzero()


# --- The tool ---------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def pretrained(tiny_shapes, tmp_path_factory):
    """A work directory of two epochs, and what was printed."""
    work_dir = tmp_path_factory.mktemp('pretraining') / 'run'
    return work_dir, pretrain(tiny_shapes, work_dir)


def pretrain(data, work_dir) -> str:
    return succeed(
        'pretrain.py', data / 'images', '--work-dir', work_dir, '--arch', 'nano', '--size', 64,
        '--batch', 4, '--epochs', 2, '--cfg-options', 'train_dataloader.num_workers=0',
        'train_dataloader.persistent_workers=False', 'default_hooks.logger.interval=1',
    )  # fmt: skip


def test_the_tool_trains_on_the_images_of_all_subfolders(pretrained):
    assert '[1][4/4]' in pretrained[1]  # 13 images in batches of 4
    assert '[2][4/4]' in pretrained[1]


@pytest.mark.slow
def test_the_same_command_resumes_exactly(pretrained, tiny_shapes, tmp_path):
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    shutil.copy(pretrained[0] / 'epoch_1.pth', work_dir)
    assert f'resumes from {work_dir}/epoch_1.pth' in pretrain(tiny_shapes, work_dir)
    ours, theirs = (
        read_checkpoint(folder / 'epoch_2.pth')['state_dict']
        for folder in (work_dir, pretrained[0])
    )
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_result_is_the_init_cfg_of_a_detector(pretrained):
    file = pretrained[0] / 'epoch_2.pth'
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn_gcvit_nano_shapes.py')
    init_default_scope(cfg.default_scope)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(file))
    model = MODELS.build(cfg.model)
    model.init_weights()
    state = read_checkpoint(file)['state_dict']
    name = 'stages.3.blocks.1.attn.qkv.weight'
    assert torch.equal(model.backbone.state_dict()[name], state[f'backbone.{name}'])
    report = load_pretrained(model.backbone, str(file))
    assert {re.match(r'norm[0-2]', name)[0] for name in report.new} == {'norm0', 'norm1', 'norm2'}
    assert {name.split('.')[0] for name in report.unused} == {'decoder', 'hidden'}


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['absent'], ['absent', 'does not exist']),
        (['.', '--arch', 'tyni'], ['--arch tyni', 'xxtiny']),
        (['.', '--mask-ratio', '1'], ['--mask-ratio']),
        (['.', '--epochs', '0'], ['--epochs']),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_written(arguments, words, tmp_path):
    error = fail('pretrain.py', *arguments, '--work-dir', tmp_path / 'run')
    assert all(word in error for word in words)
    assert not os.listdir(tmp_path)


def test_a_folder_without_images_is_one_line(tmp_path):
    (tmp_path / 'empty').mkdir()
    error = fail('pretrain.py', tmp_path / 'empty', '--work-dir', tmp_path / 'run')
    assert 'empty' in error


def test_a_wrong_mask_ratio_is_an_error():
    with pytest.raises(UserError, match='mask_ratio=1'):
        masked(1)
