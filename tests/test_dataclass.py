from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field, replace
from typing import Any

import msgspec
import pytest

from autopsy.dataclass import dataclass

Maker = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    label: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    names: tuple[str, ...] = ()
    size: int


@dataclass(slots=True)
class Counted:
    items: list[int] = field(default_factory=list)
    total: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.total = sum(self.items)


@dataclass(frozen=True, slots=True)
class Placed(Point):
    z: int = 3


def shapes(make: Maker) -> tuple[type, ...]:
    class Plain:
        a: int
        b: str = "b"
        c: list[int] = field(default_factory=list)
        d: int = field(default=4, init=False)

    class Keyed:
        a: int = 1
        b: int

    return make()(Plain), make(kw_only=True)(Keyed)


def test_methods_are_as_the_librarys() -> None:
    for ours, theirs in zip(shapes(dataclass), shapes(dataclasses.dataclass), strict=True):
        assert [each.name for each in dataclasses.fields(ours)] == [each.name for each in dataclasses.fields(theirs)]
        mine, its = ours(a=1, b=2), theirs(a=1, b=2)
        assert repr(mine) == repr(its)
        assert mine == ours(a=1, b=2) != ours(a=2, b=2)
        assert (
            inspect.signature(ours.__init__).parameters.keys() == inspect.signature(theirs.__init__).parameters.keys()
        )
        assert getattr(ours, "__match_args__") == getattr(theirs, "__match_args__")  # noqa: B009 - made at run time
        for wrong in ({}, {"a": 1, "b": 2, "e": 3}):
            with pytest.raises(TypeError) as told:
                theirs(**wrong)
            with pytest.raises(TypeError) as of_ours:
                ours(**wrong)
            assert str(of_ours.value).rpartition(".")[2] == str(told.value).rpartition(".")[2]


def test_what_is_frozen_has_a_hash_and_stays_as_it_is() -> None:
    point = Point(1)
    assert point == Point(1, 2, "other")
    assert hash(point) == hash(Point(1, label="other"))
    assert len({point, Point(1), Point(3)}) == 2
    for change in (lambda: setattr(point, "x", 3), lambda: delattr(point, "x")):
        with pytest.raises(FrozenInstanceError, match="'x'"):
            change()
    with pytest.raises(TypeError, match="unhashable"):
        hash(Counted([1]))


def test_defaults_are_each_instances_own() -> None:
    one, other = Counted(), Counted([1, 2])
    one.items.append(5)
    assert (Counted().items, other.total) == ([], 3)
    assert repr(other) == "Counted(items=[1, 2], total=3)"
    with pytest.raises(TypeError):
        Named((), 3)  # type: ignore[misc]  # what is tried
    assert Named(size=3) == Named(names=(), size=3)


def test_a_dataclass_of_a_dataclass_has_the_fields_of_both() -> None:
    assert repr(Placed(1)) == "Placed(x=1, y=2, label='', z=3)"
    assert Placed(1) != Point(1)
    assert Placed(1, z=4) != Placed(1)


def test_copies_and_records_are_made_of_it() -> None:
    point = replace(Point(1), y=7)
    assert point == copy.copy(point) == copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == Point(1, 7)  # noqa: S301 - our own
    assert msgspec.json.decode(msgspec.json.encode(point), type=Point) == point
    match point:
        case Point(x, y):
            assert (x, y) == (1, 7)


def test_an_instance_within_itself_is_shown_once() -> None:
    one: Any = Counted()
    one.items.append(one)
    assert repr(one) == "Counted(items=[...], total=0)"
