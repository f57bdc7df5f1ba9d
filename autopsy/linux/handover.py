"""Opens a folder in a child that may be abandoned, and takes its descriptor over."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from autopsy.linux.child import in_child


def opened(work: Callable[[], int], seconds: float) -> int:
    """Return the descriptor that `work` opened in a child: the disk that it lies on may hang, and we may not.

    Raises:
        ChildTimedOut: there is none in time.
        ChildFailed: `work` raised; the message is the error's own words.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:

        def send() -> bytes:
            socket.send_fds(theirs, [b"\0"], [work()])
            return b""

        in_child(send, seconds)
        _, (descriptor,), *_ = socket.recv_fds(ours, 1, 1, socket.MSG_DONTWAIT)
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - the call's only form
        return descriptor
