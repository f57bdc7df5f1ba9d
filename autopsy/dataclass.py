"""The standard library's dataclasses, whose methods are compiled when they are first needed.

The library writes the methods of each class as text and compiles them where the class is defined: of all that a start
takes, a fourth, for hundreds of classes of which one run makes instances of a few dozen. Fields, slots, `replace`,
`match` and `isinstance` are the library's own here; only the methods are ours. To mypy it is the library's altogether.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import MISSING, FrozenInstanceError
from reprlib import recursive_repr
from types import MemberDescriptorType
from typing import TYPE_CHECKING

Method = Callable[..., object]


def _dataclass(*, frozen: bool = False, slots: bool = False, kw_only: bool = False) -> Callable[[type], type]:
    """Make a dataclass of a class: compared by its fields, with a hash where it is frozen."""

    def make(plain: type) -> type:
        own = set(vars(plain))
        made: type = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(plain)
        methods: dict[str, Method | None] = {
            "__init__": _first_init(made, frozen=frozen),
            "__repr__": _repr,
            "__eq__": _first_eq(made),
        }
        if "__eq__" not in own:
            methods["__hash__"] = _first_hash(made) if frozen else None
        if frozen:
            methods |= {"__setattr__": _no_setattr, "__delattr__": _no_delattr}
        if frozen and slots:  # what is copied or pickled is put together by setattr otherwise
            methods |= {"__getstate__": _getstate, "__setstate__": _setstate}
        for name, method in methods.items():
            if name not in own:
                setattr(made, name, method)
        return made

    return make


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - taken from here
else:
    dataclass = _dataclass


def _first_init(cls: type, *, frozen: bool) -> Method:
    """Return an __init__ that puts the compiled one in its place when it is first called."""

    def first_init(self: object, *args: object, **kwargs: object) -> None:
        if vars(cls)["__init__"] is first_init:
            setattr(cls, "__init__", _init(cls, frozen=frozen))  # noqa: B010 - mypy knows that one does not do this
        vars(cls)["__init__"](self, *args, **kwargs)

    return first_init


def _init(cls: type, *, frozen: bool) -> object:
    """Compile the __init__ that the library would have; it takes half of the time where a frozen class has slots.

    To put a value into a slot by its descriptor asks nobody for its name, as object.__setattr__ does.
    """
    names: dict[str, object] = {"_MISSING": MISSING, "_set": object.__setattr__}
    positional: list[str] = []
    keywords: list[str] = []
    body: list[str] = []
    for field in dataclasses.fields(cls):
        default, value = "", field.name
        if field.default_factory is not MISSING:
            names[f"_make_{field.name}"] = field.default_factory
            made = f"_make_{field.name}()"
            default, value = "=_MISSING", f"{made} if {value} is _MISSING else {value}" if field.init else made
        elif field.default is not MISSING:
            names[f"_default_{field.name}"] = field.default
            default, value = f"=_default_{field.name}", value if field.init else f"_default_{field.name}"
        elif not field.init:
            continue
        if field.init:
            (keywords if field.kw_only else positional).append(field.name + default)
        if frozen and isinstance(slot := getattr(cls, field.name, None), MemberDescriptorType):
            names[f"_set_{field.name}"] = slot.__set__
            body.append(f"_set_{field.name}(self, {value})")
        else:
            body.append(f"_set(self, {field.name!r}, {value})" if frozen else f"self.{field.name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    head = ", ".join(["self", *positional, *(["*", *keywords] if keywords else [])])
    exec(f"def __init__({head}):\n " + "\n ".join(body or ["pass"]), names)  # noqa: S102 - names of our own code
    return names["__init__"]


def _first_eq(cls: type) -> Method:
    """Return an __eq__ that puts the compiled one in its place when it is first called."""

    def first_eq(self: object, other: object) -> bool:
        if vars(cls)["__eq__"] is first_eq:
            mine, its = _values(cls, "self"), _values(cls, "other")
            body = f"return {mine} == {its} if other.__class__ is self.__class__ else NotImplemented"
            setattr(cls, "__eq__", _compiled("__eq__", "self, other", body))  # noqa: B010 - as above
        return bool(found) if (found := vars(cls)["__eq__"](self, other)) is not NotImplemented else found

    return first_eq


def _first_hash(cls: type) -> Method:
    """Return a __hash__ that puts the compiled one in its place when it is first called."""

    def first_hash(self: object) -> int:
        if vars(cls)["__hash__"] is first_hash:
            body = f"return hash({_values(cls, 'self')})"
            setattr(cls, "__hash__", _compiled("__hash__", "self", body))  # noqa: B010 - as above
        return int(vars(cls)["__hash__"](self))

    return first_hash


def _values(cls: type, of: str) -> str:
    """Return how a tuple of the fields that are compared is written."""
    names = [field.name for field in dataclasses.fields(cls) if field.compare]
    return f"({''.join(f'{of}.{name}, ' for name in names)})"


def _compiled(name: str, head: str, body: str) -> object:
    names: dict[str, object] = {}
    exec(f"def {name}({head}):\n {body}", names)  # noqa: S102 - names of our own code
    return names[name]


@recursive_repr()
def _repr(self: object) -> str:
    fields = dataclasses.fields(self)  # type: ignore[arg-type]  # a method of a dataclass
    told = (f"{field.name}={getattr(self, field.name)!r}" for field in fields if field.repr)
    return f"{self.__class__.__qualname__}({', '.join(told)})"


def _no_setattr(_self: object, name: str, _value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_delattr(_self: object, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: object) -> list[object]:
    return [getattr(self, field.name) for field in dataclasses.fields(self)]  # type: ignore[arg-type]  # as in _repr


def _setstate(self: object, state: Sequence[object]) -> None:
    for field, value in zip(dataclasses.fields(self), state, strict=True):  # type: ignore[arg-type]  # as in _repr
        object.__setattr__(self, field.name, value)
