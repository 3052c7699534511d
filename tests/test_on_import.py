"""GC ViT is registered in time, whatever is imported first; importing gcvit_mm itself is light."""

import subprocess
import sys
import venv

import pytest
from command_line import ENVIRONMENT, ROOT

BUILD = "from mmengine.registry import MODELS; MODELS.build(dict(type='GCViT', arch='xxtiny'))"
ORDERS = {
    'before mmengine': f'import gcvit_mm; {BUILD}',
    'after mmengine': f'import mmengine; import gcvit_mm; {BUILD}',
    "after mmengine's models": f'import mmengine.model; import gcvit_mm; {BUILD}',
    'before a lookup that needs no model': (
        "import gcvit_mm; from mmengine.registry import MODELS; assert MODELS.get('GCViT')"
    ),
    'before mmdet': (
        "import gcvit_mm; from mmdet.registry import MODELS; assert MODELS.get('GCViT')"
    ),
    'before the operations of mmcv': f'import gcvit_mm, mmcv.ops; mmcv.ops.nms; {BUILD}',
    'in a config, after mmdet': (
        'import mmdet; from mmengine.config import Config; from mmdet.registry import MODELS\n'
        "Config.fromfile('configs/mask_rcnn_gcvit_nano_shapes.py')\n"
        "assert MODELS.get('GCViT').__module__ == 'gcvit_mm.models.gcvit'"
    ),
    'twice': f'import gcvit_mm, importlib; importlib.reload(gcvit_mm); {BUILD}',
    'in a thread': (
        'import torch, gcvit_mm, threading\n'  # torch itself must not be imported twice at once
        'threads = [threading.Thread(target=__import__, args=(name,))\n'
        "           for name in ('mmengine.model', 'gcvit_mm.models', 'mmengine.runner')]\n"
        '[thread.start() for thread in threads]; [thread.join() for thread in threads]\n'
        f'{BUILD}'
    ),
    'where the first attempt fails': (
        'import gcvit_mm, sys\n'
        "sys.modules['torch'] = None\n"
        'try: import mmengine.model\n'
        "except ImportError: del sys.modules['torch']\n"
        f'{BUILD}'
    ),
}


def python(*arguments: object, **options: object) -> str:
    command = [sys.executable, *map(str, arguments)]
    options = {'cwd': ROOT, 'env': ENVIRONMENT, **options}
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize('order', ORDERS)
def test_the_backbone_is_registered(order):
    python('-c', ORDERS[order])


def test_importing_the_package_loads_neither_torch_nor_mmengine():
    loaded = python('-c', 'import sys, gcvit_mm; print(*sys.modules)').split()
    assert not {'torch', 'mmengine', 'numpy'} & set(loaded)
    names = python('-c', 'import gcvit_mm; print(*dir(gcvit_mm)); gcvit_mm.Predictor').split()
    assert {'ARCHS', 'GCViT', 'Predictor', '__version__'} <= set(names)


def test_registration_loads_no_framework_on_top_of_mmengine():
    """Who uses one of mmdet, mmseg and mmpretrain need not have the others, nor wait for them."""
    loaded = python('-c', 'import sys, gcvit_mm, mmengine.model; print(*sys.modules)').split()
    assert 'gcvit_mm.models' in loaded
    assert not {'mmdet', 'mmseg', 'mmpretrain', 'torchvision'} & set(loaded)


def test_a_script_that_knows_nothing_of_the_package_has_the_backbone(tmp_path):
    (tmp_path / 'script.py').write_text(BUILD)
    python('-m', 'gcvit_mm', tmp_path / 'script.py')


def test_processes_that_are_spawned_have_the_backbone(tmp_path):
    (tmp_path / 'script.py').write_text(f"""
import multiprocessing
import gcvit_mm

def build():
    {BUILD}

if __name__ == '__main__':
    process = multiprocessing.get_context('spawn').Process(target=build)
    process.start()
    process.join()
    raise SystemExit(process.exitcode)
""")
    python(tmp_path / 'script.py')


def test_the_package_can_be_imported_without_any_other(tmp_path):
    venv.create(tmp_path / 'empty')
    code = 'import gcvit_mm; print(gcvit_mm.__version__)'
    alone = [tmp_path / 'empty' / 'bin' / 'python', '-c', code]
    done = subprocess.run(alone, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize('version', ['5.17.0', '5.0.0rc1'])
def test_mmpretrain_is_imported_beside_transformers_5(version, tmp_path):
    # Its names that mmpretrain's multimodal models need are gone in that release.
    info = tmp_path / f'transformers-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(
        f'Metadata-Version: 2.1\nName: transformers\nVersion: {version}\n'
    )
    env = {**ENVIRONMENT, 'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    python('-c', f'import gcvit_mm, mmpretrain.models; {BUILD}', env=env)
