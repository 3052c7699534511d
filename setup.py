"""The build step that pyproject.toml cannot describe: configs and tools inside the package."""

import shutil
from pathlib import Path

from setuptools import setup
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


setup(cmdclass={'build_py': BuildWithShipped})
