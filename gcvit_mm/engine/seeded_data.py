"""Samples whose augmentation depends only on their position in a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, cycle
from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import BatchSampler, Dataset

from .randomness import seed_generators

ONCE = ('DefaultSampler', 'InfiniteSampler')
"""The samplers that give each index once in an epoch."""


@DATASETS.register_module()
class SeededDataset(Dataset):
    """A data set that augments a sample by its key alone, whichever process reads it, and when.

    All attributes are read from and set on the wrapped data set.

    Args:
        dataset: The data set to wrap, or its config.
    """

    def __init__(self, dataset: Any) -> None:
        if isinstance(dataset, dict):
            file = dataset.get('ann_file') or dataset.get('type')
            with _noting(lambda: f'while reading {file}'):
                dataset = DATASETS.build(dataset)
        object.__setattr__(self, 'seeded', dataset)

    def __len__(self) -> int:
        return len(self.seeded)

    def __getitem__(self, key: tuple[int, ...]) -> Any:
        """Load the sample with the last integer of ``key`` as index; all of ``key`` is the seed."""
        seed_generators(*key)
        with _noting(lambda: f'while loading sample {key[-1]} of {self._name(key[-1])}'):
            return self.seeded[key[-1]]

    def _name(self, index: int) -> str:
        file = getattr(self.seeded, 'ann_file', '') or type(self.seeded).__name__
        if not hasattr(self.seeded, 'get_data_info'):
            return file
        return f'{file}: {self.seeded.get_data_info(index).get("img_path")}'

    def __getattr__(self, name: str) -> Any:
        if name == 'seeded':  # not set yet, as the object is being unpickled
            raise AttributeError(name)
        return getattr(self.seeded, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.seeded, name, value)

    def __getstate__(self) -> dict:
        return {'seeded': self.seeded}

    def __setstate__(self, state: dict) -> None:
        object.__setattr__(self, 'seeded', state['seeded'])


@contextmanager
def _noting(say: Callable[[], str]) -> Iterator[None]:
    """Add a note to exceptions about what was being read."""
    try:
        yield
    except Exception as error:
        if hasattr(error, 'add_note'):  # Python 3.11 and later
            error.add_note(say())
        raise


@DATA_SAMPLERS.register_module()
class SeededBatchSampler:
    """Batches of keys for ``SeededDataset``, from any position in an epoch.

    The batch of a step is that of a single process with the total batch size, and the processes
    share it, so its samples do not depend on their number. A last batch that is incomplete is
    filled with the first samples of the epoch. Samplers that compose the batches of a process
    (those with a ``batch_size``, such as mmdet's ``MultiSourceSampler``) depend on the number.

    A key is (seed, epoch, index). Samplers that may give an index more than once in an epoch get
    the keys (seed, epoch, position in the epoch, index), so that each copy is augmented in its own
    way; so do samples that fill a batch.

    Args:
        sampler: A sampler of the data set.
        batch_size: Samples in a batch of one process.
        seed: Seed of the training.
        sampler_cfg: Config of the sampler. Samplers have state, so each epoch gets a new one.
        batch_sampler_cfg: Config of the batch sampler; None takes PyTorch's ``BatchSampler``.
        drop_last: Whether ``BatchSampler`` drops an incomplete last batch.
    """

    def __init__(
        self,
        sampler: Any,
        batch_size: int,
        seed: int,
        sampler_cfg: dict,
        batch_sampler_cfg: dict | None = None,
        drop_last: bool = False,
    ) -> None:
        self.dataset = sampler.dataset
        self.batch_size = batch_size
        self.sampler_cfg = sampler_cfg
        self.batch_sampler_cfg = batch_sampler_cfg
        self.drop_last = drop_last
        # These samplers look up the number of processes when they are built.
        composes = hasattr(sampler, 'batch_size') or 'batch_size' in (batch_sampler_cfg or {})
        self.shared = hasattr(sampler, 'world_size') and not composes
        self.go_to(seed, 0, 0)

    def go_to(self, seed: int, passes: int, samples: int) -> None:
        """Set the position of the next batch.

        Args:
            seed: Seed of the training.
            passes: Number of finished epochs.
            samples: Samples of the current epoch that all processes together have taken.
        """
        self.seed = seed
        self.passes = passes
        self.first = samples // self.samples_per_batch
        own = dict(dataset=self.dataset, seed=seed)
        with _as_one_process() if self.shared else nullcontext():
            self.sampler = DATA_SAMPLERS.build(self.sampler_cfg, default_args=own)
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(passes)
        size = self.samples_per_batch if self.shared else self.batch_size
        if self.batch_sampler_cfg is None:
            self.batches = BatchSampler(self.sampler, size, self.drop_last)
        else:
            own = dict(sampler=self.sampler, batch_size=size)
            self.batches = DATA_SAMPLERS.build(self.batch_sampler_cfg, default_args=own)

    @property
    def samples_per_batch(self) -> int:
        """Samples of a batch, summed over all processes."""
        return self.batch_size * get_world_size()

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        processes, rank, total = get_world_size(), get_rank(), self.samples_per_batch
        repeats = type(self.sampler).__name__ not in ONCE
        places = range(total) if self.shared else range(rank, total, processes)
        start: list[int] = []
        for number, batch in enumerate(self.batches):
            start = start or batch
            if number < self.first:
                continue
            # One iteration over an infinite sampler has many epochs.
            rounds = self.passes + number * total // len(self.dataset)
            filled = chain(batch, cycle(start)) if self.shared else batch
            keys = [
                (self.seed, rounds, *([number * total + k] * (repeats or i >= len(batch))), index)
                for i, (k, index) in enumerate(zip(places, filled, strict=False))
            ]
            yield keys[rank::processes] if self.shared else keys

    def __len__(self) -> int:
        return len(self.batches)


@contextmanager
def _as_one_process() -> Iterator[None]:
    """Let samplers that are built meanwhile give the samples of all processes."""
    before = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = before
