"""An unpickler for files of PyTorch, NumPy, mmengine and timm that executes no code from them.

A pickle is a program that calls any function with any arguments. Here, names of functions are not
looked up. Functions of this module replace the calls that these packages write, and accept only the
forms that the packages use. NumPy's constructors never get raw values of a file, because they would
take its bytes for pointers.
"""

import argparse
import math
import pickle
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor


class RefusedError(pickle.UnpicklingError):
    """A file uses names or calls that are not allowed; the message is a clause about 'it'."""


class Name(str):
    """Name of a function or type in a file; it is never imported or called."""


class Storage(NamedTuple):
    data: torch.UntypedStorage
    dtype: torch.dtype | None
    left: list[int]
    """Bytes that further tensors of the file may have, if they do not share memory."""


_STATISTICS = ('min', 'max', 'mean', 'current')
_DEEPEST = 100
"""Maximum depth of containers in containers."""
_LONGEST = 100
"""Maximum length of a name in messages."""


def require(fits: bool, what: Any) -> None:
    if not fits:
        # Lists that hold each other would become text of any length.
        name = what[:_LONGEST] if isinstance(what, str) else type(what).__name__
        raise RefusedError(f'it uses {name} in a form that is not allowed')


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _sizes(value: Any) -> bool:
    return type(value) in (tuple, torch.Size) and len(value) <= 64 and all(map(is_size, value))


def _is_key(value: Any) -> bool:
    """Whether a value is hashed fast, and not to a number that the file chooses."""
    if isinstance(value, int):
        return abs(value) < 2**60
    return value is None or isinstance(value, str | bytes | float | torch.dtype)


def check_extent(content: Any, most: int) -> None:
    """Refuse content that would be large or endless when it is printed, copied or compared.

    A short pickle can hold lists whose items are one list, whose items are one list, and so on.

    Args:
        content: What an unpickler has read.
        most: Maximum number of values and of characters, each counted as often as it appears.
    """
    extents: dict[int, tuple[int, int]] = {}

    def extent(value: Any) -> tuple[int, int]:
        """The size of a value, and the depth of the containers in it."""
        if isinstance(value, str | bytes):
            return 1 + len(value), 0
        if isinstance(value, argparse.Namespace):
            value = vars(value)
        if not isinstance(value, dict | list | tuple | set):
            return 1, 0
        if id(value) not in extents:
            extents[id(value)] = most, 0  # in case it holds itself
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            sizes, depths = zip((1, 0), *map(extent, inner), strict=True)
            extents[id(value)] = sum(sizes), 1 + max(depths)
        return extents[id(value)]

    size, depth = extent(content)
    if size > most or depth > _DEEPEST:
        raise RefusedError('its values are nested too deeply, or repeated too often')


# The unpickler in C does not allow to replace opcodes.
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined]


class SafeUnpickler(_PythonUnpickler):
    """Python's unpickler without imports, and with calls of allowed functions only."""

    def __init__(self, file: Any, storage: Callable[..., Any] | None = None) -> None:
        super().__init__(file, encoding='utf-8')
        self.storage = storage or (lambda *_: require(False, 'persistent id'))

    def find_class(self, module: str, name: str) -> Any:
        """Return the name itself, or a dtype of PyTorch, which cannot be called."""
        module = {'__builtin__': 'builtins', 'torch.tensor': 'torch._tensor'}.get(module, module)
        kind = vars(torch).get(name) if module == 'torch' else None
        if isinstance(kind, torch.dtype):
            return kind
        path = Name(f'{module}.{name}')
        if path not in _NAMES and not name.endswith('Storage'):
            raise RefusedError(f'it names {path[:_LONGEST]}, which could run code')
        return path

    def load_reduce(self) -> None:
        arguments, name = self.stack.pop(), self.stack[-1]
        self.stack[-1] = _call(name, arguments)

    def load_newobj(self) -> None:
        arguments, name = self.stack.pop(), self.stack[-1]
        require(type(name) is Name and name in _TYPES and arguments == (), name)
        self.stack[-1] = _TYPES[name]()

    def load_build(self) -> None:
        state, instance = self.stack.pop(), self.stack[-1]
        require(type(instance) in _BUILDS, type(instance).__name__)
        _BUILDS[type(instance)](instance, state)

    def load_binpersid(self) -> None:
        key = self.stack.pop()
        require(type(key) is tuple, 'persistent id')
        self.append(self.storage(*key))

    def load_append(self) -> None:
        item = self.stack.pop()
        require(type(self.stack[-1]) is list, 'append')
        self.stack[-1].append(item)

    def load_appends(self) -> None:
        items = self.pop_mark()
        require(type(self.stack[-1]) is list, 'append')
        self.stack[-1].extend(items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def _set_items(self, items: list) -> None:
        require(type(self.stack[-1]) in (dict, OrderedDict), 'setitem')
        require(all(map(_is_key, items[::2])), 'key of a dictionary')
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    # PyTorch's files have no other opcodes, such as those of protocols 0 and 4.
    dispatch: ClassVar[dict[int, Callable]] = {
        **{
            code[0]: _PythonUnpickler.dispatch[code[0]]
            for code in (
                pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.NONE,
                pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2,
                pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE, pickle.SHORT_BINSTRING,
                pickle.EMPTY_TUPLE, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_SET,
                pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
                pickle.BINGET, pickle.LONG_BINGET, pickle.BINPUT, pickle.LONG_BINPUT,
            )
        },
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.BINPERSID[0]: load_binpersid,
        pickle.APPEND[0]: load_append,
        pickle.APPENDS[0]: load_appends,
        pickle.SETITEM[0]: load_setitem,
        pickle.SETITEMS[0]: load_setitems,
    }  # fmt: skip


# --- Replacements of allowed calls --------------------------------------------------------------


def _call(name: Any, arguments: Any) -> Any:
    require(type(name) is Name and name in _CALLS and type(arguments) is tuple, name)
    try:
        return _CALLS[name](*arguments)
    except TypeError as error:  # too few or too many arguments
        raise RefusedError(f'it calls {name} in a form that is not allowed') from error


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: torch.dtype | None = None
) -> Tensor:
    require(type(storage) is Storage and is_size(offset), 'tensor')
    require(_sizes(shape) and _sizes(strides) and len(shape) == len(strides), 'tensor')
    dtype = dtype or storage.dtype
    require(isinstance(dtype, torch.dtype), 'tensor')
    size = storage.data.nbytes() // dtype.itemsize
    storage.left[0] -= math.prod(shape) * dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # PyTorch would enlarge the storage.
    if math.prod(shape) and (last >= size or storage.left[0] < 0):
        raise ValueError(f'a tensor of shape {tuple(shape)} in a storage of {size} numbers')
    empty = torch.empty(0, dtype=dtype, device=storage.data.device)
    return empty.set_(storage.data, offset, tuple(shape), tuple(strides))


def _tensor_v2(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, meta: Any = None
) -> Tensor:
    require(type(grad) is bool and not meta, 'tensor')
    return _tensor(storage, offset, shape, strides).requires_grad_(grad)


def _tensor_v3(
    storage: Any,
    offset: Any,
    shape: Any,
    strides: Any,
    grad: Any,
    hooks: Any,
    dtype: Any,
    meta: Any = None,
) -> Tensor:
    require(type(grad) is bool and not meta and isinstance(dtype, torch.dtype), 'tensor')
    return _tensor(storage, offset, shape, strides, dtype).requires_grad_(grad)


def _parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> torch.nn.Parameter:
    require(isinstance(data, Tensor) and type(grad) is bool, 'parameter')
    return torch.nn.Parameter(data, grad)


def _tensor_with_attributes(name: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """Read a tensor with attributes, which are dropped."""
    tensor = _call(name, arguments)
    require(isinstance(tensor, Tensor), name)
    return tensor


def _bytes(text: Any, encoding: Any) -> bytes:
    """Decode bytes from the text by which protocol 2 represents them."""
    require(type(text) is str and encoding == 'latin1', 'bytes')
    return text.encode('latin1')


def _statistic(owner: Any, name: Any) -> Callable:
    """Look up a statistic of mmengine's ``HistoryBuffer``, the only allowed attribute."""
    require(owner == _HISTORY and name in _STATISTICS, 'getattr')
    return getattr(HistoryBuffer, name)


def _dtype(code: Any, align: Any = False, copy: Any = True) -> np.dtype:
    """Read a numeric dtype of NumPy; other dtypes may hold pointers."""
    numbers = ('b1', *(f'{kind}{n}' for kind in 'iu' for n in (1, 2, 4, 8)), 'f2', 'f4', 'f8')
    require(code in numbers and align is False, 'numpy.dtype')
    return np.dtype(code)


def _is_numbers(dtype: Any, data: Any, count: int) -> bool:
    numbers = isinstance(dtype, np.dtype) and type(data) is bytes
    return numbers and len(data) == count * dtype.itemsize


def _array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Read the empty array at the beginning of each array in NumPy's pickles."""
    require(kind == 'numpy.ndarray' and shape == (0,) and code == b'b', 'numpy array')
    return np.empty(0, 'b')


def _scalar(dtype: Any, data: Any) -> np.generic:
    require(_is_numbers(dtype, data, 1), 'numpy scalar')
    return np.frombuffer(data, dtype)[0]


def _set_array(array: np.ndarray, state: Any) -> None:
    require(type(state) is tuple and len(state) == 5 and array.shape == (0,), 'numpy array')
    version, shape, dtype, fortran, data = state
    require(version == 1 and _sizes(shape) and type(fortran) is bool, 'numpy array')
    require(_is_numbers(dtype, data, math.prod(shape)), 'numpy array')
    array.__setstate__((1, shape, dtype, fortran, data))


def _set_dtype(dtype: np.dtype, state: Any) -> None:
    """Check the state of a dtype, which changes nothing if it is allowed."""
    plain = [(3, order, None, None, None, -1, -1, 0) for order in '<|']
    require(sys.byteorder == 'little' and state in plain, 'numpy.dtype')


def _set_history(history: HistoryBuffer, state: Any) -> None:
    arrays = ('_log_history', '_count_history')
    methods = {name: getattr(HistoryBuffer, name) for name in _STATISTICS}
    require(type(state) is dict, _HISTORY)
    for key, value in state.items():
        fits = {
            **dict.fromkeys(arrays, type(value) is np.ndarray and value.ndim == 1),
            **dict.fromkeys(
                ('statistics_methods', '_statistics_methods'),
                type(value) is dict and all(methods.get(n) is f for n, f in value.items()),
            ),
            'max_length': type(value) is int,
        }
        require(fits.get(key, False), f'{_HISTORY} with {key}')
    require(len({len(state[name]) for name in arrays if name in state}) < 2, _HISTORY)
    # Copies, because the file may change the dictionary after this check.
    history.__setstate__({k: dict(v) if type(v) is dict else v for k, v in state.items()})


def _set_namespace(namespace: argparse.Namespace, state: Any) -> None:
    require(type(state) is dict and all(type(key) is str for key in state), 'argparse.Namespace')
    namespace.__dict__.update(state)


def _set_metadata(weights: OrderedDict, state: Any) -> None:
    """Read the metadata of a state dict: versions of its layers."""
    require(type(state) is dict and state.keys() <= {'_metadata'}, 'collections.OrderedDict')
    layers = state.get('_metadata', {})
    require(type(layers) in (dict, OrderedDict), 'metadata')
    for layer in layers.values():
        fits = type(layer) is dict and all(type(n) in (int, type(None)) for n in layer.values())
        require(fits, 'metadata')
    # Copies, because the file may change the dictionaries after this check.
    copied = OrderedDict((name, dict(layer)) for name, layer in layers.items())
    weights.__dict__.update({key: copied for key in state})


def _items(
    kind: Callable[[Any], Any], of: Any, fits: Callable[[Any], bool] = lambda _: True
) -> Callable[..., Any]:
    """A constructor that takes no argument, or a collection of type ``of`` whose items fit."""

    def make(items: Any = None) -> Any:
        items = of() if items is None else items
        require(type(items) is of and all(map(fits, items)), kind.__name__)
        return kind(items)

    return make


_HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_TYPES: dict[str, Callable[[], Any]] = {
    _HISTORY: lambda: HistoryBuffer.__new__(HistoryBuffer),
    'argparse.Namespace': argparse.Namespace,
}
_CALLS: dict[str, Callable[..., Any]] = {
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor_v2,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._tensor._rebuild_from_type_v2': _tensor_with_attributes,
    'torch.Size': _items(torch.Size, tuple, is_size),
    'torch.device': lambda *place: torch.device(*place),
    'collections.OrderedDict': _items(OrderedDict, list, lambda pair: _is_key(pair[0])),
    'collections.Counter': _items(Counter, dict),
    'builtins.set': _items(set, list, _is_key),
    'builtins.complex': lambda real, imaginary: complex(real, imaginary),
    'builtins.bytes': lambda: b'',
    'builtins.getattr': _statistic,
    '_codecs.encode': _bytes,
    'numpy.dtype': _dtype,
    # NumPy 2 renamed numpy.core; files have either name.
    **{
        f'numpy.{core}.multiarray.{name}': function
        for core in ('core', '_core')
        for name, function in (('_reconstruct', _array), ('scalar', _scalar))
    },
}
_NAMES = {
    *_CALLS, *_TYPES, 'numpy.ndarray', 'torch.Tensor', 'torch.nn.parameter.Parameter',
}  # fmt: skip
_BUILDS: dict[type, Callable[[Any, Any], None]] = {
    np.ndarray: _set_array,
    HistoryBuffer: _set_history,
    argparse.Namespace: _set_namespace,
    OrderedDict: _set_metadata,
    **{type(np.dtype(code)): _set_dtype for code in ('b1', *'bBhHiIlLqQefd')},
}
