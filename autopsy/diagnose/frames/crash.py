"""A QEMU that crashed is told as that before anything else: nothing waits in it any more."""

from __future__ import annotations

from autopsy.bundle import layout
from autopsy.diagnose.signature import CannotTell, Judgement, Match, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Cite
from autopsy.facts.model.facts import Facts


def _crashed(facts: Facts) -> Judgement:
    if not facts.crash:
        return CannotTell("by which signal QEMU ended, if it did")
    return Match(
        headline=f"QEMU crashed: {facts.crash}",
        objects=(subjects.Process(facts.vm.pid),),
        confidence="likely",
        claims=(claim(f"What was given says: {facts.crash}.", Cite(layout.MANIFEST, 0, "imported")),),
        stops_all=True,
        weight=1,
    )


SIGNATURES = (Signature("qemu-crashed", "process", "QEMU crashed", _crashed),)
