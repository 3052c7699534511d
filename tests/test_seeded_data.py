"""Each sample of a training has its own random numbers, whichever process reads it."""

import json
from collections import Counter
from itertools import chain, islice

import mmpretrain.datasets  # noqa: F401
import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from mmdet.datasets.samplers import ClassAwareSampler  # noqa: F401
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import ConcatDataset, Dataset

from gcvit_mm.engine import SeededBatchSampler, SeededDataset

REPEAT = dict(type='mmpretrain.RepeatAugSampler', num_repeats=3)


@DATASETS.register_module()
class RandomNumbers(Dataset):
    """Samples of two classes, each a random number as an augmentation draws it."""

    metainfo = dict(classes=('a', 'b'))

    def __init__(self, length=12):
        self.length = length

    def __len__(self):
        return self.length

    def get_data_info(self, index):
        return dict(width=2 + index % 3, height=3)

    def __getitem__(self, index):
        return np.random.random()

    def get_cat_ids(self, index):
        return [index % 2]


def keys_of(sampler, batch_size=4, samples=0):
    dataset = SeededDataset(RandomNumbers())
    built = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=0))
    batches = SeededBatchSampler(built, batch_size, 0, sampler)
    batches.go_to(0, 0, samples)
    return [tuple(map(int, key)) for batch in batches for key in batch]


@pytest.mark.parametrize(
    'sampler', [REPEAT, dict(type='mmdet.ClassAwareSampler', num_sample_class=4)]
)
def test_copies_of_an_index_in_an_epoch_are_augmented_each_in_its_own_way(sampler):
    data, keys = SeededDataset(RandomNumbers()), keys_of(sampler)
    index, copies = Counter(key[-1] for key in keys).most_common(1)[0]
    assert copies > 1
    assert len({data[key] for key in keys if key[-1] == index}) == copies
    later = keys_of(sampler, samples=8)  # a training that resumes draws the same numbers
    assert later == keys[8:]


def test_an_index_that_comes_once_in_an_epoch_keeps_the_key_of_earlier_versions():
    keys = keys_of(dict(type='DefaultSampler', shuffle=True))
    assert {len(key) for key in keys} == {3} and len(set(keys)) == 12


def write_keys(rank, processes, folder):
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=processes)
    keys = [steps_of(*case, 12 // processes) for case in CASES]
    (folder / f'{rank}.json').write_text(json.dumps(keys))


CASES = [
    (REPEAT, None, False),
    (dict(type='DefaultSampler', shuffle=True), None, False),
    (dict(type='DefaultSampler', shuffle=True), None, True),
    (dict(type='InfiniteSampler', shuffle=True), None, False),
    (dict(type='mmdet.ClassAwareSampler', num_sample_class=4), None, False),
    (dict(type='DefaultSampler'), dict(type='mmdet.AspectRatioBatchSampler'), False),
]


def steps_of(sampler, batch_sampler, drop_last, batch_size):
    """The keys of the first three steps of each epoch; none has a multiple of 12 images."""
    dataset = SeededDataset(RandomNumbers(31))
    built = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=0))
    batches = SeededBatchSampler(built, batch_size, 0, sampler, batch_sampler, drop_last)
    return [[list(map(int, key)) for key in batch] for batch in islice(batches, 3)]


@pytest.mark.parametrize('processes', [2, 3, 4])
def test_processes_share_the_samples_and_random_numbers_of_one(processes, tmp_path):
    mp.start_processes(write_keys, (processes, tmp_path), processes, start_method='fork')
    shares = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(processes)]
    for case, *parts in zip(CASES, *shares, strict=True):
        one = steps_of(*case, 12)
        assert [len(step) for step in one] == [12] * (2 if case[2] else 3)
        together = [sorted(chain(*step)) for step in zip(*parts, strict=True)]
        assert together == [sorted(step) for step in one], case
        assert {len(step) for part in parts for step in part} == {12 // processes}


def test_a_last_batch_is_filled_with_samples_that_are_augmented_anew():
    (batch,) = steps_of(*CASES[1], 50)
    keys = list(map(tuple, batch))
    assert len(set(keys)) == 50 and {key[-1] for key in keys} == set(range(31))
    data = SeededDataset(RandomNumbers(31))
    assert len({data[key] for key in keys}) == 50


def check_composition(rank, folder):
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    sampler = dict(type='mmdet.MultiSourceSampler', batch_size=4, source_ratio=[1, 3])
    dataset = SeededDataset(ConcatDataset([RandomNumbers(5), RandomNumbers(9)]))
    built = DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=0))
    for batch in islice(SeededBatchSampler(built, 4, 0, sampler), 9):
        assert [key[-1] < 5 for key in batch] == [True, False, False, False]


def test_samplers_that_compose_the_batches_of_a_process_go_on_doing_so(tmp_path):
    mp.start_processes(check_composition, (tmp_path,), 2, start_method='fork')
