"""Stands in the portable interpreter for TLS, which it does not have and autopsy does not speak.

Only the names that its libraries mention as they are loaded; none of them works.
"""

PROTOCOL_TLS_CLIENT = PROTOCOL_TLS_SERVER = 0


class TLSVersion:
    """None is spoken."""


class SSLError(OSError):
    """As in the real module."""


class SSLWantReadError(SSLError):
    """As in the real module."""


class SSLWantWriteError(SSLError):
    """As in the real module."""


class SSLSyscallError(SSLError):
    """As in the real module."""


class CertificateError(SSLError, ValueError):
    """As in the real module."""


class SSLSocket:
    """No socket is one."""


class SSLContext:
    """Cannot be made."""

    def __init__(self, *_: object) -> None:
        raise SSLError("this interpreter has no TLS")
