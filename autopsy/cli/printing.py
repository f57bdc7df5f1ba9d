"""Prints the story and the result: the only place that does."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Annotated

import typer

from autopsy.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="print one JSON object")]


def say(text: str) -> None:
    """Tell the story: on stderr, whether or not anybody still listens."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print the result: on stdout. Whoever has read enough of it may go.

    Raises:
        UsageError: it cannot be written there.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in its buffer goes there
        if isinstance(error, BrokenPipeError):
            return
        raise UsageError("stdout", f"cannot be written: {error.strerror}", remedy="send it elsewhere") from error
