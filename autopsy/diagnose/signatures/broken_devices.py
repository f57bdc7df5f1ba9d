"""Virtio devices that QEMU has given up on: it serves none of their queues until the guest resets them."""

from __future__ import annotations

from autopsy.diagnose.queries.requests import confidence
from autopsy.diagnose.queries.wording import count, missing
from autopsy.diagnose.signature import CannotTell, Judgement, Match, RuledOut, Signature, claim
from autopsy.facts import subjects
from autopsy.facts.cite import Unknown
from autopsy.facts.model.facts import Facts
from autopsy.facts.subjects import Whole


def _broken(facts: Facts) -> Judgement:
    if isinstance(facts.virtqueues, Unknown):
        return CannotTell(f"the virtio devices of the guest's disks: {missing(facts.virtqueues)}")
    queues = facts.virtqueues.value
    if not queues.broken:
        return RuledOut("no virtio disk or controller is marked broken", (queues.cite,))
    names = sorted(queues.broken)
    still = queues.still_broken.issuperset(names)
    return Match(
        headline=f"{count(len(names), 'virtio device')} {'are' if len(names) > 1 else 'is'} marked broken "
        f"({', '.join(names[:6])}): the guest's driver put into a queue what cannot be, and QEMU serves none of its "
        "queues until the guest resets it",
        objects=tuple(map(subjects.Device, names)),
        confidence=confidence(proven=still),
        claims=(
            claim(
                f"VirtIODevice.broken is set in {', '.join(names[:6])}{' in both exposures' if still else ''}.",
                queues.devices_cite,
            ),
        ),
        holds=frozenset({Whole.REQUESTS, *map(subjects.Device, names)}),
        weight=len(names),
    )


SIGNATURES = (Signature("virtio-device-broken", "device", "a virtio device is marked broken", _broken),)
