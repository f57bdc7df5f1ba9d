"""Tell where the index words of a virtqueue's rings lie in the process, from QEMU's own cached translations.

QEMU keeps for each queue that the guest has set up a VRingMemoryRegionCaches: three MemoryRegionCaches, each of which
begins with a host pointer, an offset in the RAM and a length. The three lengths follow from the queue's size alone, so
that a wrong place shows: a packed ring has others.
"""

from __future__ import annotations

import struct

from autopsy.bundle.heap.virtio import RingPlace
from autopsy.examine.core.reader import Core, CoreError

CACHE = struct.Struct("<3Q")  # MemoryRegionCache: ptr, xlat, len
FIRST_AT = 16  # behind the rcu_head
APART = range(64, 256, 8)  # sizeof(MemoryRegionCache), which follows MemoryRegionSection's: 112 from QEMU 7.2 to 11
SIZE = FIRST_AT + 2 * APART[-1] + CACHE.size
MOST_SIZE = 1 << 15
EVENT = (0, 2)  # VIRTIO_RING_F_EVENT_IDX puts one more word behind each ring
INDEX_AT = 2  # of VRingAvail and VRingUsed: flags, idx


def place(core: Core, index: int, size: int, caches: int, addresses: tuple[int, int, int]) -> RingPlace | None:
    """Return where a queue's index words lie; `addresses` are the guest's of descriptors, available and used.

    None where the rings are packed, not set up, translated by an IOMMU, or anything but the one layout that fits.
    """
    if not caches or not 0 < size <= MOST_SIZE or not all(addresses):
        return None
    try:
        data = core.read(caches, SIZE)
    except CoreError:
        return None
    descriptors = CACHE.unpack_from(data, FIRST_AT)
    layouts = []
    for apart in APART:
        available, used = (CACHE.unpack_from(data, FIRST_AT + number * apart) for number in (1, 2))
        lengths = (descriptors[2], available[2], used[2])
        if lengths in {(16 * size, 4 + 2 * size + event, 4 + 8 * size + event) for event in EVENT}:
            layouts.append((descriptors, available, used))
    if len(layouts) != 1:
        return None
    # All three in one piece of RAM, and as far from one another there as in the guest's addresses.
    bases = {
        (pointer - offset, offset - address)
        for (pointer, offset, _), address in zip(layouts[0], addresses, strict=True)
    }
    available_at, used_at = layouts[0][1][0], layouts[0][2][0]
    if len(bases) != 1 or not available_at or not used_at or core.holds(available_at) or core.holds(used_at):
        return None
    return RingPlace(index=index, avail=available_at + INDEX_AT, used=used_at + INDEX_AT)
