"""Frozen dataclasses to and from plain JSON values, small and checked: what is read has the types the fields declare.

For fields of str, bool, int, float, `X | None`, `tuple[X, ...]`, tuples of fixed length, Literals, and dataclasses of
these.

A thousand nodes say the same few things in the same few words. So a tuple of rows, which are dataclasses that have no
other dataclass in them, is written as an object of columns; a string in a column is its place in "strings", a list at
the end of the document. Times are written to the nanosecond (to the microsecond if they are seconds), other fractions
to six decimals: what has been read once is written and read again without a change.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from itertools import chain, islice
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

STRINGS = "strings"
_DECIMALS = 6
_DECIMALS_US = 3
_AS_THEY_ARE = {str, int, bool, NoneType}


def to_json(value: Any) -> dict[str, Any]:
    """The dataclass `value` as objects, lists, numbers and strings. A number that is not finite becomes null."""
    columns: list[list[Any]] = []
    document = _object(value, columns)
    tally = Counter(item for column in columns for item in column if isinstance(item, str))
    strings = [text for text, _ in tally.most_common()]  # so that those used most have short numbers
    places = {text: place for place, text in enumerate(strings)}
    for column in columns:
        column[:] = [places[item] if isinstance(item, str) else item for item in column]
    return {**document, STRINGS: strings}


def from_json(kind: type[T], data: Any, at: str = "") -> T:
    """The value of dataclass `kind` that `to_json` gave as `data`; fields that it does not have are ignored.

    ValueError says where ("points[0].measurements[1].latency") something is missing or of another type.
    """
    at = at or kind.__name__
    strings = data.get(STRINGS) if isinstance(data, Mapping) else None
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise ValueError(f"{at} has no list {STRINGS!r} of strings")
    found: T = _Reader(strings).value(kind, data, at)
    return found


def _object(value: Any, columns: list[list[Any]]) -> dict[str, Any]:
    """A dataclass; lists whose strings are yet to be replaced by their places are added to `columns`."""
    kind: Any = type(value)
    written: dict[str, Any] = {}
    for name, hint in _hints(kind).items():
        item, row = getattr(value, name), _row(hint)
        if row is None:
            written[name] = _plain(item, _decimals(name), None, columns)
        else:
            written[name] = {
                column: _plain(tuple(getattr(part, column) for part in item), _decimals(column), columns, columns)
                for column in _hints(row)
            }
    return written


def _plain(value: Any, decimals: int, pooled: list[list[Any]] | None, columns: list[list[Any]]) -> Any:
    """Any value; lists are added to `pooled`, if given."""
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = round(value, decimals)
        return int(rounded) if rounded.is_integer() else rounded
    if isinstance(value, tuple):
        plain = set(map(type, value)) <= _AS_THEY_ARE
        items = list(value) if plain else [_plain(item, decimals, pooled, columns) for item in value]
        if pooled is not None:
            pooled.append(items)
        return items
    return _object(value, columns) if is_dataclass(value) else value


class _Reader:
    """Reads one document, whose list of strings it knows."""

    def __init__(self, strings: list[str]) -> None:
        self._strings = strings

    def value(self, kind: Any, data: Any, at: str, *, pooled: bool = False) -> Any:
        """The value of type `kind` at the place `at`; `pooled` if strings are places in the list."""
        if is_dataclass(kind):
            hints = _members(kind, data, at)
            return kind(**{name: self.value(hint, data[name], f"{at}.{name}") for name, hint in hints.items()})  # type: ignore[operator]
        if (row := _row(kind)) is not None:
            return self._rows(row, data, at)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is tuple:
            return self._tuple(arguments, data, at, pooled=pooled)
        if origin in (Union, UnionType):
            (inner,) = (argument for argument in arguments if argument is not NoneType)
            return None if data is None else self.value(inner, data, at, pooled=pooled)
        if origin is Literal:
            data = self.value(str, data, at, pooled=pooled)
            if data not in arguments:
                raise _unexpected(at, " or ".join(map(repr, arguments)), data)
            return data
        if kind is str and pooled:
            if type(data) is not int or not 0 <= data < len(self._strings):
                raise _unexpected(at, f"a place in the list of {len(self._strings)} strings", data)
            return self._strings[data]
        if kind is float and (type(data) not in (int, float) or not _is_finite(data)):
            raise _unexpected(at, "a finite number", data)
        if kind is not float and type(data) is not kind:
            raise _unexpected(at, kind.__name__, data)
        return kind(data)

    def _rows(self, row: Any, data: Any, at: str) -> tuple[Any, ...]:
        """The rows that are written as an object of columns."""
        columns: list[list[Any]] = []
        for name, hint in _members(row, data, at).items():
            column = data[name]
            if not isinstance(column, list):
                raise _unexpected(f"{at}.{name}", "a list", column)
            if columns and len(column) != len(columns[0]):
                raise _unexpected(f"{at}.{name}", f"{len(columns[0])} items", len(column))
            columns.append(self._column(hint, column, f"{at}.{name}"))
        return tuple(row(*values) for values in zip(*columns, strict=True))

    def _column(self, kind: Any, data: list[Any], at: str) -> list[Any]:
        """Values of one type. Thousands: all are looked at together, and one by one only to say which is wrong."""
        types = set(map(type, data))
        if get_origin(kind) is Literal or kind is str:
            if types == {int} and min(data) >= 0 and max(data) < len(self._strings):
                found = [self._strings[place] for place in data]
                if kind is str or set(found) <= set(get_args(kind)):
                    return found
        elif kind is int and types == {int}:
            return data
        elif kind is float and types <= {float, int} and all(map(_is_finite, data)):
            return list(map(float, data))
        if types == {list} and get_args(kind)[1:] == (Ellipsis,):
            flat = iter(self._column(get_args(kind)[0], list(chain.from_iterable(data)), at))
            return [tuple(islice(flat, len(item))) for item in data]
        return [self.value(kind, item, f"{at}[{index}]", pooled=True) for index, item in enumerate(data)]

    def _tuple(self, arguments: tuple[Any, ...], data: Any, at: str, *, pooled: bool) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise _unexpected(at, "a list", data)
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(data)
        if len(arguments) != len(data):
            raise _unexpected(at, f"{len(arguments)} items", len(data))
        pairs = enumerate(zip(arguments, data, strict=True))
        return tuple(self.value(kind, item, f"{at}[{index}]", pooled=pooled) for index, (kind, item) in pairs)


def _members(kind: Any, data: Any, at: str) -> dict[str, Any]:
    """The fields of `kind` with their types, all of which are in `data`."""
    if not isinstance(data, Mapping):
        raise _unexpected(at, "an object", data)
    hints = _hints(kind)
    missing = [name for name in hints if name not in data]
    if missing:
        raise ValueError(f"{at} has no {missing[0]!r}")
    return hints


def _is_finite(number: int | float) -> bool:
    return abs(number) <= sys.float_info.max  # also of an int that is too large for a float


def _decimals(name: str) -> int:
    return _DECIMALS_US if name.endswith("_us") else _DECIMALS


@cache
def _row(hint: Any) -> Any:
    """The dataclass X if the type is `tuple[X, ...]` and X has no other dataclass in it, else None."""
    if get_origin(hint) is not tuple or get_args(hint)[1:] != (Ellipsis,):
        return None
    kind: Any = get_args(hint)[0]
    if not is_dataclass(kind):
        return None
    members: Mapping[str, Any] = _hints(kind)  # type: ignore[arg-type]
    return None if any(map(_has_dataclass, members.values())) else kind


def _has_dataclass(hint: Any) -> bool:
    return is_dataclass(hint) or any(_has_dataclass(argument) for argument in get_args(hint))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _unexpected(at: str, expected: str, found: Any) -> ValueError:
    return ValueError(f"{at} should be {expected}, found {str(found)[:40]!r}")
