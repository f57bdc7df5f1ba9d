"""Diagnoses the chunks on a Dask cluster: its workers start our processes, and carry nothing but words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec

from autopsy.errors import AutopsyError, ExitCode
from autopsy.fleet.engine.chunk import run_encoded
from autopsy.fleet.engine.order import ChunkDone, ChunkOrder

CONNECT = "20s"
AHEAD = 2  # chunks for each thread of a worker: the scheduler keeps no more than it has use for
RETRIES = 3  # of a chunk whose worker was lost


class ClusterFailed(AutopsyError):
    """The cluster was lost, or a chunk was the end of each worker that took it; what is in the index stays."""

    exit_code = ExitCode.NOT_STORED


def on_dask(address: str, orders: tuple[ChunkOrder, ...]) -> Iterator[ChunkDone]:
    """Have the cluster's workers diagnose the chunks, and yield each as it comes.

    Sources and the index must be where the workers find them; a chunk that is done twice is one part.

    Raises:
        ClusterFailed: the scheduler is not there any more, or never was.
    """
    from distributed import Client, as_completed  # noqa: PLC0415 - only a cluster needs it
    from distributed.client import FutureCancelledError  # noqa: PLC0415 - likewise
    from distributed.comm.core import CommClosedError  # noqa: PLC0415 - likewise
    from distributed.scheduler import KilledWorker  # noqa: PLC0415 - likewise

    remedy = "say the same again: it goes on where it was"
    try:
        with Client(address, timeout=CONNECT) as client:
            waiting = iter(orders)
            threads = sum(client.nthreads().values()) or 1
            running = as_completed([_submit(client, order) for order in islice(waiting, AHEAD * threads)])
            for future in running:
                done = msgspec.json.decode(future.result(), type=ChunkDone)
                future.release()
                if done.failed:
                    raise ClusterFailed(address, done.failed, remedy=remedy)
                if (order := next(waiting, None)) is not None:
                    running.add(_submit(client, order))
                yield done
    except (OSError, CommClosedError, FutureCancelledError, KilledWorker) as error:
        raise ClusterFailed(address, f"{type(error).__name__}: {error}", remedy=remedy) from error


def _submit(client: Any, order: ChunkOrder) -> Any:  # noqa: ANN401 - distributed has no types
    return client.submit(run_encoded, msgspec.json.encode(order), pure=False, retries=RETRIES)
