"""Walk the block graph: back ends, nodes, their edges and the requests that they track."""

from __future__ import annotations

import drgn

from autopsy.bundle.heap.devices import NbdClient, NbdRequest
from autopsy.bundle.heap.loops import CoLock, GraphLock
from autopsy.bundle.heap.records import BlockBackend, BlockNode, Edge, TrackedRequest
from autopsy.examine.heap.shape import Walk, cast, co_lock, flag, member, number, object_type, pointer, string, word


def nodes(walk: Walk) -> tuple[BlockNode, ...]:
    """Return every BlockDriverState."""
    block_nodes: list[BlockNode] = []
    for state in block_states(walk):
        with walk.reading(f"block node at {pointer(state):#x}"):
            block_nodes.append(_node(walk, state))
    return tuple(block_nodes)


def backends(walk: Walk) -> tuple[BlockBackend, ...]:
    """Return every BlockBackend."""
    back_ends: list[BlockBackend] = []
    for backend in block_backends(walk):
        with walk.reading(f"block back end at {pointer(backend):#x}"):
            back_ends.append(_backend(walk, backend))
    return tuple(back_ends)


def nbd_clients(walk: Walk) -> tuple[NbdClient, ...]:
    """Return the connection of every node whose driver is nbd."""
    clients: list[NbdClient] = []
    for state in block_states(walk):
        with walk.reading(f"NBD client of the node at {pointer(state):#x}"):
            if driver(walk, state) == "nbd":
                clients.append(_nbd(walk, state))
    return tuple(clients)


def graph_lock(walk: Walk) -> GraphLock | None:
    """Return the block graph's lock, which there is since QEMU 8.0."""
    writer = walk.variable("has_writer")
    if writer is None:
        return None
    orphaned = walk.variable("orphaned_reader_count")
    queue = walk.variable("reader_queue")
    return GraphLock(
        has_writer=bool(writer),
        orphaned_readers=0 if orphaned is None else int(orphaned),
        waiting_readers=() if queue is None else walk.coroutines("readers of the graph lock", queue),
    )


def block_states(walk: Walk) -> list[drgn.Object]:
    """Return a pointer to every BlockDriverState."""
    head = walk.variable("all_bdrv_states")
    if head is None:
        walk.note("block nodes: this QEMU has no all_bdrv_states")
        return []
    return list(walk.chain("block nodes", head, "bs_list"))


def block_backends(walk: Walk) -> list[drgn.Object]:
    """Return a pointer to every BlockBackend, those of devices without a name included."""
    head = walk.variable("block_backends")
    if head is None:
        walk.note("block back ends: this QEMU has no block_backends")
        return []
    return list(walk.chain("block back ends", head, "link"))


def driver(walk: Walk, state: drgn.Object) -> str:
    """Return the name of a BlockDriverState's driver, empty when it has none (an ejected medium).

    The name is a constant of the binary; where that is gone, the driver's own symbol (`bdrv_nbd`) tells it.
    """
    if not pointer(state.drv):
        return ""
    try:
        return string(state.drv.format_name)
    except drgn.FaultError:
        return walk.function(pointer(state.drv)).removeprefix("bdrv_")


def device_of(walk: Walk, device: drgn.Object) -> str:
    """Return the id of a DeviceState pointer, or its QOM path; a virtio back end is called as its proxy is."""
    address = pointer(device)
    if not address:
        return ""
    if address not in walk.device_names:
        path = string(device.canonical_path).removesuffix("/virtio-backend")
        walk.device_names[address] = string(device.id) or path.removeprefix("/machine/peripheral/")
    return walk.device_names[address]


def backend_label(walk: Walk, backend: drgn.Object) -> str:
    """Return the name that people use for a back end: its own, its device's, or its node's."""
    own = string(backend.name) or device_of(walk, cast(walk.program, "DeviceState", pointer(backend.dev)))
    if own or not pointer(backend.root) or not pointer(backend.root.bs):
        return own
    return string(backend.root.bs.node_name)


def _backend(walk: Walk, backend: drgn.Object) -> BlockBackend:
    walk.knows(f"block back end {backend_label(walk, backend)}", backend, "queued_requests_lock")
    root = backend.root.bs if pointer(backend.root) else backend.root
    there = bool(pointer(root))
    device = cast(walk.program, "DeviceState", pointer(backend.dev))
    throttle = backend.public.throttle_group_member.throttle_state
    group = ""
    if pointer(throttle):
        group = string(drgn.container_of(throttle, walk.program.type("struct ThrottleGroup"), "ts").name)
    return BlockBackend(
        address=pointer(backend),
        name=string(backend.name),
        device=device_of(walk, device),
        device_type=object_type(cast(walk.program, "Object", pointer(device)))[0] if pointer(device) else "",
        node=pointer(root),
        node_name=string(root.node_name) if there else "",
        context=pointer(backend.ctx),
        in_flight=int(backend.in_flight),
        quiesce_counter=int(backend.quiesce_counter),
        queued_requests=walk.coroutines("requests queued by a drain", backend.queued_requests),
        disable_request_queuing=flag(backend, "disable_request_queuing"),
        io_status=word(backend.iostatus, "BLOCK_DEVICE_IO_STATUS_") if backend.iostatus_enabled else "",
        throttle_group=group,
    )


def _node(walk: Walk, state: drgn.Object) -> BlockNode:
    name = string(state.node_name)
    walk.knows(f"block node {name}", state, "reqs_lock", "dirty_bitmap_mutex")
    requests: list[TrackedRequest] = []
    for request in walk.chain(f"requests of {name}", state.tracked_requests, "list"):
        with walk.reading(f"tracked request at {pointer(request):#x}"):
            requests.append(_request(request))
    edges: list[Edge] = []
    for child in walk.chain(f"children of {name}", state.children, "next"):
        with walk.reading(f"edge at {pointer(child):#x}"):
            edges.append(_edge(child))
    return BlockNode(
        address=pointer(state),
        node_name=name,
        driver=driver(walk, state),
        filename=string(state.filename),
        context=pointer(state.aio_context),
        in_flight=int(state.in_flight),
        serialising_in_flight=int(state.serialising_in_flight),
        quiesce_counter=int(state.quiesce_counter),
        # Gone since subtree drains were removed (in v8.0).
        recursive_quiesce_counter=number(state, "recursive_quiesce_counter"),
        active_flush=bool(state.active_flush_req),
        flush_waiters=walk.coroutines(f"flush queue of {name}", state.flush_queue),
        children=tuple(edges),
        requests=tuple(requests),
        # Gone since requests are batched by defer_call (in v8.2).
        plugged=number(state, "io_plugged"),
        format_lock=_format_lock(walk, state),
    )


def _format_lock(walk: Walk, state: drgn.Object) -> CoLock | None:
    if driver(walk, state) != "qcow2" or not pointer(state.opaque):
        return None
    with walk.reading(f"qcow2 state of the node at {pointer(state):#x}"):
        return co_lock(member(cast(walk.program, "BDRVQcow2State", pointer(state.opaque)), "lock"))
    return None


def _request(request: drgn.Object) -> TrackedRequest:
    return TrackedRequest(
        address=pointer(request),
        offset=int(request.offset),
        bytes=int(request.bytes),
        type=word(request.type, "BDRV_TRACKED_"),
        coroutine=pointer(request.co),
        serialising=bool(request.serialising),
        overlap_offset=int(request.overlap_offset),
        overlap_bytes=int(request.overlap_bytes),
        waiting_for=pointer(request.waiting_for),
    )


def _edge(child: drgn.Object) -> Edge:
    there = bool(pointer(child.bs))
    return Edge(
        child=string(child.name),
        node=pointer(child.bs),
        node_name=string(child.bs.node_name) if there else "",
        role=int(child.role),
        # A flag since v8.0; before that, a counter.
        quiesced=number(child, "quiesced_parent", "parent_quiesce_counter") or 0,
    )


def _nbd(walk: Walk, state: drgn.Object) -> NbdClient:
    client = cast(walk.program, "BDRVNBDState", pointer(state.opaque))
    name = string(state.node_name)
    walk.knows(f"NBD client {name}", client, "requests_lock")
    slots = [
        NbdRequest(
            index=index,
            coroutine=pointer(slot.coroutine),
            offset=int(slot.offset),
            receiving=bool(slot.receiving),
        )
        for index, slot in enumerate(client.requests)
        if pointer(slot.coroutine)
    ]
    return NbdClient(
        node=pointer(state),
        node_name=name,
        state=word(client.state, "NBD_CLIENT_"),
        in_flight=int(client.in_flight),
        requests=tuple(slots),
        waiting_for_slot=walk.coroutines(f"NBD requests of {name} without a slot", client.free_sema),
        send_lock=co_lock(member(client, "send_mutex")),
        # Since connection_co was dropped (in v6.2).
        receive_lock=co_lock(member(client, "receive_mutex")),
        reconnect_delay_s=number(client, "reconnect_delay") or 0,
        export=string(client.export),
    )
