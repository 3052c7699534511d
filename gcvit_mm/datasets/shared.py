"""Annotations that are read once on each machine, in memory that its processes share."""

import ctypes
import gc
import json
import mmap
import os
import pickle
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from hashlib import sha256
from itertools import count
from typing import Any

from mmengine.dataset import BaseDataset
from torch import distributed
from torch.utils.data import get_worker_info

WAIT = 1800
"""Seconds to wait for the process that reads; then each process reads for itself."""
FILES: dict[str, dict] = {}
"""Content of COCO files that the check of the data has read, for the data sets, by path."""
_turns = count()
_alone = [False]  # whether this process is reading


@contextmanager
def _reading() -> Iterator[None]:
    """Mark a read, and do not search its millions of new objects for garbage meanwhile."""
    before, collects = _alone[0], gc.isenabled()
    _alone[0] = True
    gc.disable()
    try:
        yield
    finally:
        _alone[0] = before
        if collects:
            gc.enable()


def once_a_machine(read: Callable[[], str]) -> str:
    """Call a function in one process of each machine, and return its result in all of them.

    All processes have to call this in equal order. The result is '' if the function fails elsewhere
    or takes too long. Calls within ``read`` are not shared.
    """
    if _alone[0]:
        return read()
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        with _reading():
            return read()
    store = distributed.distributed_c10d._get_default_store()
    key = f'gcvit_mm/{socket.gethostname()}/{next(_turns)}'
    if os.environ.get('LOCAL_RANK', '0') == '0':  # all launchers set it
        result = ''
        try:
            with _reading():
                result = read()
        finally:
            store.set(key, result)
        return result
    end = time.monotonic() + WAIT
    while not store.check([key]):
        if time.monotonic() > end:
            return ''
        time.sleep(0.05)
    return store.get(key).decode()


def share_annotations(cls: type[BaseDataset]) -> None:
    """Let the processes of a machine share what data sets of a class load.

    The first process loads them, and writes its attributes, without the pipeline, to a file in
    memory that has no name and ends with the process. The others map the arrays in it: with
    ``serialize_data``, the default, those are the annotations. A process that cannot read the file,
    or has built another data set, loads for itself.
    """
    full_init = cls.full_init
    if hasattr(full_init, 'shared'):
        return

    @wraps(full_init)
    def shared(self: BaseDataset) -> None:
        if self._fully_initialized or not self.serialize_data or get_worker_info() is not None:
            full_init(self)
            return
        settings = sha256(repr(_state(self)).encode(errors='replace')).hexdigest()
        place = once_a_machine(lambda: _load(self, full_init, settings))
        if not self._fully_initialized and not _map(self, place, settings):
            with _reading():
                full_init(self)

    shared.shared = True  # type: ignore[attr-defined]
    cls.full_init = shared


def _state(dataset: BaseDataset) -> dict[str, Any]:
    return {name: value for name, value in vars(dataset).items() if name != 'pipeline'}


def _load(dataset: BaseDataset, full_init: Callable, settings: str) -> str:
    """Load a data set into a file in memory; return its place, or '' if that is not possible."""
    path = os.path.realpath(dataset.ann_file)
    if path in FILES:
        dataset.COCOAPI = lambda _: _coco(type(dataset).COCOAPI(), FILES.pop(path))
    try:
        full_init(dataset)
    finally:
        vars(dataset).pop('COCOAPI', None)
    try:
        buffers: list[pickle.PickleBuffer] = []
        head = pickle.dumps(_state(dataset), 5, buffer_callback=buffers.append)
        name, spans = f'gcvit_mm_{secrets.token_hex(8)}', []
        descriptor = os.memfd_create(name)  # stays open for the other processes
        with open(descriptor, 'wb', closefd=False) as file:
            for part in (memoryview(head), *(buffer.raw() for buffer in buffers)):
                file.write(bytes(-file.tell() % 64))  # arrays begin at whole words
                spans.append((file.tell(), file.tell() + file.write(part)))
    except Exception:  # not on Linux, or attributes that cannot be pickled, which raise anything
        return ''
    # This process takes them from there too, so that all memory that reading took is returned:
    # each small object that was left in it would keep a part of it.
    pipeline = dataset.pipeline
    del part
    buffers.clear()
    vars(dataset).clear()
    with suppress(AttributeError):  # of a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)
    _take(dataset, descriptor, spans)
    dataset.pipeline = pipeline
    link = f'/proc/{os.getpid()}/fd/{descriptor}'
    return json.dumps(dict(link=link, name=name, spans=spans, settings=settings))


def _coco(api: Any, content: dict) -> Any:
    api.dataset = content
    api.createIndex()
    api.img_ann_map, api.cat_img_map = api.imgToAnns, api.catToImgs
    return api


def _map(dataset: BaseDataset, place: str, settings: str) -> bool:
    """Take the attributes of a data set from a file in memory, if it is that of ``settings``."""
    if not place:
        return False
    there = json.loads(place)
    try:
        if (
            there['settings'] != settings
            or os.readlink(there['link']) != f'/memfd:{there["name"]} (deleted)'
        ):
            return False
        descriptor = os.open(there['link'], os.O_RDONLY)
    except OSError:  # of another container, for example
        return False
    _take(dataset, descriptor, there['spans'])
    os.close(descriptor)
    return True


def _take(dataset: BaseDataset, descriptor: int, spans: list[tuple[int, int]]) -> None:
    view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY))
    head, *buffers = (view[start:end] for start, end in spans)
    vars(dataset).update(pickle.loads(head, buffers=buffers))
