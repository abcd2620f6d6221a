"""What a pickle says, where all it says is dictionaries of arrays of numbers. Nothing of it is ever called.

A pickle is a program: loading one can run any code of its writer. This reader knows the few instructions that NumPy
writes for a dictionary of arrays. The names that it knows are words to it, not functions: it builds each array itself
from type, shape and bytes. So whatever a file holds, it makes numbers, texts, tuples, lists, dictionaries and arrays,
of no more memory than the file has bytes and :data:`MOST_STEPS` small objects, or an error.
"""

from __future__ import annotations

import math
import pickletools
import re
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeVar

import numpy as np

from interfuse.data.reading import UNREADABLE
from interfuse.errors import DataError

T = TypeVar("T")

MOST_STEPS = 10_000
"""NumPy writes some 60 instructions an array. An instruction of one byte can make an object of 64."""

_NUMBERS = re.compile(r"[iu][1248]|f[248]")
_RECONSTRUCT, _NDARRAY, _DTYPE = "_reconstruct", "ndarray", "dtype"
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 1
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # NumPy 2
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _DTYPE,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAKES_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_VALUES = frozenset(
    {
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
    }
)


@dataclass(frozen=True)
class _Word:
    """A name that a pickle would call."""

    name: str


@dataclass
class _Type:
    """A type of numbers, or ``O8`` of objects, until its byte order is known."""

    code: str
    order: str = "="


@dataclass
class _Array:
    """An array before and after its contents are known: numbers, or the objects of an array of objects."""

    numbers: np.ndarray | None = None
    objects: list[Any] = field(default_factory=list)


def arrays_of(stream: bytes | BytesIO, label: str) -> dict[str, np.ndarray]:
    """The arrays of a pickled dictionary, as NumPy saves one: in an array of one object.

    Args:
        label: What errors call it.

    Raises:
        DataError: it holds anything but names with arrays of numbers, or is cut off.
    """
    try:
        found = _interpreted(stream)
    except UNREADABLE as error:
        raise DataError(f"{label} is no dictionary of arrays of numbers, or is cut off ({error})") from error
    whole = found.objects[0] if isinstance(found, _Array) and len(found.objects) == 1 else found
    if not isinstance(whole, dict):
        raise DataError(f"{label} holds no dictionary of arrays")
    arrays = {name: value.numbers for name, value in whole.items() if isinstance(value, _Array)}
    for name in whole:
        if arrays.get(name) is None:
            raise DataError(
                f"{label}: {str(name)[:40]!r} is no array of numbers; save one, with one shape for all samples"
            )
    return {name: array for name, array in arrays.items() if array is not None}


def _interpreted(stream: bytes | BytesIO) -> object:
    """What the program leaves on its stack.

    Raises:
        ValueError: it has an instruction or a name that is not known here; other errors: it is no program.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    argument: Any
    for step, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
        name = instruction.name
        if step >= MOST_STEPS:
            raise ValueError("it has more instructions than arrays need")
        if name in ("PROTO", "FRAME"):
            continue
        elif name == "STOP":
            return stack.pop()
        elif name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _MAKES_EMPTY:
            stack.append(_MAKES_EMPTY[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(_popped(stack, len(stack) - _TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(_popped(stack, marks.pop())))
        elif name in ("APPEND", "APPENDS"):
            items = _popped(stack, marks.pop() if name == "APPENDS" else len(stack) - 1)
            _of(list, stack[-1]).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = _popped(stack, marks.pop() if name == "SETITEMS" else len(stack) - 2)
            keys = [_of(str, key) for key in items[::2]]
            _of(dict, stack[-1]).update(zip(keys, items[1::2], strict=True))
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_word(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(_word(*_popped(stack, len(stack) - 2)))
        elif name == "REDUCE":
            stack.append(_begun(*_popped(stack, len(stack) - 2)))
        elif name == "BUILD":
            _complete(stack[-2], _of(tuple, stack.pop()))
        else:
            raise ValueError(f"it has the instruction {name}, which no array needs")
    raise ValueError("it does not end")


def _popped(stack: list[Any], begin: int) -> list[Any]:
    if not 0 <= begin <= len(stack):
        raise IndexError("it takes what is not there")
    taken = stack[begin:]
    del stack[begin:]
    return taken


def _of(kind: type[T], value: object) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"it has {type(value).__name__} where {kind.__name__} is needed")
    return value


def _word(module: object, name: object) -> _Word:
    known = _KNOWN.get((_of(str, module), _of(str, name)))
    if known is None:
        raise ValueError(f"it would call {str(module)[:40]}.{str(name)[:40]}, which is not among what arrays need")
    return _Word(known)


def _begun(called: object, arguments: object) -> _Type | _Array:
    """What NumPy's two functions are asked for."""
    word, given = _of(_Word, called).name, _of(tuple, arguments)
    if word == _DTYPE and given[1:] == (False, True):
        code = _of(str, given[0])
        if code == "O8" or _NUMBERS.fullmatch(code):
            return _Type(code)
        raise ValueError(f"it has an array of {code[:20]!r}, which is no type of numbers")
    if word == _RECONSTRUCT and given == (_Word(_NDARRAY), (0,), b"b"):
        return _Array()
    raise ValueError("it calls a function of NumPy as no array does")


def _complete(what: object, state: tuple[Any, ...]) -> None:
    """Put the byte order into a type, or shape and contents into an array."""
    if isinstance(what, _Type):
        what.order = _of(str, state[1])
        if what.order not in tuple("<>|="):
            raise ValueError("it has an unknown byte order")
        return
    _, shape, kind, fortran, contents = state
    sizes = [_of(int, size) for size in _of(tuple, shape)]
    array, code = _of(_Array, what), _of(_Type, kind).code
    if code == "O8":
        if sizes:
            raise ValueError("it has an array of objects, such as texts or samples of several lengths")
        array.objects = _of(list, contents)
        return
    numbers = np.dtype(_of(_Type, kind).order + code)
    if min(sizes, default=0) < 0 or math.prod(sizes) * numbers.itemsize != len(_of(bytes, contents)):
        raise ValueError("an array has more or fewer bytes than its shape needs")
    array.numbers = np.frombuffer(contents, numbers).reshape(sizes, order="F" if _of(bool, fortran) else "C")
