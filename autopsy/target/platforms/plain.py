"""A QEMU that no manager owns: only its own command line speaks for it."""

from __future__ import annotations

from autopsy.target.platforms.platform import Platform

PLAIN = Platform(manager="process")
