"""Says in words where what the fleet needs is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from autopsy.errors import UsageError

OF_THE_EXTRA = frozenset({"duckdb", "obstore", "pyrage", "dask", "distributed"})


@contextmanager
def extra() -> Iterator[None]:
    """Turn a missing module of the extra `fleet` into the command that installs it.

    Raises:
        UsageError: it is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OF_THE_EXTRA:
            raise
        raise UsageError(
            f"the Python module {error.name}", "is not installed", remedy="pip install '/path/to/checkout[fleet]'"
        ) from error
