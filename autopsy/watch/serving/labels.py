"""The word that the metrics call each VM by: its name, and what tells it apart where several share one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from autopsy.watch.model import WatchedVm

Distinction = Callable[[WatchedVm], str]

# What the field tells VMs apart by, the most telling first; never the PID, which is another one after each restart.
DISTINCTIONS: tuple[Distinction, ...] = (
    lambda vm: vm.namespace and f"namespace {vm.namespace}",
    lambda vm: vm.vmid and f"VMID {vm.vmid}",
    lambda vm: vm.domain and f"domain {vm.domain}",
    lambda vm: vm.manager,
    lambda vm: vm.uuid and f"uuid {vm.uuid}",
    lambda vm: f"started in tick {vm.start_ticks}",
)


class VmLabels:
    """Labels that stay as they are: a name that was once shared keeps its distinction when one of the VMs ends."""

    def __init__(self) -> None:
        self._shared: dict[str, Distinction] = {}

    def of(self, vms: Sequence[WatchedVm]) -> tuple[str, ...]:
        """Return a label for each VM in turn, no two alike."""
        named: dict[str, list[WatchedVm]] = defaultdict(list)
        for vm in vms:
            named[vm.name].append(vm)
        for name in self._shared.keys() - named.keys():
            del self._shared[name]
        for name, group in named.items():
            known = self._shared.get(name)
            if len(group) > 1 and (known is None or not _tells_apart(known, group)):
                self._shared[name] = next(
                    (distinction for distinction in DISTINCTIONS if _tells_apart(distinction, group)), DISTINCTIONS[-1]
                )
        return _unlike(self._word(vm) for vm in vms)

    def _word(self, vm: WatchedVm) -> str:
        word = self._shared.get(vm.name)
        return f"{vm.name} ({word(vm) or 'other'})" if word else vm.name


def _tells_apart(distinction: Distinction, group: Sequence[WatchedVm]) -> bool:
    return len({distinction(vm) for vm in group}) == len(group)


def _unlike(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words; what is still the same as another gets a number: one label twice spoils a whole scrape."""
    seen: dict[str, None] = {}
    for word in words:
        other, number = word, 1
        while other in seen:
            number += 1
            other = f"{word} #{number}"
        seen[other] = None
    return tuple(seen)
