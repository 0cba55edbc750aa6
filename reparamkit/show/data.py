"""Frozen dataclasses as plain JSON data, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import InvalidInputError


def encoded(value: Any) -> Any:
    """Dataclasses become objects, tuples arrays; JSON has no infinity and no NaN, so these are strings."""
    if is_dataclass(value):
        return {field.name: encoded(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {name: encoded(each) for name, each in value.items()}
    if isinstance(value, (tuple, list)):
        return [encoded(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def decoded(kind: Any, data: Any, where: str) -> Any:
    """The inverse of `encoded`. kind: a dataclass, ``tuple[X, ...]``, a plain type, or a union of these.

    Fields that the data lacks have their default, fields that the dataclass lacks are left out.
    Raises `InvalidInputError` where the data is something else; where: a name for it.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        return _object(kind, data, where)
    if get_origin(kind) is tuple:
        _check(isinstance(data, list), where, "an array", data)
        item = get_args(kind)[0]
        return tuple(decoded(item, each, f"{where}[{k}]") for k, each in enumerate(data))
    if isinstance(kind, UnionType):
        plain = [each for each in get_args(kind) if each is not NoneType]
        return None if data is None and len(plain) < len(get_args(kind)) else decoded(plain[0], data, where)
    return _plain(kind, data, where)


def parsed(text: str) -> dict[str, Any]:
    """The JSON object in a text. Raises `InvalidInputError` if it is none."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InvalidInputError(f"this is no JSON ({error}): pass what Report.to_json wrote") from error
    _check(isinstance(found, dict), "the text", "a JSON object", found)
    return dict(found)


def _object(kind: type, data: Any, where: str) -> Any:
    _check(isinstance(data, Mapping), where, "an object", data)
    hints = get_type_hints(kind)
    known = {}
    for field in fields(kind):
        if field.name in data:
            known[field.name] = decoded(hints[field.name], data[field.name], f"{where}.{field.name}")
        elif field.default is MISSING:
            raise InvalidInputError(f"{where} has no '{field.name}': pass what Report.to_json wrote")
    return kind(**known)


def _plain(kind: Any, data: Any, where: str) -> Any:
    if kind is float and isinstance(data, (int, str)) and not isinstance(data, bool):
        _check(not isinstance(data, str) or data in ("inf", "-inf", "nan"), where, "a number", data)
        return float(data)
    _check(isinstance(data, kind) and (kind is bool or not isinstance(data, bool)), where, f"a {kind.__name__}", data)
    return data


def _check(good: bool, where: str, wanted: str, found: Any) -> None:
    if not good:
        raise InvalidInputError(f"{where} should be {wanted}, found {found!r:.60}: pass what Report.to_json wrote")
