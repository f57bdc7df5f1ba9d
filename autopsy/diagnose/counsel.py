"""What a piece of advice is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Advice:
    """Three next steps (confirm, relieve, recover), and the questions that only the living process can answer.

    The word PID stands for the VM's; nothing else is filled in, because names are chosen by strangers and the steps are
    pasted into shells.
    """

    steps: tuple[str, str, str]
    lost: tuple[str, ...] = ()
