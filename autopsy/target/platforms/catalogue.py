"""Every platform that is known, and which of them a VM belongs to."""

from __future__ import annotations

from autopsy.target.platforms.containers import CONTAINERS
from autopsy.target.platforms.libvirt import LIBVIRT
from autopsy.target.platforms.plain import PLAIN
from autopsy.target.platforms.platform import Platform, VmClaim
from autopsy.target.platforms.proxmox import PROXMOX

# The first whose claim is true has the VM.
PLATFORMS = (
    PROXMOX,
    LIBVIRT,
    CONTAINERS,
    PLAIN,
)


def platform_of(manager: str) -> Platform:
    """Return the first platform of that manager's name; a VM of a manager that is not known here is a plain process."""
    return next((platform for platform in PLATFORMS if platform.manager == manager), PLAIN)


def explicit(claim: VmClaim) -> str:
    """Return the form on the command line that means this VM and no other."""
    return f"{platform_of(claim.manager).form}:{claim.name}"
