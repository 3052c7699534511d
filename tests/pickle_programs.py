"""Random programs of pickle opcodes for the reader of ``.pth`` files: SEED COUNT.

Run in a process of its own, which such a program could crash. The process has little memory, and
prints how many programs there were of each outcome, and by how many MB it grew.
"""

import json
import pickle
import random
import resource
import sys
import zipfile
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from gcvit_mm.weights.pth_file import read_pth
from gcvit_mm.weights.safe_pickle import _NAMES, RefusedError

MEMORY = 2**29
STORAGES = ['torch.FloatStorage', 'torch.LongStorage', 'torch.storage.UntypedStorage']
GLOBALS = [*sorted(_NAMES), *STORAGES, 'torch.float32', 'torch.uint8', 'posix.system']
NUMBERS = [-1, 0, 1, 2, 3, 4, 8, 16, 1000, 2**31 - 1, 2**31, 2**40, 2**63, 2**70, -(2**40)]
TEXTS = [
    '', 'a', 'storage', '0', '1', 'cpu', 'cuda', 'meta', 'f8', 'i4', 'O', 'V8', 'U5', '<', '|', '>',
    'b', 'latin1', 'utf-8', 'min', 'mean', '_metadata', '_log_history', '_count_history',
    'max_length', 'statistics_methods', 'items', '__class__', '__dict__',
]  # fmt: skip


class Programs:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def value(self, depth: int = 0) -> bytes:
        """A value of any kind, right or wrong."""
        kinds = {
            self.number: 15, self.text: 10, self.constant: 5, self.name: 12, self.array: 7,
            self.persistent: 3, self.recalled: 2,
        }  # fmt: skip
        if depth < 5:
            nested = {self.tuple: 13, self.list: 5, self.dict: 6, self.call: 16, self.build: 6}
            kinds |= {**nested, self.kept: 2, self.doubled: 2}
        (make,) = self.rng.choices(list(kinds), list(kinds.values()))
        return make(depth + 1)

    def number(self, depth: int = 0) -> bytes:
        return push(self.rng.choice(NUMBERS))

    def text(self, depth: int) -> bytes:
        return push(self.rng.choice(TEXTS))

    def constant(self, depth: int) -> bytes:
        return self.rng.choice([b'N', b'\x88', b'\x89', push(1.5), push(float('nan'))])

    def name(self, depth: int = 0) -> bytes:
        return name_of(self.rng.choice(GLOBALS))

    def several(self, depth: int, most: int) -> bytes:
        return b'(' + b''.join(self.value(depth) for _ in range(self.rng.randint(0, most)))

    def tuple(self, depth: int) -> bytes:
        return self.several(depth, 5) + b't'

    def list(self, depth: int) -> bytes:
        return b']' + self.several(depth, 4) + b'e'

    def dict(self, depth: int) -> bytes:
        pairs = (self.value(depth) + self.value(depth) for _ in range(self.rng.randint(0, 3)))
        return b'}(' + b''.join(pairs) + b'u'

    def call(self, depth: int) -> bytes:
        return self.name() + self.several(depth, 7) + b't' + self.rng.choice([b'R', b'R', b'\x81'])

    def build(self, depth: int) -> bytes:
        return self.value(depth) + self.value(depth) + b'b'

    def kept(self, depth: int) -> bytes:
        return self.value(depth) + b'q' + bytes([self.rng.randint(0, 5)])

    def doubled(self, depth: int) -> bytes:
        """A list or tuple of two, each of which is the same list or tuple of two, 40 times."""
        begin, end = self.rng.choice([(b'](', b'e'), (b'(', b't')])
        return 40 * begin + b'Nq\x07' + 40 * (b'h\x07' + end + b'q\x07')

    def recalled(self, depth: int) -> bytes:
        return b'h' + bytes([self.rng.randint(0, 5)])

    def persistent(self, depth: int) -> bytes:
        kind, key = name_of(self.rng.choice(STORAGES)), push(self.rng.choice('01'))
        return b'(' + push('storage') + kind + key + push('cpu') + self.number() + b'tQ'

    def array(self, depth: int) -> bytes:
        """Nearly an array of numpy's, or a log with one."""
        choose = self.rng.choice
        dtype = (
            name_of('numpy.dtype') + b'(' + push(choose(['f8', 'i4', 'O', 'b1'])) + b'\x89\x88tR'
        )
        if choose([True, True, False]):
            numbers = push(choose([-1, 8])) + push(-1) + push(choose([0, 0, 63]))
            dtype += b'(' + push(3) + push(choose('<|>')) + b'NNN' + numbers + b'tb'
        shape = tuple(choose([0, 1, 2, 3, 2**40, -1]) for _ in range(self.rng.randint(0, 3)))
        begin = name_of('numpy.ndarray') + push((choose([0, 0, 0, 2**33]),)) + raw(b'b') + b'tR'
        state = push(1) + push(shape) + dtype + choose([b'\x88', b'\x89'])
        state += raw(bytes(choose([0, 8, 16, 24, 32])))
        array = name_of('numpy._core.multiarray._reconstruct') + b'(' + begin + b'(' + state + b'tb'
        if choose([True, False]):
            return array
        log = name_of('mmengine.logging.history_buffer.HistoryBuffer') + b')\x81'
        entries = push('_log_history') + array + push('_count_history') + array
        return log + b'}(' + entries + b'ub'


def push(value: object) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def name_of(path: str) -> bytes:
    module, _, name = path.rpartition('.')
    return f'c{module}\n{name}\n'.encode()


def raw(data: bytes) -> bytes:
    """Bytes as protocol 2 spells them."""
    return name_of('_codecs.encode') + b'(' + push(data.decode('latin1')) + push('latin1') + b'tR'


def read_programs(seed: int, count: int) -> Counter:
    programs, outcomes = Programs(seed), Counter()
    with TemporaryDirectory() as folder:
        path = Path(folder, 'x.pth')
        for _ in range(count):
            with zipfile.ZipFile(path, 'w') as archive:
                archive.writestr('a/data.pkl', b'\x80\x02' + programs.value() + b'.')
                archive.writestr('a/data/0', bytes(16))
                archive.writestr('a/data/1', bytes(64))
            try:
                read_pth(path, 'cpu', lazy=programs.rng.random() < 0.2)
                outcomes['read'] += 1
            except RefusedError:
                outcomes['refused'] += 1
            except MemoryError:
                outcomes['beyond memory'] += 1
            except Exception:  # as damaged files are
                outcomes['damaged'] += 1
    return outcomes


if __name__ == '__main__':
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = read_programs(int(sys.argv[1]), int(sys.argv[2]))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps({**outcomes, 'MB grown': grown}))
