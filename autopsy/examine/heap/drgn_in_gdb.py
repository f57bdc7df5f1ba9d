"""Stand in for drgn inside gdb's own Python, as far as the heap walk goes: slower, and without the second snapshot.

gdb runs `stand_in()` ahead of the walk; the walk's modules then find this under drgn's name. It runs only inside gdb.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from types import ModuleType
from typing import Any

gdb: Any = None  # gdb's own module, which exists only inside gdb


class FaultError(Exception):
    """Memory that is not there."""


class MissingDebugInfoError(Exception):
    """Never raised here: gdb has loaded what there is before it runs us."""


class TypeKind(Enum):
    """The kinds of types that the walk tells apart."""

    POINTER = "pointer"
    TYPEDEF = "typedef"
    ENUM = "enum"
    OTHER = "other"


class SymbolKind(Enum):
    """The kinds of symbols that the walk tells apart."""

    TLS = "tls"
    OBJECT = "object"
    FUNC = "func"


class Type:
    """A gdb.Type that answers as drgn's types do."""

    def __init__(self, inner: Any) -> None:  # noqa: ANN401 - gdb's types are known only inside gdb
        self.inner = inner

    @property
    def kind(self) -> TypeKind:
        """Return which kind of type it is."""
        kinds = {
            gdb.TYPE_CODE_PTR: TypeKind.POINTER,
            gdb.TYPE_CODE_TYPEDEF: TypeKind.TYPEDEF,
            gdb.TYPE_CODE_ENUM: TypeKind.ENUM,
        }
        return kinds.get(self.inner.code, TypeKind.OTHER)

    @property
    def type(self) -> Type:
        """Return what a typedef names."""
        return Type(self.inner.strip_typedefs())

    @property
    def enumerators(self) -> list[Enumerator]:
        """Return an enumeration's names."""
        return [Enumerator(field.name, field.enumval) for field in self.inner.fields()]

    def type_name(self) -> str:
        """Return the type as C writes it."""
        return str(self.inner)


class Enumerator:
    """One name of an enumeration."""

    def __init__(self, name: str, value: int) -> None:
        self.name = name
        self.value = value


class GdbSymbol:
    """A name and its address."""

    def __init__(self, name: str, address: int) -> None:
        self.name = name
        self.address = address
        self.kind = SymbolKind.OBJECT


class Object:
    """A gdb.Value that answers as drgn's objects do: members of pointers are those of what they point to."""

    def __init__(self, program: Program, kind: Type, *, value: int | None = None, address: int | None = None) -> None:
        if address is not None:
            inner = gdb.Value(address).cast(kind.inner.pointer()).dereference()
        else:
            inner = gdb.Value(value).cast(kind.inner)
        self._take(program, inner)

    def _take(self, program: Program, inner: Any) -> None:  # noqa: ANN401 - see Type
        self.prog_ = program
        self._inner = inner

    @classmethod
    def of(cls, program: Program, inner: Any) -> Object:  # noqa: ANN401 - see Type
        """Return the object that a gdb.Value is."""
        made = cls.__new__(cls)
        made._take(program, inner)  # noqa: SLF001 - the same class
        return made

    @property
    def type_(self) -> Type:
        """Return the type."""
        return Type(self._inner.type)

    @property
    def address_(self) -> int | None:
        """Return where it lies, None for a value of no place."""
        return None if self._inner.address is None else int(self._inner.address)

    def address_of_(self) -> Object:
        """Return a pointer to it."""
        return Object.of(self.prog_, self._inner.address)

    def member_(self, name: str) -> Object:
        """Return a member. Raises LookupError if the layout has none of that name."""
        inner = self._inner
        kind = inner.type.strip_typedefs()
        if kind.code == gdb.TYPE_CODE_PTR:
            inner, kind = inner.dereference(), kind.target().strip_typedefs()
        if kind.code not in (gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION) or not gdb.types.has_field(kind, name):
            raise LookupError(f"{kind} has no member {name}")
        return Object.of(self.prog_, inner[name])

    def __getattr__(self, name: str) -> Object:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.member_(name)

    def __getitem__(self, index: int) -> Object:
        return Object.of(self.prog_, self._inner[index])

    def __iter__(self) -> Iterator[Object]:
        first, last = self._inner.type.strip_typedefs().range()
        return (self[index] for index in range(first, last + 1))

    def value_(self) -> int:
        """Return a number or an address."""
        return int(_reading(lambda: int(self._inner)))

    def string_(self) -> bytes:
        """Return a char array's string."""
        size = self._inner.type.strip_typedefs().sizeof
        return self.prog_.read(int(self._inner.address), size).split(b"\0", 1)[0]

    def __int__(self) -> int:
        return self.value_()

    def __float__(self) -> float:
        return float(_reading(lambda: float(self._inner)))

    def __bool__(self) -> bool:
        return bool(_reading(lambda: self._inner != 0))


class Program:
    """The core that gdb has open."""

    def set_core_dump(self, _path: str) -> None:
        """Do nothing: gdb was started with it."""

    def load_debug_info(self, _paths: list[str]) -> None:
        """Do nothing: gdb was started with it."""

    def variable(self, name: str) -> Object:
        """Return a global or static variable."""
        symbol = gdb.lookup_global_symbol(name) or gdb.lookup_static_symbol(name)
        try:  # a variable that a header declares is found only as an expression
            inner = symbol.value() if symbol and symbol.is_variable else gdb.parse_and_eval(f"'{name}'")
        except gdb.error as error:
            raise LookupError(name) from error
        return Object.of(self, inner)

    def type(self, name: str) -> Type:
        """Return a type by its name in C."""
        bare = name.removesuffix("*").rstrip()
        try:
            bare_type = gdb.lookup_type(bare)
        except gdb.error as error:
            raise LookupError(bare) from error
        return Type(bare_type.pointer() if name.endswith("*") else bare_type)

    def int_type(self, name: str, _size: int, *, is_signed: bool) -> Type:
        """Return an integer's type."""
        return Type(gdb.lookup_type(name if is_signed else f"unsigned {name}"))

    def symbol(self, key: str | int) -> GdbSymbol:
        """Return the function of that name, or the one that begins at that address."""
        if isinstance(key, str):
            function = gdb.lookup_global_symbol(key) or gdb.lookup_static_symbol(key)
            if function is None:
                raise LookupError(key)
            return GdbSymbol(key, int(function.value().address))
        words = gdb.execute(f"info symbol {key:#x}", to_string=True).split()
        if len(words) < 3 or words[1] != "in":  # "NAME in section .text", "NAME + 4 in …", "No symbol matches …"
            raise LookupError(hex(key))
        return GdbSymbol(words[0], key)

    def main_module(self) -> None:
        """Raise: gdb does not tell where thread-local variables lie."""
        raise LookupError("gdb does not tell where they lie")

    def symbols(self, _name: str) -> list[GdbSymbol]:
        """Return nothing: gdb does not tell of thread-local symbols' offsets."""
        return []

    def read(self, address: int, size: int) -> bytes:
        """Return memory."""
        return bytes(_reading(lambda: gdb.selected_inferior().read_memory(address, size)))

    def read_u8(self, address: int) -> int:
        """Return a byte."""
        return self.read(address, 1)[0]

    def read_u64(self, address: int) -> int:
        """Return a word."""
        return int.from_bytes(self.read(address, 8), "little")

    def read_c_string(self, address: int, *, max_size: int) -> bytes:
        """Return a C string, cut at the end of the page that memory ends with."""
        data = b""
        while len(data) < max_size and b"\0" not in data:
            piece = min(max_size - len(data), 256 - (address + len(data)) % 256)
            data += self.read(address + len(data), piece)
        return data.split(b"\0", 1)[0]


def container_of(pointer: Object, kind: Type, name: str) -> Object:
    """Return a pointer to the structure whose member is pointed to."""
    offset = next(field.bitpos // 8 for field in kind.inner.strip_typedefs().fields() if field.name == name)
    return Object(pointer.prog_, Type(kind.inner.pointer()), value=pointer.value_() - offset)


def sizeof(value: Object) -> int:
    """Return the size of an object's type."""
    return int(value.type_.inner.strip_typedefs().sizeof)


def _reading(read: Any) -> Any:  # noqa: ANN401 - whatever gdb answers
    try:
        return read()
    except gdb.MemoryError as error:
        raise FaultError(str(error)) from error
    except gdb.error as error:
        raise ValueError(str(error)) from error


def stand_in() -> None:
    """Be what `import drgn` finds from now on."""
    global gdb  # noqa: PLW0603 - it can be imported only inside gdb
    gdb = import_module("gdb")
    import_module("gdb.types")
    drgn = ModuleType("drgn")
    for name in (
        *("FaultError", "MissingDebugInfoError", "Object", "Program", "SymbolKind", "Type", "TypeKind"),
        *("container_of", "sizeof"),
    ):
        setattr(drgn, name, globals()[name])
    sys.modules["drgn"] = drgn


def walk() -> None:
    """Walk the heap of the core that this gdb has open."""
    stand_in()
    import_module("autopsy.examine.heap.walk").main()
