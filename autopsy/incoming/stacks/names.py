"""Gives functions the one name that they are known by, whatever the compiler and the C library hung on it."""

from __future__ import annotations

CLONES = ("constprop", "part", "isra", "cold", "lto_priv", "llvm", "localalias", "clone", "str", "warm", "unlikely")
SIGNAL = "<signal handler called>"
CALLS = frozenset({"recvfrom", "recv", "recvmsg", "send", "sendto", "sendmsg", "read", "write", "connect", "poll"})
UNKNOWN = frozenset({"??", "n/a", "???", "<unknown>", "[unknown]"})


def plain_name(shown: str) -> str:
    """Return the function's own name: without version, clone suffix and `__GI_`; empty where it has none."""
    name = shown.strip(" ")
    if name in UNKNOWN:
        return ""
    if name.startswith("<"):
        return name
    name = name.partition("@")[0]
    stem, dot, rest = name.partition(".")
    while dot:
        suffix, dot, rest = rest.partition(".")
        if suffix not in CLONES and not suffix.isdecimal():
            return name
    stem = stem.removeprefix("__GI_").removeprefix("_GI_")
    call = stem.removeprefix("__libc_")
    return call if call in CALLS else stem
