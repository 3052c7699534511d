"""GC ViT by ``torch.hub.load(REPOSITORY, 'gcvit', 'tiny')``, without an installation."""

dependencies = ['torch', 'mmengine', 'safetensors']


def gcvit(arch: str, checkpoint: str | None = None, **settings):
    """A ``gcvit_mm.GCViT`` with the weights of a file or ``gcvit://NAME``, or random ones."""
    from gcvit_mm import GCViT

    init_cfg = checkpoint and dict(type='Pretrained', checkpoint=checkpoint)
    model = GCViT(arch, init_cfg=init_cfg, **settings)
    model.init_weights()
    return model


def predictor(model: str, checkpoint: str | None = None, **settings):
    """A ``gcvit_mm.Predictor``."""
    from gcvit_mm import Predictor

    return Predictor(model, checkpoint, **settings)
