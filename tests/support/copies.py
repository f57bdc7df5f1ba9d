"""A QEMU binary of our own, to be deleted, hidden or moved away under a running VM."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import lab


def copied(which: lab.Build, folder: Path, patch: pytest.MonkeyPatch) -> lab.Build:
    """Copy a QEMU; it looks for its modules where the original does."""
    copy = folder / "qemu-system-x86_64"
    copy.write_bytes(which.binary.read_bytes())
    copy.chmod(0o755)
    prefix = which.binary.parent.parent
    for module in prefix.glob("lib*/**/qemu/accel-tcg-x86_64.so"):
        patch.setenv("QEMU_MODULE_DIR", str(module.parent))
    firmware = ("-L", f"{prefix}/share/qemu", "-L", f"{prefix}/share/seabios")
    return lab.Build(which.label, copy, firmware, which.why_missing)


def hidden(which: lab.Build, folder: Path, patch: pytest.MonkeyPatch) -> tuple[lab.Build, Path]:
    """Copy a QEMU into a mount namespace that its VM alone is in; return it, and the path that it has there."""
    lab.need_root()
    ours = copied(which, folder, patch)
    inside = folder / "hidden"
    inside.mkdir()
    wrapper = folder / "wrapper"
    work = f'mount -t tmpfs autopsy {inside} && cp {ours.binary} {inside}/ && exec {inside}/{ours.binary.name} "$@"'
    wrapper.write_text(f"#!/bin/sh\nexec unshare --mount --propagation private sh -c '{work}' sh \"$@\"\n")
    wrapper.chmod(0o755)
    return lab.Build(ours.label, wrapper, ours.firmware_arguments, ""), inside / ours.binary.name
