"""Begins `autopsy` and `python -m autopsy`: a capture that starves does not wait until all of it is loaded."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress

from autopsy.linux.tasks import cpus
from autopsy.linux.tasks.behind import come_forward


def main() -> None:
    """Run the command line. A capture's budget counts from when it was started: it does not starve meanwhile."""
    if sys.argv[1:2] == ["capture"]:
        come_forward()
        cpus.remember()
        from autopsy.linux.tasks.forking import reap_late  # noqa: PLC0415 - a capture forks some fifty times

        reap_late()
    from autopsy.cli.app import main as run  # noqa: PLC0415 - two thirds of a start, which take minutes beside others

    try:
        run()
    except SystemExit as end:
        if sys.argv[1:2] == ["capture"] and isinstance(end.code, int):
            _leave(end.code)
        raise


def _leave(code: int) -> None:
    """End at once, if all is said: to take an interpreter apart that has loaded so much is a hundredth of a capture."""
    atexit._run_exitfuncs()  # noqa: SLF001 - as the interpreter does when it ends
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
