"""QEMU's own NBD server is not taken for the client of another one."""

from __future__ import annotations

import pytest

from autopsy.diagnose.verdict import diagnose
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Park
from autopsy.facts.yield_points import park_point
from support.built import evidence as e

# As QEMU 7.2 and 10.0.2 show them without their debug symbols: static functions by the exported ones before them.
IDLE_SERVER = ("qemu_coroutine_switch", "qio_channel_yield", "~nbd_client_put", "~qemu_coroutine_switch")
SERVER_BEHIND_ANOTHER_REPLY = (*e.MUTEX, "~nbd_client_put", "~qemu_coroutine_switch")
CLIENT = (*e.YIELD, "~nbd_client_connection_new", "bdrv_co_preadv_part", "~blk_aio_flush", "~qemu_coroutine_switch")
SENDING = (
    *("qemu_coroutine_switch", "qio_channel_yield", "qio_channel_writev_full_all", "qio_channel_writev_all"),
    *("~nbd_client_put", "~qemu_coroutine_switch"),
)
CUT_SHORT = ("qemu_coroutine_switch", "qio_channel_yield", "~nbd_client_put")


@pytest.mark.parametrize(
    ("functions", "park"),
    [
        (IDLE_SERVER, Park.NBD_SERVER),
        (SERVER_BEHIND_ANOTHER_REPLY, Park.NBD_SERVER),
        (SENDING, Park.NBD_SERVER_SEND),
        (CLIENT, Park.NBD_REPLY),
        (CUT_SHORT, Park.NBD_REPLY),
    ],
)
def test_only_what_came_through_the_block_layer_is_a_request_of_an_nbd_client(
    functions: tuple[str, ...], park: Park
) -> None:
    assert park_point([e.frame(name) for name in functions])[0] is park


def exporting(functions: tuple[str, ...], driver: str) -> e.Case:
    case = e.Case()
    case.idle_threads()
    case.parked(functions)
    case.monitor()
    case.disks(e.disk("d0"))
    case.asked("query-named-block-nodes", [{"node-name": "n0", "drv": driver}], step="qmp.query-block")
    return case


def test_where_no_node_is_an_nbd_client_a_neighbour_s_name_is_no_request() -> None:
    facts = gather_facts(exporting(CUT_SHORT, "raw").bundle())
    assert not [each for each in facts.coroutines.value if each.park is Park.NBD_REPLY]  # type: ignore[union-attr]  # known: they are given
    assert diagnose(facts).where != "peer"


def test_where_a_node_is_an_nbd_client_a_neighbour_s_name_may_be_its_request() -> None:
    assert diagnose(gather_facts(exporting(CUT_SHORT, "nbd").bundle())).signature == "nbd-silent"


def test_a_place_that_is_a_function_s_own_name_needs_no_node() -> None:
    assert diagnose(gather_facts(exporting(e.NBD, "raw").bundle())).signature == "nbd-silent"
