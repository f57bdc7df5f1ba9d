"""What the slots of a runbook's commands are filled with: the objects of a diagnosis, each as one word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from autopsy.diagnose.advice import disks
from autopsy.diagnose.advice.managers import Hand
from autopsy.diagnose.advice.shell import sayable
from autopsy.diagnose.queries.socket_peers import programs
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.model.facts import Facts
from autopsy.facts.subjects import Subject

ADDRESS = re.compile(r"(?:[a-z+]{1,12}://)?(\[[0-9a-fA-F:.]{2,40}\]|[A-Za-z0-9._-]{1,200}):(\d{1,5})(?:/.*)?")
STOPPED = frozenset("Tt")
FREEZER = re.compile(r"(/\S[^:]{0,400}/)(?:cgroup\.events|freezer\.state): ")


def words(facts: Facts, objects: Iterable[Subject], hand: Hand) -> Mapping[str, tuple[str, ...]]:
    """Return for each slot the words that may fill it; a command is told once for each of them."""
    objects = tuple(objects)
    peers = [peer.pid for peer in objects if isinstance(peer, subjects.Peer)]
    stopped = {peer.pid for peer in programs(facts) if peer.state[:1] in STOPPED}
    addresses = [ADDRESS.fullmatch(server.address) for server in objects if isinstance(server, subjects.Server)]
    servers = [address for address in addresses if address]
    by_slot: dict[str, list[str]] = {
        "pid": [str(facts.vm.pid)],
        "domain": [hand.domain],
        "vmid": [hand.vmid],
        "target": [
            f"pve:{hand.vmid}" if hand.vmid else f"libvirt:{hand.domain}" if hand.domain else f"pid:{facts.vm.pid}"
        ],
        "monitor": [facts.vm.monitor],
        "peer": [str(pid) for pid in peers],
        "stopped-peer": [str(pid) for pid in peers if pid in stopped],
        "tracer": [str(tracer.pid) for tracer in objects if isinstance(tracer, subjects.Tracer)],
        "thread": [str(thread.tid) for thread in objects if isinstance(thread, subjects.Thread)][:1],
        "mount": [mount.path for mount in objects if isinstance(mount, subjects.FileSystem)],
        "device": [device.name for device in objects if isinstance(device, subjects.HostDevice)],
        "file": [file.path for file in objects if isinstance(file, subjects.File)],
        "image": list(disks.images(facts, objects))[:1],
        "host": [address[1].strip("[]") for address in servers][:1],
        "port": [address[2] for address in servers][:1],
        **_freezer(facts, objects),
    }
    return {slot: tuple(dict.fromkeys(filter(sayable, values))) for slot, values in by_slot.items()}


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
