"""What the slots of a runbook's commands are filled with: the objects of a diagnosis, each as one word."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from autopsy.diagnose.advice import disks
from autopsy.diagnose.advice.managers import Hand
from autopsy.diagnose.advice.shell import sayable
from autopsy.diagnose.queries.account import whether_they_go_on
from autopsy.diagnose.queries.limits.memory_limits import reached
from autopsy.diagnose.queries.peers.programs import STOPPED, asked_in_turn
from autopsy.diagnose.queries.socket_peers import programs
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.facts.subjects import Subject

ADDRESS = re.compile(r"(?:[a-z+]{1,12}://)?(\[[0-9a-fA-F:.]{2,40}\]|[A-Za-z0-9._-]{1,200}):(\d{1,5})(?:/.*)?")
FREEZER = re.compile(r"(/\S[^:]{0,400}/)(?:cgroup\.events|freezer\.state): ")


class Words(Mapping[str, tuple[str, ...]]):
    """For each slot the words that may fill it, found when it is asked for: a verdict's commands have two or three."""

    __slots__ = ("_finders", "_words")

    def __init__(self, finders: Mapping[str, Callable[[], Iterable[str]]]) -> None:
        self._finders = finders
        self._words: dict[str, tuple[str, ...]] = {}

    def __getitem__(self, slot: str) -> tuple[str, ...]:
        if slot not in self._words:
            self._words[slot] = tuple(dict.fromkeys(filter(sayable, self._finders[slot]())))
        return self._words[slot]

    def __contains__(self, slot: object) -> bool:
        return slot in self._finders

    def __iter__(self) -> Iterator[str]:
        return iter(self._finders)

    def __len__(self) -> int:
        return len(self._finders)


def words(facts: Facts, objects: Iterable[Subject], hand: Hand) -> Words:
    """Return for each slot the words that may fill it; a command is told once for each of them."""
    objects = tuple(objects)

    def peers() -> Iterator[int]:
        return (peer.pid for peer in objects if isinstance(peer, subjects.Peer))

    def stopped_peers() -> Iterator[str]:
        asked = (*programs(facts), *asked_in_turn(programs(facts)))
        stopped = {peer.pid for peer in asked if peer.state[:1] in STOPPED}
        return (str(pid) for pid in peers() if pid in stopped)

    def server(part: int) -> list[str]:
        addresses = (ADDRESS.fullmatch(server.address) for server in objects if isinstance(server, subjects.Server))
        return [address[part].strip("[]") for address in addresses if address][:1]

    return Words(
        {
            "pid": lambda: (str(facts.vm.pid),),
            "domain": lambda: (hand.domain,),
            "vmid": lambda: (hand.vmid,),
            "target": lambda: (_target(facts, hand),),
            "doubted": lambda: (_target(facts, hand),) if any(whether_they_go_on(facts)) else (),
            "monitor": lambda: (facts.vm.monitor,),
            "peer": lambda: map(str, peers()),
            "stopped-peer": stopped_peers,
            "tracer": lambda: (str(tracer.pid) for tracer in objects if isinstance(tracer, subjects.Tracer)),
            "thread": lambda: [str(thread.tid) for thread in objects if isinstance(thread, subjects.Thread)][:1],
            "mount": lambda: (mount.path for mount in objects if isinstance(mount, subjects.FileSystem)),
            "device": lambda: (device.name for device in objects if isinstance(device, subjects.HostDevice)),
            "file": lambda: (file.path for file in objects if isinstance(file, subjects.File)),
            "image": lambda: disks.images(facts, objects)[:1],
            "host": lambda: server(1),
            "port": lambda: server(2),
            "memory-limit": lambda: (limit.file for limit in reached(facts) if _is_told(limit.group, objects)),
            "v1-freezer": lambda: _freezer(facts, objects).get("v1-freezer", ()),
            "v2-freezer": lambda: _freezer(facts, objects).get("v2-freezer", ()),
        }
    )


def _is_told(group: str, objects: Iterable[Subject]) -> bool:
    return any(isinstance(subject, subjects.ControlGroup) and subject.path == group for subject in objects)


def _target(facts: Facts, hand: Hand) -> str:
    return f"pve:{hand.vmid}" if hand.vmid else f"libvirt:{hand.domain}" if hand.domain else f"pid:{facts.vm.pid}"


def _freezer(facts: Facts, objects: Iterable[Subject]) -> Mapping[str, list[str]]:
    """Return the file that thaws the frozen control group: the one beside what told that it is frozen."""
    frozen = facts.host.frozen
    if not any(isinstance(subject, subjects.ControlGroup) for subject in objects) or not isinstance(frozen, Known):
        return {}
    folder = FREEZER.match(frozen.cite.text)
    if folder is None:
        return {}
    if "/freezer.state: " in frozen.cite.text:
        return {"v1-freezer": [f"{folder[1]}freezer.state"]}
    return {"v2-freezer": [f"{folder[1]}cgroup.freeze"]}
