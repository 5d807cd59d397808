"""Frozen dataclasses that are made about as fast as others."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

Class = TypeVar("Class")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[Class]) -> type[Class]:
    """Make a class a `dataclass(frozen=True, slots=True)` with another `__init__`.

    The dataclass's own gets past the class's refusal to be changed with a call for each field. This one
    opens the new object, which is of another class without that refusal until every field is set: 0.4 us
    instead of 1.3 for ten fields, 0.6 instead of 2.5 for twenty, and an order makes a hundred such objects.
    """
    made = dataclass(frozen=True, slots=True)(cls)
    # Objects can change between classes of the same bases and the same slots.
    opened = type(f"{cls.__name__}Opened", made.__bases__, {"__slots__": made.__slots__})  # type: ignore[attr-defined]
    names: dict[str, Any] = {"_opened": opened, "_closed": made, "_change": object.__setattr__}
    parameters, lines = [], []
    for each in fields(made):  # type: ignore[arg-type]
        parameter, value = each.name, each.name
        if each.default is not MISSING:
            names[f"_{each.name}"] = each.default
            parameter = f"{each.name}=_{each.name}"
        elif each.default_factory is not MISSING:
            names[f"_{each.name}"] = each.default_factory
            value = f"_{each.name}()"
            if each.init:
                raise TypeError(f"{cls.__name__}.{each.name}: a factory is for fields that are not given")
        if each.init:
            parameters.append(parameter)
        lines.append(f"    self.{each.name} = {value}")
    source = [
        f"def __init__(self, {', '.join(parameters)}):",
        "    _change(self, '__class__', _opened)",
        *lines,
        "    self.__class__ = _closed",
    ]
    exec("\n".join(source), names)  # as dataclasses does it
    made.__init__ = names["__init__"]  # type: ignore[method-assign]
    return made
