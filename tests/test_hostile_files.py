"""Files that want more than to be read: refused with a message, nothing run, nothing written."""

import argparse
import contextlib
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter, OrderedDict
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import NANO, ROOT, fail, on, succeed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import CheckpointLoader
from pickle_programs import name_of, push
from safetensors.torch import save_file

from gcvit_mm.datasets.check.coco_file import read_coco
from gcvit_mm.datasets.preflight import check_data
from gcvit_mm.engine import SeededDataset
from gcvit_mm.errors import UserError
from gcvit_mm.fileio import atomic_text
from gcvit_mm.inference.results import Results
from gcvit_mm.weights import files as checkpoints
from gcvit_mm.weights.files import read_checkpoint, state_dict_of
from gcvit_mm.weights.mm_loaders import load_from_http, register_loaders, safe_loaders
from gcvit_mm.work_dir import find_resumable, read_json

MEMORY = 3 * 2**30


class Call:
    """Pickled as a call."""

    def __init__(self, function: object, *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.parts


class Global:
    """Pickled as the name of something in a module, whether or not it is there."""

    def __init__(self, module: str, name: str, *arguments: object) -> None:
        self.module, self.name, self.arguments = module, name, arguments


def pickled(content: object) -> bytes:
    if isinstance(content, Global):
        head = f'c{content.module}\n{content.name}\n'.encode()
        return b'\x80\x02' + head + pickle.dumps(content.arguments, 2)[2:-1] + b'R.'
    return pickle.dumps(content, 2)


def archive(path: Path, content: object, names: dict | None = None, compress: int = 0) -> Path:
    """A ``.pth`` file as PyTorch writes them, around any pickle."""
    with zipfile.ZipFile(path, 'w', compress) as file:
        file.writestr('archive/data.pkl', content if type(content) is bytes else pickled(content))
        file.writestr('archive/version', '3\n')
        file.writestr('archive/byteorder', 'little')
        for name, record in (names or {}).items():
            file.writestr(name, record)
    return path


RECONSTRUCT, SCALAR = np._core.multiarray._reconstruct, np._core.multiarray.scalar


def array_state(dtype: object, shape: tuple, data: bytes) -> Call:
    """Numpy's spelling of an array."""
    return Call(RECONSTRUCT, np.ndarray, (0,), b'b', state=(1, shape, dtype, False, data))


def log_of(**attributes: object) -> HistoryBuffer:
    """A log with attributes that mmengine does not give it."""
    log = HistoryBuffer()
    log.__dict__.update(attributes)
    return log


def storage(numel: int, size: int | None = None, offset: int = 0) -> bytes:
    """A pickle of a tensor of ``size`` numbers whose storage is record 0, of ``numel``."""
    return (
        b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage'
        b'ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu'
        + pickle.dumps(numel, 2)[2:-1]
        + b'tQ'
        + pickle.dumps(offset, 2)[2:-1]
        + pickle.dumps((numel if size is None else size,), 2)[2:-1]
        + b'K\x01\x85\x89ccollections\nOrderedDict\n)RtR.'
    )


def hostile_files(folder: Path) -> dict[str, Path]:
    """Files by what they try; those that run something write ``folder/ran``."""
    ran = f'touch {folder}/ran'
    code = f"open({str(folder / 'ran')!r}, 'w')"
    globals_ = {
        'os.system': Global('posix', 'system', ran),
        'subprocess': Call(subprocess.getoutput, ran),
        'eval': Global('builtins', 'eval', code),
        'exec under its old name': Global('__builtin__', 'exec', code),
        'open': Global('io', 'open', str(folder / 'ran'), 'w'),
        'numpy runstring': Global('numpy.testing._private.utils', 'runstring', code, {}),
        'torch.load': Call(torch.load, str(folder / 'inner.pth')),
        'torch.hub': Global('torch.hub', 'load', str(folder), 'x'),
        'getattr of an allowed type': Call(getattr, HistoryBuffer, '__init__'),
        'getattr of a module': Global('builtins', 'getattr', 1, '__class__'),
        'an object array of numpy': Call(np.array, [Call(os.system, ran)]),
        'attributes of a namespace': Call(argparse.Namespace, state={'x': Call(os.system, ran)}),
        'import': Global('builtins', '__import__', 'os'),
    }
    files = {
        name: archive(folder / f'{i}.pth', content)
        for i, (name, content) in enumerate(globals_.items())
    }
    files['a plain pickle'] = folder / 'plain.pth'
    files['a plain pickle'].write_bytes(pickled(Call(os.system, ran)))
    files['a file of before 1.6'] = folder / 'old.pth'
    torch.save(
        {'x': Call(os.system, ran)},
        files['a file of before 1.6'],
        _use_new_zipfile_serialization=False,
    )
    dtype = Call(np.dtype, 'f8', False, True)
    number = Call(np.dtype, 'f8')
    flagged = Call(np.dtype, 'f8', False, True, state=(3, '<', None, None, None, -1, -1, 63))
    pointers = Call(np.ndarray, (1,), Call(np.dtype, 'O'), bytes(8))
    forms = {
        'an array of pointers': pointers,
        'an array of pointers in a log': Call(HistoryBuffer, pointers, [1]),
        'an array in a buffer of its choice': Call(np.ndarray, (2,), number, bytes(16)),
        'an array of strings': Call(np.dtype, 'U5'),
        'a dtype with fields': Call(np.dtype, [('a', 'O')]),
        'a dtype with flags': flagged,
        'an object for a number': Call(SCALAR, Call(np.dtype, 'O'), bytes(8)),
        'a number with too few bytes': Call(SCALAR, number, bytes(4)),
        'an array with too few bytes': array_state(dtype, (1000,), bytes(8)),
        'an array of a negative shape': array_state(dtype, (-1,), bytes(8)),
        'a log with another mean': log_of(mean=1),
        'a log of text': log_of(_log_history='abc', _count_history='abc'),
        'a log of a matrix': log_of(_log_history=np.zeros((2, 2)), _count_history=np.zeros(2)),
        'metadata that are a number': Call(OrderedDict, state={'_metadata': 1}),
        'a version that is a text': Call(OrderedDict, state={'_metadata': {'': {'version': 'x'}}}),
        'a state dict without its methods': Call(OrderedDict, state={'items': 1}),
        '2 GB of zeros': Call(bytearray, 2**31),
        'a tensor by its type': Call(torch.FloatTensor, 2**40),
        'a storage by its type': Call(torch.UntypedStorage, 2**40),
        'a set of a text': Call(set, 'abc'),
    }
    for name, content in forms.items():
        files[name] = archive(folder / f'{len(files)}.pth', {'state_dict': content})
    files['a storage larger than its record'] = archive(
        folder / 'record.pth', storage(16), {'archive/data/0': bytes(4), 'archive/x': bytes(64)}
    )
    files['a tensor larger than its storage'] = archive(
        folder / 'small.pth', storage(4, size=5), {'archive/data/0': bytes(16)}
    )
    files['a tensor before its storage'] = archive(
        folder / 'before.pth', storage(4, size=2, offset=-2), {'archive/data/0': bytes(16)}
    )
    files['a bomb'] = archive(
        folder / 'bomb.pth', storage(2**28), {'archive/data/0': bytes(2**30)}, zipfile.ZIP_DEFLATED
    )
    files['a shape larger than its data'] = archive(
        folder / 'shape.pth', storage(2**40), {'archive/data/0': bytes(64)}
    )
    files['a numpy array larger than memory'] = archive(
        folder / 'array.pth', Call(RECONSTRUCT, np.ndarray, (2**44,), b'd')
    )
    script = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    files['a TorchScript archive'] = folder / 'script.pth'
    torch.jit.save(script, files['a TorchScript archive'])
    files['a tar archive that leaves its folder'] = folder / 'tar.pth'
    with tarfile.open(files['a tar archive that leaves its folder'], 'w') as tar:
        for name in ('../ran', 'storages', 'tensors', 'pickle'):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    files['many large tensors of one number'] = folder / 'expanded.pth'
    many = {f'w{i}': torch.zeros(1).expand(2**20) for i in range(100)}
    torch.save(many, files['many large tensors of one number'])
    files['two records of one name'] = archive(
        folder / 'twice.pth', storage(4), {'archive/data/0': bytes(16), 'other/data/0': bytes(16)}
    )
    files['an archive in an archive'] = archive(
        folder / 'outer.pth', files['os.system'].read_bytes(), {'archive/data.pkl.zip': b'PK\3\4'}
    )
    for name, header in {
        'safetensors with a huge header': struct.pack('<Q', 2**60),
        'safetensors beyond the file': _safetensors({'a': ('F32', [2**40], [0, 2**42])}),
        'safetensors that overlap': _safetensors({'a': ('F32', [4], [0, 8])}),
    }.items():
        files[name] = folder / f'{len(files)}.safetensors'
        files[name].write_bytes(header + bytes(16))
    return files


def slow_files(folder: Path) -> dict[str, Path]:
    """Small files that take minutes or all memory unless values are bounded."""
    twice = 40 * b'](' + b'Nq\x07' + 40 * b'h\x07eq\x07'  # a list of two lists of two lists ...
    pairs = 40 * b'(' + b'Nq\x07' + 40 * b'h\x07tq\x07'
    text = push('a' * 10**5) + b'q\x07](' + 10**5 * b'h\x07' + b'e'
    numbers = b''.join(push(i * (2**61 - 1)) for i in range(1, 10**5 + 1))  # all of one hash
    contents = {
        'a call of a nested list': twice + b')R',
        'an object of a nested list': twice + b')\x81',
        'a dtype of a nested list': name_of('numpy.dtype') + twice + b'\x85R',
        'getattr of nested lists': name_of('builtins.getattr') + twice + b'h\x07\x86R',
        'a nested list': twice,
        'nested tuples': pairs,
        'a nested key': b'}' + pairs + b'Ns',
        'a nested item of a set': name_of('builtins.set') + b']' + pairs + b'a\x85R',
        'a nested pair': name_of('collections.OrderedDict') + b'](](' + pairs + b'Nee\x85R',
        'a long text, repeated': text,
        'keys of one hash': b'}(' + numbers + b'u',
        'items of one hash': name_of('builtins.set') + b'](' + numbers + b'e\x85R',
        'a long shape': name_of('torch.Size')
        + push(2**60)
        + b'q\x07('
        + 10**6 * b'h\x07'
        + b't\x85R',
        'deep lists': 10**5 * b']' + 10**5 * b'a',
        'a list in itself': b']q\x07h\x07a',
        'a name of a million letters': b'c' + 10**6 * b'a' + b'\n' + 10**6 * b'b' + b'\n',
    }
    return {
        name: archive(folder / f'{i}.pth', b'\x80\x02' + content + b'.')
        for i, (name, content) in enumerate(contents.items())
    }


def _safetensors(tensors: dict) -> bytes:
    keys = ('dtype', 'shape', 'data_offsets')
    header = json.dumps({name: dict(zip(keys, t, strict=True)) for name, t in tensors.items()})
    return struct.pack('<Q', len(header)) + header.encode()


@pytest.fixture(scope='module')
def hostile(tmp_path_factory) -> dict[str, Path]:
    return hostile_files(tmp_path_factory.mktemp('hostile'))


@pytest.fixture
def little_memory():
    """Let the process grow by a few GB at most."""
    now = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize('lazy', [False, True])
def test_hostile_files_are_refused_by_name_and_run_and_write_nothing(lazy, hostile, little_memory):
    folder = hostile['os.system'].parent
    before = sorted(folder.parent.rglob('*'))
    for name, file in hostile.items():
        # Without its data, that a record is too short is not seen.
        if lazy and name == 'a storage larger than its record':
            continue
        with pytest.raises(UserError) as refusal:
            read_checkpoint(file, lazy=lazy)
        assert str(file) in str(refusal.value), name
        assert sorted(folder.parent.rglob('*')) == before, name


def test_small_files_do_not_become_large_or_slow_and_messages_stay_short(tmp_path):
    """In a process of its own, which would otherwise not end."""
    script = """
import resource, sys
from pathlib import Path
from gcvit_mm.errors import UserError
from gcvit_mm.weights.files import read_checkpoint
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    try:
        read_checkpoint(file)
        print('read', file)
    except UserError as error:
        print(len(str(error)) < 500 and file in str(error))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024 < 200)
"""
    files = slow_files(tmp_path)
    shown = subprocess.run(
        [sys.executable, '-c', script, *files.values()],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    lines = dict(zip([*files, 'memory'], shown.stdout.splitlines(), strict=False))
    assert lines == dict.fromkeys([*files, 'memory'], 'True'), shown.stderr


def test_what_was_checked_cannot_be_changed_by_the_rest_of_a_file(tmp_path):
    ordered = name_of('collections.OrderedDict') + b')R'
    metadata = ordered + b'}' + push('_metadata') + b'}q\x07sbh\x07' + push('a') + b'Ns\x86'
    log = name_of('mmengine.logging.history_buffer.HistoryBuffer') + b')\x81}'
    log += push('_statistics_methods') + b'}q\x07sbh\x07' + push('mean') + b'Ns\x86'
    for number, (content, attribute) in enumerate(
        {metadata: '_metadata', log: '_statistics_methods'}.items()
    ):
        file = archive(tmp_path / f'{number}.pth', b'\x80\x02' + content + b'.')
        checked, changed = read_checkpoint(file)
        assert len(changed) == 1 and not vars(checked)[attribute]


def test_a_file_that_names_an_address_does_not_change_the_memory_there(tmp_path):
    """In a process of its own, which such a file could crash."""
    script = """
import ctypes, pickle, sys
from command_line import ROOT
from test_hostile_files import Call, archive
import numpy as np
from mmengine.logging import HistoryBuffer
from gcvit_mm.weights.files import read_checkpoint
from gcvit_mm.errors import UserError
place = (ctypes.c_int64 * 2)(1000, id(int))  # what looks like an object that is referred to
address = ctypes.addressof(place).to_bytes(8, 'little')
for function in (np.ndarray, np._core.multiarray._reconstruct):
    array = Call(function, (7,), Call(np.dtype, 'O'), 7 * address)
    for content in (array, Call(HistoryBuffer, array, list(range(7)))):
        try:
            read_checkpoint(archive(sys.argv[1], {'state_dict': content}))
        except UserError as error:
            print('refused' in str(error), place[0])
"""
    path = os.pathsep.join([str(ROOT / 'tests'), str(ROOT)])
    shown = subprocess.run(
        [sys.executable, '-c', script, tmp_path / 'x.pth'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )
    assert shown.stdout.splitlines() == ['True 1000'] * 4, shown.stderr


@pytest.mark.parametrize('archived', [True, False])
def test_what_trainings_save_is_read_as_pytorch_reads_it(archived, tmp_path):
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(layers.parameters())
    layers(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    parameter, noted = torch.nn.Parameter(torch.ones(2)), torch.zeros(3)
    parameter.lr_mult = noted.note = 0.1
    shared = torch.arange(24.0).reshape(4, 6)
    content = {
        'state_dict': layers.state_dict(),
        'optimizer': optimizer.state_dict(),
        'tensors': [parameter, noted, shared.t(), shared[1:3, ::2], torch.zeros(0, 3)],
        'expanded': torch.ones(1).expand(5, 3),
        'types': [
            torch.ones(2).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.bool, torch.int8, torch.complex64)
        ],
        'arrays': [np.zeros(0), np.array(3), np.asfortranarray(np.arange(6).reshape(2, 3))],
        'numbers': [np.float64(3), np.int64(4), np.bool_(True), 10**30, 3j],
        'random': np.random.get_state(),
        'plain': [b'abc', b'', {1}, torch.float32, shared.shape, torch.device('cpu')],
        'milestones': Counter([8, 11, 11]),
        'args': argparse.Namespace(lr=0.1, opt=None),
    }
    if archived:
        content['new types'] = [
            torch.ones(2).to(torch.float8_e4m3fn),
            torch.ones(2).to(torch.uint16),
        ]
    file = tmp_path / 'x.pth'
    torch.save(content, file, _use_new_zipfile_serialization=archived)
    expected, found = torch.load(file, weights_only=False), read_checkpoint(file)
    assert_same(expected, found)
    assert found['state_dict']._metadata == expected['state_dict']._metadata
    first, second = found['tensors'][2:4]
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    shapes = read_checkpoint(file, lazy=True)
    assert [x.shape for x in shapes['tensors']] == [x.shape for x in expected['tensors']]
    assert shapes['args'] == expected['args']


def assert_same(expected: Any, found: Any) -> None:
    assert type(expected) is type(found)
    if isinstance(expected, dict | list | tuple):
        assert len(expected) == len(found)
        for key in expected if isinstance(expected, dict) else range(len(expected)):
            assert_same(expected[key], found[key])
    elif isinstance(expected, torch.Tensor):
        assert (expected.dtype, expected.stride()) == (found.dtype, found.stride())
        assert expected.requires_grad == found.requires_grad
        assert torch.equal(expected.to(torch.complex128), found.to(torch.complex128))
    elif isinstance(expected, np.ndarray):
        assert (expected.dtype, expected.strides) == (found.dtype, found.strides)
        assert np.array_equal(expected, found)
    else:
        assert expected == found


def test_a_byte_of_a_tensor_that_changed_on_the_disk_is_noticed_when_it_is_read(tmp_path):
    torch.save({'state_dict': {'a': torch.zeros(1000)}}, tmp_path / 'x.pth')
    content = bytearray((tmp_path / 'x.pth').read_bytes())
    content[content.index(bytes(3000)) + 1500] = 1
    (tmp_path / 'x.pth').write_bytes(content)
    with pytest.raises(UserError, match=r'x.pth cannot be read, .*damaged'):
        read_checkpoint(tmp_path / 'x.pth')


def test_names_in_an_archive_lead_nowhere(tmp_path):
    names = {'../escaped': b'x', '/escaped': b'x', 'archive/data/0': bytes(16)}
    folder = tmp_path / 'a/b'
    folder.mkdir(parents=True)
    archive(folder / 'x.pth', storage(4), names)
    with contextlib.suppress(UserError):  # PyTorch wants all names in one folder
        read_checkpoint(folder / 'x.pth')
    assert [path.name for path in tmp_path.rglob('*')] == ['a', 'b', 'x.pth']


def command(way: str, file: Path, trained: Any, folder: Path) -> tuple[object, ...]:
    """A command that reads a checkpoint in one of the ways in which a person can name it."""
    work, data = ('--work-dir', folder / 'work'), on(trained.data)
    initial = f'model.backbone.init_cfg={{type: Pretrained, checkpoint: {file}}}'
    image = trained.data / 'images/validation/000000.jpg'
    return {
        'load_from': ('train.py', NANO, *work, *data, f'load_from={file}'),
        '--resume': ('train.py', NANO, *work, '--resume', file, *data),
        'Pretrained': ('train.py', NANO, *work, *data, initial),
        'test': ('test.py', NANO, file, *work, *data),
        'infer': ('infer.py', NANO, image, '--checkpoint', file, '--out', folder / 'x'),
        'export': ('export.py', NANO, '--checkpoint', file, '--out', folder / 'x.pt2'),
        'convert': ('convert_checkpoint.py', file, folder / 'x.pth', '--task=dense'),
        'publish': ('publish_checkpoint.py', file, folder / 'x.pth'),
    }[way]


@pytest.mark.parametrize(
    'way', ['load_from', '--resume', 'Pretrained', 'test', 'convert', 'publish']
)
def test_every_way_that_a_file_comes_in_refuses_to_run_it(way, hostile, trained, tmp_path):
    file = hostile['os.system']
    error = fail(*command(way, file, trained, tmp_path))
    assert f'checkpoint {file} is refused: it names posix.system, which could run code' in error
    assert '--trust-checkpoint' in error
    assert not (file.parent / 'ran').exists()
    assert not list(tmp_path.glob('x*'))


WAYS = {
    '--resume': 'zeros', 'test': 'bits', 'infer': 'zeros', 'export': 'cut', 'convert': 'bits',
    'publish': 'zeros', 'load_from': None, 'Pretrained': None,
}  # fmt: skip
"""Ways in which a person names a file, and the damage that is always tried; others are slow."""


@pytest.mark.parametrize(
    ('way', 'damage'),
    [
        pytest.param(way, damage, marks=[] if damage == quick else [pytest.mark.slow])
        for way, quick in WAYS.items()
        for damage in ('zeros', 'bits', 'cut')
    ],
)
def test_damage_is_noticed_wherever_a_person_names_a_file(way, damage, trained, tmp_path):
    file = damaged(trained.checkpoint, damage, tmp_path / 'epoch_1.pth')
    error = fail(*command(way, file, trained, tmp_path))
    assert f'checkpoint {file} cannot be read' in error and 'damaged' in error
    assert not list(tmp_path.glob('x*')) and not list(tmp_path.glob('work/*.pth'))


def damaged(source: Path, damage: str, target: Path) -> Path:
    """Copy a checkpoint; damage its largest tensor, or cut it off at nine tenths."""
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as records:
        largest = max(records.infolist(), key=lambda record: record.file_size)
    middle = largest.header_offset + largest.file_size // 2
    if damage == 'zeros':
        content[middle : middle + 4000] = bytes(4000)
    elif damage == 'bits':
        content[middle] ^= 1
        content[middle + 9] ^= 128
    else:
        del content[len(content) * 9 // 10 :]
    target.write_bytes(content)
    return target


@pytest.mark.parametrize('damage', ['zeros', 'bits'])
def test_damage_is_noticed_in_files_that_the_user_trusts(damage, trained, tmp_path, monkeypatch):
    file = damaged(trained.checkpoint, damage, tmp_path / 'x.pth')
    monkeypatch.setattr(checkpoints, '_trusted', True)
    with pytest.raises(UserError, match=rf'{file} is damaged: the checksum'):
        read_checkpoint(file)


ODD_META = {
    'a list': [],
    'a number as data': {'dataset_meta': 5},
    'a number as classes': {'dataset_meta': {'classes': 5}},
    'numbers as names': {'dataset_meta': {'classes': [1, 2]}},
    'a number as config': {'cfg': 5},
}


@pytest.mark.parametrize('odd', ODD_META)
def test_metadata_of_other_types_are_refused(odd, trained):
    content = {'meta': ODD_META[odd], 'state_dict': {}}
    with pytest.raises(UserError, match=r'meta\.cfg .* meta\.dataset_meta\.classes'):
        checkpoints.meta_of(content)


NESTED = '[' * 10**5 + ']' * 10**5


def test_json_of_great_depth_is_refused_by_name(tmp_path):
    file = tmp_path / 'x.json'
    file.write_text(NESTED)
    for read in (
        lambda: read_json(file),
        lambda: read_coco(str(file), need_annotations=True),
        lambda: Results(tmp_path, {}),
    ):
        (tmp_path / 'run.json').write_text(NESTED)
        with pytest.raises(UserError, match=rf'{tmp_path}/(x|run)\.json'):
            read()
    weights = tmp_path / 'x.safetensors'
    save_file({'a': torch.zeros(1)}, weights, metadata={'gcvit_mm': NESTED})
    with pytest.raises(UserError, match=str(weights)):
        read_checkpoint(weights)
    weights.write_bytes(struct.pack('<Q', len(NESTED)) + NESTED.encode())
    with pytest.raises(UserError, match=str(weights)):
        read_checkpoint(weights)


def test_files_of_one_name_at_two_addresses_are_not_exchanged(tmp_path, monkeypatch):
    for number, folder in enumerate(('a', 'b')):
        (tmp_path / folder).mkdir()
        torch.save({'state_dict': {'x': torch.tensor([number])}}, tmp_path / folder / 'model.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        for _ in range(2):  # from the cache, too
            for number, folder in enumerate(('a', 'b', 'b')):
                content = load_from_http(f'{address}/{folder}/model.pth')
                assert content['state_dict']['x'].item() == min(number, 1)
        server.shutdown()


def test_logs_have_names_of_others_as_text():
    script = r"""
from gcvit_mm.cli import run
name = '\x1b]0;owned\x07\x9b31m'
def main():
    from mmengine.logging import MMLogger, print_log
    logger = MMLogger.get_instance('run')
    logger.info('bad image %s', name)
    logger.warning(f'first\n{name}')
    print_log(f'bad image {name}', logger='current')
    print_log(f'bad image {name}')
run(main)
"""
    shown = subprocess.run(
        [sys.executable, '-c', script],
        capture_output=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )
    output = (shown.stdout + shown.stderr).decode()
    assert output.count(r'\x1b]0;owned\x07\x9b31m') == 4
    assert 'first\n' in output
    assert not {'\x07', '\x9b'} & set(output) and '\x1b]' not in output


def test_a_config_in_a_checkpoint_is_not_executed(trained, tmp_path):
    content = read_checkpoint(trained.checkpoint)
    for key in ('config', 'cfg'):
        content['meta'][key] = f"open({str(tmp_path / 'ran')!r}, 'w')"
    torch.save(content, tmp_path / 'x.pth')
    options = on(trained.data, 'train_cfg.max_epochs=2')
    resume = ('--resume', tmp_path / 'x.pth')
    succeed('train.py', NANO, '--work-dir', tmp_path / 'work', *resume, *options)
    succeed('test.py', NANO, tmp_path / 'x.pth', '--work-dir', tmp_path / 'work', *options)
    assert not (tmp_path / 'ran').exists()


def test_a_file_that_the_user_trusts_is_read_whatever_it_names(trained, tmp_path):
    content = read_checkpoint(trained.checkpoint)
    content['meta']['of mine'] = Path('x')  # harmless, and not on the list
    torch.save(content, tmp_path / 'x.pth')
    arguments = ('test.py', NANO, tmp_path / 'x.pth', '--work-dir', tmp_path / 'work')
    assert 'pathlib' in fail(*arguments, *on(trained.data))
    output = succeed(*arguments, '--trust-checkpoint', *on(trained.data))
    assert 'coco/bbox_mAP' in output


@pytest.mark.parametrize(
    'url', ['s3://bucket/x.pth', 'pavi://x', 'openmmlab://none', 'mmcls://none']
)
def test_no_address_leads_to_a_reader_that_executes(url):

    before = dict(CheckpointLoader._schemes)
    try:
        register_loaders()
        with pytest.raises(UserError, match=f'checkpoint {url}'):
            CheckpointLoader.load_checkpoint(url)
        readers = {loader.__module__ for loader in CheckpointLoader._schemes.values()}
        assert readers == {'gcvit_mm.weights.mm_loaders'}
    finally:
        CheckpointLoader._schemes.clear()
        CheckpointLoader._schemes.update(before)


# --- Chance -----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_checkpoint_damaged_anyhow_is_read_or_refused_by_name(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('fuzz')
    path = folder / 'x.pth'
    content = {'meta': {'iter': 1, 'time': ''}, 'state_dict': {'a': torch.arange(6.0)},
               'message_hub': {}, 'optimizer': {}}  # fmt: skip
    torch.save(content, path)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(bytes(damaged))
    with contextlib.suppress(UserError):
        state_dict_of(read_checkpoint(path))
    found, reasons = find_resumable(folder)
    assert found == str(path) or not reasons or str(path) in reasons[0]


@pytest.mark.parametrize('count', [1000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_programs_of_allowed_names_and_opcodes_neither_crash_nor_take_memory(count):
    run = subprocess.run(
        [sys.executable, ROOT / 'tests/pickle_programs.py', '1', str(count)],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        timeout=30 + count / 10,  # many times of what it takes
    )
    assert run.returncode == 0, run.stderr
    outcomes = json.loads(run.stdout)
    assert outcomes.pop('MB grown') < 100  # of the files none is longer than a few kB
    assert outcomes.keys() == {'read', 'refused', 'damaged'}
    assert sum(outcomes.values()) == count and min(outcomes.values()) > count / 20


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_annotations_changed_anyhow_are_used_or_refused_by_name(data, tiny_shapes, tmp_path):
    """Something, at any depth, is replaced, lost or put in: the data set is built and read."""
    cfg = Config.fromfile(ROOT / NANO)
    content = json.loads((tiny_shapes / 'annotations/instances_training.json').read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        change_something(content, data)
    path = tmp_path / 'annotations.json'
    path.write_text(json.dumps(content))
    dataset = cfg.train_dataloader.dataset
    dataset.update(data_root=str(tiny_shapes), ann_file=str(path))
    dataset.metainfo.classes = ('disk', 'box', 'star')
    init_default_scope('mmdet')
    try:
        check_data(cfg, ('train_dataloader',))
        samples = SeededDataset(dataset)
        for index in range(len(samples)):
            samples[0, 0, index]
    except Exception as error:
        assert str(path) in ' '.join([str(error), *getattr(error, '__notes__', [])]), repr(error)
        # Anything but our own error, with a note, would be a traceback: for oddities only.
        assert isinstance(error, UserError) or getattr(error, '__notes__', [])


def change_something(node: Any, data: st.DataObject) -> None:
    keys = list(range(len(node))) if isinstance(node, list) else list(node)
    if not keys:
        return
    key = data.draw(st.sampled_from(keys))
    if isinstance(node[key], list | dict) and data.draw(st.integers(0, 4)):
        change_something(node[key], data)
    elif data.draw(st.booleans()):
        node[key] = data.draw(JSON)
    else:
        del node[key]


@pytest.mark.parametrize(
    'mask',
    [[[1e14, 0, 1, 1, 2, 60]], [[-1e14, 0, 1e14, 1, 2, 60]], dict(size=[10**6, 10**6], counts=[1])],
)
def test_masks_that_would_take_all_memory_are_refused(mask, tiny_shapes, tmp_path):
    content = json.loads((tiny_shapes / 'annotations/instances_training.json').read_text())
    content['annotations'][3]['segmentation'] = mask
    (tmp_path / 'x.json').write_text(json.dumps(content))
    option = f'train_dataloader.dataset.ann_file={tmp_path}/x.json'
    error = fail('train.py', NANO, '--work-dir', tmp_path / 'work', *on(tiny_shapes, option))
    assert f'{tmp_path}/x.json: ' in error and 'images/training/' in error
    assert 'far outside the image' in error or 'size of run lengths' in error


def test_two_threads_that_load_models_both_read_safely_and_restore_mmengines_loaders():
    before, inside, readers = dict(CheckpointLoader._schemes), threading.Event(), []

    def load(wait: float) -> None:
        with safe_loaders():
            inside.set()
            time.sleep(wait)
            readers.append(CheckpointLoader._schemes[''].__module__)

    first = threading.Thread(target=load, args=(0.2,))
    first.start()
    inside.wait()
    load(0)
    first.join()
    assert readers == ['gcvit_mm.weights.mm_loaders'] * 2
    assert dict(CheckpointLoader._schemes) == before


def test_text_with_names_that_are_not_text_is_written(tmp_path):
    atomic_text(tmp_path / 'new/page.html', 'caf\udce9')
    assert (tmp_path / 'new/page.html').read_text() == 'caf\\udce9'
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['page.html']
