"""Find user-created objects and the threads' own variables, which no list of QEMU's leads to."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import drgn

from autopsy.bundle.heap.loops import ThreadLocals
from autopsy.examine.core.reader import Core
from autopsy.examine.heap.shape import Walk, cast, object_type, pointer, string

HIGHEST_HASH_TABLE = 1 << 16
FIRST_REAL_HASH = 2  # glib: 0 is an unused slot, 1 a removed one
PT_TLS = 7


def name_contexts(walk: Walk) -> None:
    """Learn the name of each iothread's AioContext from the objects that the user created."""
    machine = walk.variable("current_machine")
    if machine is None or not pointer(machine):
        return
    with walk.reading("the object tree"):
        root = cast(walk.program, "Object", pointer(machine)).parent
        for name, container in _children(walk, root):
            if name != "objects":
                continue
            for object_id, instance in _children(walk, container):
                if object_type(instance)[0] == "iothread":
                    context = pointer(cast(walk.program, "IOThread", pointer(instance)).ctx)
                    walk.context_names[context] = object_id


def thread_locals(walk: Walk, core: Core) -> tuple[ThreadLocals, ...]:
    """Return what each thread's own variables say. x86-64's static TLS: the block ends where %fs points."""
    module = walk.program.main_module()
    bias = module.debug_file_bias if module.debug_file_bias is not None else module.loaded_file_bias
    size = _tls_size(walk.program, module.address_range[0]) if module.address_range else 0
    if bias is None or not size:
        return ()
    context_at = _tls_offset(walk, bias, "co_tls_my_aiocontext", "my_aiocontext")
    # Coroutine TLS was wrapped in functions in v7.1; before that, the variables bore plain names.
    coroutine_at = _tls_offset(walk, bias, "co_tls_current", "current")
    bql_at = _tls_offset(walk, bias, "co_tls_bql_locked", "co_tls_iothread_locked", "iothread_locked")
    variables: list[ThreadLocals] = []
    for thread in core.threads:
        block = thread.registers.fs_base - size
        if block <= 0 or not thread.registers.rsp:  # a kernel thread has none of its own
            continue
        with walk.reading(f"variables of thread {thread.tid}"):
            variables.append(
                ThreadLocals(
                    tid=thread.tid,
                    context=0 if context_at is None else walk.program.read_u64(block + context_at),
                    coroutine=0 if coroutine_at is None else walk.program.read_u64(block + coroutine_at),
                    has_bql=None if bql_at is None else bool(walk.program.read_u8(block + bql_at)),
                )
            )
    return tuple(variables)


def _tls_size(program: drgn.Program, base: int) -> int:
    """Return the size of the program's TLS block, rounded up as the dynamic linker does."""
    header = program.read(base, 64)
    offset, entry_size, count = (*struct.unpack_from("<Q", header, 32), *struct.unpack_from("<HH", header, 54))
    table = program.read(base + offset, min(count, 64) * 56)
    for kind, _, _, _, _, _, size, align in struct.iter_unpack("<IIQQQQQQ", table):
        if kind == PT_TLS and entry_size == 56:
            return int(-(-size // max(align, 1)) * max(align, 1))
    return 0


def _tls_offset(walk: Walk, bias: int, *names: str) -> int | None:
    for name in names:
        for symbol in walk.program.symbols(name):
            if symbol.kind == drgn.SymbolKind.TLS:
                offset: int = symbol.address - bias
                return offset
    return None


def _children(walk: Walk, instance: drgn.Object) -> Iterator[tuple[str, drgn.Object]]:
    """Yield the name of each QOM child, and the child."""
    for key, value in _hash_table(walk.program, pointer(instance.properties)):
        with walk.reading(f"a property of the object at {pointer(instance):#x}"):
            entry = cast(walk.program, "ObjectProperty", value)
            if string(entry.type).startswith("child<"):
                name = walk.program.read_c_string(key, max_size=256).decode("utf-8", "backslashreplace")
                yield name, cast(walk.program, "Object", pointer(entry.opaque))


def _hash_table(program: drgn.Program, address: int) -> Iterator[tuple[int, int]]:
    """Yield (key, value) of a GHashTable of pointers. Its layout is glib's own and in no header, so it is checked."""
    data = program.read(address, 56)
    # Since glib 2.60 the size is a gsize; before that, an int.
    for layout in ("<QiIIII4xQQQ", "<iiIII4xQQQ"):
        values = struct.unpack_from(layout, data)
        size, _, mask = values[:3]
        keys, hashes, entries = values[-3:]
        if 0 < size <= HIGHEST_HASH_TABLE and mask == size - 1:
            break
    else:
        raise ValueError(f"the hash table at {address:#x} is not as glib's are")
    raw_hashes = struct.unpack(f"<{size}I", program.read(hashes, size * 4))
    raw_keys = struct.unpack(f"<{size}Q", program.read(keys, size * 8))
    raw_values = struct.unpack(f"<{size}Q", program.read(entries, size * 8))
    for hashed, key, value in zip(raw_hashes, raw_keys, raw_values, strict=True):
        if hashed >= FIRST_REAL_HASH:
            yield key, value
