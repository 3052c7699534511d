"""The documents: links lead somewhere, and their commands and examples run, in their order.

Each page runs in a folder of its own that looks like the repository after ``make demo``. What a
page shows is run as it stands there, except for what ``REPLACED``, ``SMALL`` and ``SHORTER`` make
small.
"""

import functools
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from command_line import ENVIRONMENT, NANO, ROOT, TRAIN_IMAGES, VAL_IMAGES
from reference import write_official
from test_slurm import SBATCH, SCONTROL, SRUN

from gcvit_mm.datasets.shapes import make_shapes

PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('checkpoints/*.md')]
)
FIRST = 'docs/commands.md'
SAMPLES = os.environ.get('GCVIT_MM_SAMPLES')
ELSEWHERE = {'README.md', 'docs/use_in_your_config.md', 'docs/other_libraries.md'}
"""Run by the tests that these pages name; the commands of README.md stand on other pages."""
COMMAND = re.compile(
    r'([A-Z_]+=\S+ )*(python3? |tools/|gcvit-mm |uv |docker |make |pip |source |torchrun |'
    r'tensorboard |mlflow |cp |truncate |export |cat |git |tests/)'
)
SYNOPSIS = re.compile(r'\b(CONFIG|PARTITION|MODEL|FILE|HxW)\b|\.\.\.')
"""Marks lines that say how a command is called, and are none."""

REPLACED = {
    # Two processes for eight GPUs, one machine for two.
    r'^((?:\S+=\S+ )*tools/dist_\w+\.sh .*) 8\b': r'\1 2',
    r'^(.*tools/slurm_\w+\.sh .*) 8\b': r'\1 1',
    r'NNODES=2 NODE_RANK=\d MASTER_ADDR=\S+': 'NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1',
    # A few images, and one step of a measurement.
    r'(make_shapes\.py \S+|make-shapes \S+)(?: --train \d+ --val \d+)?': (
        rf'\1 --train {TRAIN_IMAGES} --val {VAL_IMAGES} --size 64'
    ),
    r'^python tools/benchmark\.py --device cuda .*': ':',  # measured on a GPU
    r'^(python tools/benchmark\.py .*)': r'\1 --size 64x64 --batch 1 --repeat 1 --warmup 1',
    r'^(python tools/fit\.py .*) --minutes \d+': r'\1 --epochs 1',
    # docs/export.md exports this model.
    r'^python tools/export\.py work_dirs/demo --out work_dirs/demo\.onnx$': ':',
    # Servers run until they are stopped.
    r'^(python tools/app\.py .*)': r'serve \1 --port 0',
    # What installs, or needs another environment, has been tried by hand.
    r'^\S+=\S+ mlflow server .*': ':',
    r'^(?:\S+=\S+ )?(uv |docker |)(pip|build|run) .*': ':',
    r'^python3 -m venv .*': ':',
    r'source env/bin/activate': ':',
    # Of data with an error, which the page has just made.
    r'^(python tools/check_dataset\.py configs/mask_rcnn_gcvit_nano_shapes\.py)$': (
        r'\1 || test $? = 1'
    ),
    # Of real data; measured by hand.
    r'^gcvit-mm fit nuclei .*': ':',
    # All tests.
    r'^make (.*)': r'make -n \1',
    # Of the published weights only those of `tiny` and `xxtiny` lie ready, without a network.
    r'(download_checkpoint\.py tiny) large_21k_384': r'\1',
    # Trainings of one epoch, or of eight iterations.
    r'epoch_(36|12|100)\.pth': 'epoch_1.pth',
    r'^(python tools/pretrain\.py .*) --epochs \d+': r'\1 --epochs 1',
    r'^((?!gcvit-mm).*)epoch_8\.pth': r'\1epoch_1.pth',  # whose configs are the whole ones
    r'iter_800\.pth': 'iter_8.pth',
    r'(?m)^epochs = 30$': 'epochs = 1',
    # Results: their settings are for data of other sizes.
    r'--cfg-options \$short ': '--cfg-options ',
    r'train_cfg.max_epochs=80 train_cfg.val_interval=20': 'train_cfg.max_epochs=1',
    r'(benchmark_evaluation\.py .*) --repeat 50': r'\1 --repeat 1',
}
SMALL = {
    'mask_rcnn_gcvit_tiny_coco': NANO,
    'mask_rcnn_gcvit_xxtiny_nuclei': NANO,
    'dino_gcvit_large_coco': NANO,
    'upernet_gcvit_xxtiny_camvid': 'configs/upernet_gcvit_nano_shapes.py',
}
"""Configs in whose place small ones on generated images are run."""
SHORTER = {
    NANO: {'epochs = 8': 'epochs = 1', 'val_interval=2': 'val_interval=1'},
    'configs/_base_/small_instance.py': {
        'num_workers=1': 'num_workers=0',
        '=True,\n    sampler': '=False,\n    sampler',
    },
    'configs/upernet_gcvit_nano_shapes.py': {
        'iterations = 800': 'iterations = 8',
        'end=50': 'end=4',
        'begin=50': 'begin=4',
        'val_interval=200': 'val_interval=8',
    },
}
"""What makes these short."""


SERVE = """serve() {
    "$@" > server.log 2>&1 & pid=$! status=0
    until grep -q http: server.log; do kill -0 $pid || { cat server.log; return 1; }; sleep 1; done
    kill $pid; wait $pid || status=$?
    [ $status = 130 ] || [ $status = 143 ]
}
"""
"""In bash: start a server, and stop it when it has printed its address."""


class Block(NamedTuple):
    """An example of a page: commands, or a file to write."""

    line: int
    language: str
    text: str
    file: str | None


def blocks(page: str) -> Iterator[Block]:
    """The examples of a page: fenced ones, and those indented by four spaces."""
    lines = (ROOT / page).read_text().splitlines()
    before, i = '', 0
    while i < len(lines):
        fence = re.match(r'```(\w*)$', lines[i])
        end = i + 1
        if fence:
            end = lines.index('```', i + 1) + 1
            text = '\n'.join(lines[i + 1 : end - 1])
            yield Block(i + 2, fence[1], text, named_file(before))
            before = ''
        elif lines[i].startswith('    ') and not lines[i - 1].strip():
            while end < len(lines) and (lines[end].startswith('    ') or not lines[end].strip()):
                end += 1
            text = '\n'.join(line[4:] for line in lines[i:end]).rstrip()
            yield Block(i + 1, '', text, None)
        elif lines[i].strip():
            before = lines[i]
        i = end


def named_file(sentence: str) -> str | None:
    """The file that an example is to be written to, as the sentence before it says."""
    named = re.search(r'`([\w/]+\.\w+)`[^`]*:$', sentence)
    return named[1] if named else None


def commands(text: str) -> list[str]:
    """The commands of an example, without comments and what they print."""
    lines = re.sub(r' *\\\n *', ' ', text).splitlines()
    found = [line for line in lines if COMMAND.match(line) and not SYNOPSIS.search(line)]
    return [re.sub(r'\s+# .*', '', line) for line in found]


def small(command: str) -> str:
    for pattern, replacement in REPLACED.items():
        command = re.sub(pattern, replacement, command)
    return command


def to_run(text: str, page: str) -> list[str]:
    """The commands of an example of a page, as they are run; some stand for others."""
    # What two machines run has become the same.
    found = list(dict.fromkeys(small(command) for command in commands(text)))
    return found if page == FIRST else [command for command in found if command not in of_first()]


@functools.cache
def of_first() -> set[str]:
    """Trainings and tests by several processes on the page of commands, which others show too."""
    every = (command for block in blocks(FIRST) for command in to_run(block.text, FIRST))
    return {command for command in every if command.startswith('tools/dist_')}


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r'```.*?```|`[^`\n]*`', '', (ROOT / page).read_text(), flags=re.S)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        file, _, anchor = target.partition('#')
        path = (ROOT / page).parent / file if file else ROOT / page
        assert '://' in target or path.exists(), target
        if anchor and '://' not in target:
            heads = re.findall(r'^#+ (.*)', path.read_text(), re.M)
            anchors = [re.sub(r'[^\w\- ]', '', head.lower()).replace(' ', '-') for head in heads]
            assert anchor in anchors, target


@pytest.mark.parametrize('page', PAGES)
def test_files_of_the_repository_that_are_named_exist(page):
    written = {block.file for block in blocks(page)}
    folders = 'tools|configs|gcvit_mm|tests|docs'
    for name in re.findall(rf'`((?:{folders})/[\w/.-]+\.\w+)`', (ROOT / page).read_text()):
        assert name in written or (ROOT / name).exists(), name


@pytest.mark.parametrize('page', PAGES)
def test_tests_that_are_named_exist(page):
    code = ''.join(path.read_text() for path in (ROOT / 'tests').glob('test_*.py'))
    for name in re.findall(r'`(test_\w+_\w+_\w+)`', (ROOT / page).read_text()):
        assert f'def {name}(' in code, name


def test_commands_of_the_first_page_are_run_on_others():
    texts = (block.text for page in PAGES if page not in ELSEWHERE for block in blocks(page))
    run = {command for text in texts for command in commands(text)}
    for block in blocks('README.md'):
        assert set(commands(block.text)) <= run


@pytest.fixture(scope='session')
def after_demo(tmp_path_factory) -> Path:
    """What the repository's folder has after ``make demo``, on a few images and in one epoch."""
    root = tmp_path_factory.mktemp('documents')
    shutil.copytree(ROOT / 'configs', root / 'configs', ignore=shutil.ignore_patterns('__py*'))
    shutil.copytree(ROOT / 'docs', root / 'docs')
    for name in (
        'tools',
        'Makefile',
        'setup.py',
        'pyproject.toml',
        'requirements.txt',
        'requirements-all.txt',
    ):
        (root / name).symlink_to(ROOT / name)
    for name, stand_in in SMALL.items():
        (root / 'configs' / f'{name}.py').write_text(f"_base_ = './{Path(stand_in).name}'\n")
        for config in (root / 'configs').glob('*.py'):  # others keep it as their base
            text = config.read_text().replace(f"'./{name}.py'", f"'{ROOT}/configs/{name}.py'")
            config.write_text(text)
    for name, changes in SHORTER.items():
        text = (root / name).read_text()
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        (root / name).write_text(text)
    make_data(root / 'data')
    for file in Path(SAMPLES, 'eval_check').glob('*') if SAMPLES else ():
        (root / file.name).symlink_to(file.resolve())
    (root / 'checkpoints').mkdir()
    for variant in ('xxtiny', 'tiny'):
        write_official(root / f'checkpoints/gcvit_1k_{variant}.pth.tar', variant)
    (root / '.venv/bin').mkdir(parents=True)
    (root / '.venv/bin/activate').touch()
    (root / 'bin').mkdir()
    command = root / 'bin/gcvit-mm'
    command.write_text(f'#!{sys.executable}\nfrom gcvit_mm.command import main\n\nmain()\n')
    command.chmod(0o755)
    for name, text in {'sbatch': SBATCH, 'srun': SRUN, 'scontrol': SCONTROL}.items():
        (root / 'bin' / name).write_text(text)
        (root / 'bin' / name).chmod(0o755)
    demo = 'work_dirs/demo'
    shell(f'python tools/train.py {NANO} --work-dir {demo}', root)
    shell(
        f'python tools/test.py {NANO} {demo}/epoch_1.pth --work-dir {demo} --out {demo}/validation',
        root,
    )
    return root


def make_data(data: Path) -> None:
    """Generated images, and folders of them in the place of classes of photos and of ImageNet's."""
    images = make_shapes(data / 'shapes', train=TRAIN_IMAGES, val=VAL_IMAGES, size=64) / 'images'
    for split, source in {'train': 'training', 'val': 'validation'}.items():
        for name in ('cat', 'dog', 'horse'):
            shutil.copytree(images / source, data / 'photos' / split / name)
    shutil.copytree(images / 'validation', data / 'imagenet/val')
    (data / 'imagenet/meta').mkdir()
    names = sorted(path.name for path in (data / 'imagenet/val').iterdir())
    lines = [f'{name} {label}\n' for label, name in enumerate(names)]
    (data / 'imagenet/meta/val.txt').write_text(''.join(lines))


@pytest.fixture
def repository(after_demo, tmp_path) -> Path:
    shutil.copytree(after_demo, tmp_path / 'repository', symlinks=True)
    return tmp_path / 'repository'


def free_port() -> int:
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


def shell(script: str, folder: Path) -> None:
    environment = {
        **ENVIRONMENT,
        'PATH': f'{folder}/bin{os.pathsep}{ENVIRONMENT["PATH"]}',
        'PORT': str(free_port()),  # tests run beside each other
        'GRES': '',
        'CPUS_PER_TASK': '1',
        'COCO': f'{SAMPLES}/coco_mini320',
    }
    command = ['bash', '-euo', 'pipefail', '-c', SERVE + script]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f'{script}\n{done.stdout[-3000:]}{done.stderr[-3000:]}'
    assert 'Traceback' not in done.stderr, f'{script}\n{done.stderr[-3000:]}'


@pytest.mark.slow
@pytest.mark.parametrize(
    'page', [page for page in PAGES if any(blocks(page)) and page not in ELSEWHERE]
)
def test_commands_and_examples_run(page, repository):
    if page == 'docs/results.md' and not SAMPLES:
        pytest.skip('GCVIT_MM_SAMPLES is unset: no real images here')
    for block in blocks(page):
        if block.file:
            (repository / block.file).write_text(small(block.text) + '\n')
        elif block.text.startswith(('import ', 'from ')):
            (repository / 'example.py').write_text(block.text)
            shell('python example.py', repository)
        elif "<<'END'" in block.text:
            shell(small(block.text), repository)
        else:
            for command in to_run(block.text, page):
                shell(command, repository)
