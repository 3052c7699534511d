"""Schedules of the learning rate: whether they fit the training, and what resuming changes."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.optim.scheduler import (
    ConstantParamScheduler,
    CosineRestartParamScheduler,
    LinearParamScheduler,
)
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..errors import UserError
from ..training_state import SHAPED

POSITION = ('last_step', '_global_step', '_last_value', 'base_values', 'verbose')
"""Entries of the state of a scheduler that are not settings."""
INITIAL = 'initial_'
"""Beginning of the names of settings of an optimizer before any schedule."""


def check_schedule(runner: Runner) -> Iterator[str]:
    """Compare the schedulers of a run with its length.

    Yields:
        A warning for each scheduler that is longer than the training, or ends before it, and for a
        checkpoint that leaves nothing to train.

    Raises:
        UserError: A scheduler would let the learning rate rise again, fail, or never act.
    """
    by_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
    total, done = ('max_epochs', runner.epoch) if by_epochs else ('max_iters', runner.iter)
    if done >= getattr(runner, total):
        yield f'nothing is left to train after {done} {total[4:]}: raise train_cfg.{total}'
    schedulers = runner.param_schedulers if isinstance(runner.param_schedulers, list) else []
    given = runner.cfg.get('param_scheduler')
    for number, scheduler in enumerate(schedulers):
        settings = given[number] if isinstance(given, list) else given or {}
        entry = f'param_scheduler.{number}'
        name = f'{entry} ({settings.get("type") or type(scheduler).__name__})'
        if scheduler.by_epoch and not by_epochs:
            raise UserError(
                f'{name} counts epochs, but the training counts iterations, so it would never act: '
                f'set {entry}.by_epoch=False'
            )
        converted = settings.get('convert_to_iter_based')
        unit = 'epochs' if scheduler.by_epoch or converted else 'iterations'
        scale = len(runner.train_dataloader) if converted else 1
        length = (runner.max_epochs if scheduler.by_epoch else runner.max_iters) / scale
        begin, end = scheduler.begin / scale, scheduler.end / scale
        option, steps = _period(scheduler)
        stop = end if steps is None else begin + steps / scale
        last = min(stop, end) if option == 'periods' else end
        whole = f'and the training has {_count(length, unit)}'
        late = [m / scale + begin for m in getattr(scheduler, 'milestones', ())]
        late = [milestone for milestone in sorted(late) if milestone >= length]
        if begin >= length:
            yield f'{name} has no effect: it begins after {_count(begin, unit)}, {whole}'
        elif option in ('T_max', 'total_steps') and stop < min(end, length) - 1 / scale:
            then = 'the rate rises again (CosineRestartLR is for cycles)'
            then = then if option == 'T_max' else 'the training fails'
            raise UserError(
                f'{name} ends after {_count(stop, unit)}, then {then}, {whole}: set '
                f'{entry}.{option} to {length - begin:g}'
            )
        elif late:
            milestones = ', '.join(f'{milestone:g}' for milestone in late)
            yield f'{name}: milestones at {milestones} {unit} have no effect, {whole}'
        elif stop > length:
            yield f'{name} changes the rate until {_count(stop, unit)}, {whole}: it is cut off'
        elif (
            last < length
            and not _rises(scheduler)
            and _is_last(scheduler, schedulers, len(runner.train_dataloader))
        ):
            yield f'{name} ends after {_count(last, unit)}, then the rate is constant, {whole}'


def _count(number: float, unit: str) -> str:
    return f'{number:g} {unit.removesuffix("s") if number == 1 else unit}'


def _period(scheduler: Any) -> tuple[str, int | None]:
    """The option for the length of a schedule, and its value; None without such an option."""
    if isinstance(scheduler, CosineRestartParamScheduler):
        return 'periods', scheduler.cumulative_periods[-1]
    for option in ('T_max', 'total_steps'):
        if hasattr(scheduler, option):
            return option, getattr(scheduler, option)
    return 'end', None


def _rises(scheduler: Any) -> bool:
    if isinstance(scheduler, LinearParamScheduler):
        return scheduler.start_factor < scheduler.end_factor
    return isinstance(scheduler, ConstantParamScheduler) or 'Warmup' in type(scheduler).__name__


def _is_last(scheduler: Any, schedulers: list, epoch_length: int) -> bool:
    ends = {
        other: other.end * (epoch_length if other.by_epoch else 1)
        for other in schedulers
        if other.param_name == scheduler.param_name
    }
    return ends[scheduler] == max(ends.values())


# --- Resuming ---------------------------------------------------------------------------------


def apply_schedule(runner: Runner, checkpoint: dict) -> Iterator[str]:
    """Prepare a checkpoint to be resumed with the schedule of the config.

    The optimizer keeps the settings of the checkpoint. If the schedule of the config is another
    one, its state becomes that of a run which has had it from the start.

    Yields:
        A line for each setting of the config that has no effect, and each changed schedule.

    Raises:
        UserError: The checkpoint is of another optimizer.
    """
    optimizer = checkpoint.get('optimizer', {})
    saved: list[dict] = list(optimizer.get('param_groups', []))
    if saved and optimizer.get('base_param_settings'):  # the rate that the log shows as base_lr
        saved.append(optimizer['base_param_settings'])
    own = runner.optim_wrapper.param_groups if saved else []
    pairs = list(zip(own, saved, strict=False))
    state = optimizer.get('state', {})
    if (
        len(saved) != len(own)
        or any('betas' in new and 'betas' not in old for new, old in pairs)
        or any(_differ(new, old, state) for new, old in pairs if isinstance(old['params'], list))
    ):
        raise UserError(
            f'the checkpoint is of another optimizer, with {len(saved)} groups of parameters '
            f'instead of {len(own)}: resume with the optim_wrapper of its training'
        )
    scheduled = {k.removeprefix(INITIAL) for group in own for k in group if k.startswith(INITIAL)}
    ignored: dict[str, str] = {}
    for new, old in pairs:
        for key in new.keys() & old.keys() - scheduled - {'params', 'param_names'}:
            if new[key] != old[key]:
                name, values = key.removeprefix(INITIAL), [_short(old[key]), _short(new[key])]
                line = "{} {} of the checkpoint is used, the config's {} is not"
                ignored.setdefault(name, line.format(name, *values))
    yield from ignored.values()
    states, schedulers = checkpoint.get('param_schedulers'), runner.param_schedulers
    if not isinstance(states, list) or not isinstance(schedulers, list):
        return
    if [_constants(s.state_dict()) for s in schedulers] == [_constants(s) for s in states]:
        return
    if any(hasattr(scheduler, 'need_val_args') for scheduler in schedulers):
        if [s.state_dict().keys() for s in schedulers] != [s.keys() for s in states]:
            raise UserError(
                'the checkpoint is of other schedules: resume with the param_scheduler of its '
                'training'
            )
        yield 'the schedule of the checkpoint is used, that of the config is not'
        return
    _replay(runner, checkpoint, saved)
    yield "the schedule of the config is used, which differs from the checkpoint's"


def _differ(new: dict, old: dict, state: dict) -> bool:
    """Whether groups of parameters differ in number, shapes, or types of their settings."""
    numbers = (key for key in new.keys() & old.keys() if isinstance(new[key], float))
    if any(not isinstance(old[key], int | float | torch.Tensor) for key in numbers):
        return True
    if len(new['params']) != len(old['params']):
        return True
    return any(
        SHAPED.fullmatch(str(key)) and value.shape != parameter.shape
        for parameter, number in zip(new['params'], old['params'], strict=True)
        for key, value in state.get(number, {}).items()
        if isinstance(value, torch.Tensor)
    )


def _short(value: Any) -> str:
    return f'{value:g}' if isinstance(value, float) else str(value)


def _constants(state: dict) -> dict:
    return {k: v for k, v in state.items() if k not in POSITION and not callable(v)}


def _replay(runner: Runner, checkpoint: dict, saved: list[dict]) -> None:
    """Step the schedulers of the config to the position of a checkpoint, with a small optimizer."""
    rates = [{k: v for k, v in g.items() if type(v) in (int, float, tuple)} for g in saved]
    for group in rates:
        group |= {k.removeprefix(INITIAL): v for k, v in group.items() if k.startswith(INITIAL)}
    kinds = [group for i, group in enumerate(rates) if group not in rates[:i]]
    groups = [{**group, 'params': [torch.nn.Parameter(torch.zeros(1))]} for group in kinds]
    small = torch.optim.SGD(groups, lr=0.0)
    schedulers = runner._build_param_scheduler(runner.cfg.param_scheduler, small)
    small.step()  # schedulers warn without it
    epoch, step = checkpoint['meta']['epoch'], checkpoint['meta']['iter']
    length = len(runner.train_dataloader)
    by_epochs = isinstance(runner.train_loop, EpochBasedTrainLoop)
    if by_epochs and step // length != epoch:  # epochs have another number of steps now
        step = epoch * length
    for i in range(1, min(step, runner.max_iters) + 1):
        for scheduler in schedulers:
            if not scheduler.by_epoch:
                scheduler.step()
        for scheduler in schedulers if by_epochs and i % length == 0 else ():
            if scheduler.by_epoch:
                scheduler.step()
    place = [kinds.index(group) for group in rates]
    for group, i in zip(saved, place, strict=True):
        new = small.param_groups[i].items()
        group |= {k: v for k, v in new if k in kinds[i] or k.startswith((INITIAL, 'max_', 'min_'))}
    states = [scheduler.state_dict() for scheduler in schedulers]
    for state in states:
        state |= {key: [state[key][i] for i in place] for key in ('base_values', '_last_value')}
    checkpoint['param_schedulers'] = states
