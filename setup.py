"""The package's metadata; the settings of the tools are in ``pyproject.toml``."""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# What works outside the repository too: the package carries it in .mim, as OpenMMLab's do.
SHIPPED = ('checkpoints/manifest.yml', 'model-index.yml', 'configs', 'tools')


class BuildWithShipped(build_py):
    """Put configs, tools and the list of weights where packages of OpenMMLab have such files."""

    def run(self):
        if not self.editable_mode:  # an earlier build may have left what is gone since
            shutil.rmtree(Path(self.build_lib, 'gcvit_mm'), ignore_errors=True)
        super().run()
        if not self.editable_mode:
            for name in self._shipped():
                copy = Path(self.build_lib, 'gcvit_mm/.mim', name)
                copy.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(ROOT / name), str(copy))

    def get_source_files(self):  # for the source distribution
        return [*super().get_source_files(), *self._shipped()]

    @staticmethod
    def _shipped():
        paths = [
            path
            for name in SHIPPED
            for path in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob('*'))
        ]
        files = [path for path in paths if path.is_file() and '__pycache__' not in path.parts]
        return sorted(str(path.relative_to(ROOT)) for path in files)


setup(
    name='gcvit_mm',
    # Run by path: importing the package would need torch and mmengine in the build environment.
    version=runpy.run_path(str(ROOT / 'gcvit_mm' / 'version.py'))['__version__'],
    description='The GC ViT backbone for MMDetection, MMSegmentation and MMPretrain',
    license='Apache-2.0',
    license_files=['LICENSE', 'NOTICE.md'],
    cmdclass={'build_py': BuildWithShipped},
    packages=find_packages(include=['gcvit_mm*']),
    package_data={'gcvit_mm.report': ['page.*']},
    entry_points={'console_scripts': ['gcvit-mm = gcvit_mm.command:main']},
    python_requires='>=3.10',
    # Neither torch nor mmengine: two families of packages provide mmengine, and requiring one
    # would overwrite the other. gcvit_mm/environment.py says at import what is missing.
    install_requires=['safetensors'],
    extras_require={
        'mm': [
            'torch>=2.10',
            'torchvision>=0.25',
            'onedl-mmcv>=2.3.6',
            'onedl-mmengine>=0.10.12',
            'onedl-mmdetection>=3.5.1',
            'onedl-mmsegmentation>=1.4.2',
            'onedl-mmpretrain>=1.3.6',
            'faster-coco-eval',
            'huggingface_hub',
            'matplotlib',
            'tqdm',
            'rich',
        ],
        'app': ['gradio>=6'],
        'export': ['onnx', 'onnxruntime', 'onnxscript'],
        'track': ['mlflow-skinny>=3', 'tensorboard', 'wandb'],
        'test': [
            'hypothesis',
            'ipykernel',
            'mypy',
            'nbclient',
            'playwright',
            'pytest',
            'pytest-xdist',
            'ruff',
            'timm',
        ],
    },
)
