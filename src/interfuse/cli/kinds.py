"""What values a setting takes, in words."""

from __future__ import annotations

from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt

from interfuse.training import OwnSchedule

NAMES = {bool: "true | false", int: "integer", float: "number", str: "text", OwnSchedule: "file.py:function"}


def in_words(kind: Any) -> str:
    """An annotation in words, without None, which cannot be given but by leaving a setting out.

    >>> in_words(Annotated[float, Gt(0), Le(1)] | None)
    'number > 0, <= 1'
    >>> in_words(Literal["sgd", "adam"])
    'sgd | adam'
    """
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return ", ".join([f"{in_words(inside[0])} {_bound(inside[1])}", *map(_bound, inside[2:])])
    if origin is Literal:
        return " | ".join(map(str, inside))
    if origin in (Union, UnionType):
        return " | ".join(in_words(one) for one in inside if one is not NoneType)
    if origin is not None:
        return str(kind)
    if issubclass(kind, Enum):
        return " | ".join(str(member.value) for member in kind)
    return NAMES.get(kind) or kind.__name__


def as_given(value: object) -> str:
    """A value as one writes it on the command line.

    >>> as_given(None), as_given(True), as_given(0.1)
    ('none', 'true', '0.1')
    """
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _bound(bound: object) -> str:
    match bound:
        case Gt(value):
            return f"> {value}"
        case Ge(value):
            return f">= {value}"
        case Lt(value):
            return f"< {value}"
        case Le(value):
            return f"<= {value}"
    return str(bound)
