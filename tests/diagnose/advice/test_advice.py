"""Every verdict ends in commands for this VM; what a stranger named stays a word in them."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from functools import cache

import msgspec
import pytest

from autopsy.bundle import layout, sections
from autopsy.bundle.manifest import Domain, MonitorSocket
from autopsy.bundle.reader import open_bundle
from autopsy.diagnose.advice import disks, slots
from autopsy.diagnose.advice.advise import SLOT, advise, filled, templates
from autopsy.diagnose.advice.managers import Hand
from autopsy.diagnose.catalogue import SIGNATURES
from autopsy.diagnose.diagnosis import Advice
from autopsy.diagnose.verdict import UNKNOWN, diagnose
from autopsy.facts import subjects
from autopsy.facts.cite import Known
from autopsy.facts.gather import gather_facts
from autopsy.facts.model.facts import Facts
from autopsy.facts.subjects import Subject
from autopsy.resources import texts
from support import stored
from support.built import cases
from support.built import evidence as e

IDS = (*(signature.id for signature in SIGNATURES), UNKNOWN)
WHENS = {"now", "if-not", "never", "later"}
HOSTILE = ("$(reboot)", "; rm -rf /", "`reboot`", "a b'c\"d", "-o x", "new\nline", "\u202egnp.exe", "x'; reboot #")
FOUR = ("proxmox", "libvirt", "process", "libvirt in a container")


@cache
def facts_of(manager: str, name: str = "shop-db", monitor: str = "/run/vm/qmp") -> Facts:
    """Return the facts of a VM of one manager, with a name that its owner chose."""
    bundle = cases.throttled(bps_total=1).bundle()
    domain = {
        "libvirt": Domain(connection="qemu:///system", word="8a1e-uuid"),
        "libvirt in a container": Domain(connection="", word="8a1e-uuid", root="/proc/7/root"),
    }.get(manager)
    target = msgspec.structs.replace(
        bundle.manifest.target,
        name="102" if manager == "proxmox" else name,
        manager=manager.partition(" ")[0],
        domain=domain,
        monitors=(MonitorSocket(protocol="qmp", transport="unix", address=monitor, reachable=monitor),),
    )
    return gather_facts(e.Fake(msgspec.structs.replace(bundle.manifest, target=target), bundle.files))


def objects_named(word: str) -> tuple[Subject, ...]:
    """Return an object of each kind that a stranger can name."""
    return (
        subjects.Disk("d0"),
        subjects.File(f"/srv/{word}"),
        subjects.FileSystem(f"/mnt/{word}", "ext4", word),
        subjects.ThrottleGroup(word),
        subjects.Job(word),
        subjects.HostDevice(word),
        subjects.ControlGroup(f"/{word}"),
        subjects.Server(f"{word}:10809"),
        subjects.Peer(4242, word),
        subjects.Tracer(77),
        subjects.Thread(4711, word),
        subjects.MonitorClient(word),
    )


def told(signature: str, facts: Facts, objects: tuple[Subject, ...]) -> tuple[Advice, ...]:
    return advise(signature, objects, facts, kill="needless", proven=True, known_bugs=())


@pytest.mark.parametrize("manager", FOUR)
@pytest.mark.parametrize("signature", IDS)
def test_every_signature_has_advice_without_an_open_slot(signature: str, manager: str) -> None:
    for objects in ((), objects_named("plain")):
        advice = advise(signature, objects, facts_of(manager), kill="helps", proven=True, known_bugs=())
        assert [each for each in advice if each.when in {"now", "if-not"}], "nothing to do"
        for each in advice:
            assert not SLOT.search(each.command), each.command
            assert shlex.split(each.command), each.command
            assert len(each.command.splitlines()) == 1
            assert each.when in WHENS
            assert each.why


@pytest.mark.parametrize("signature", IDS)
def test_every_command_of_a_runbook_is_understood_and_its_slots_exist(signature: str) -> None:
    text = texts("runbooks")[f"{signature}.md"]
    written = text.partition("## Commands\n\n")[2].partition("\n\n## ")[0].splitlines()
    assert len(templates(signature)) == len(written) > 0
    facts = facts_of("process")
    hand = Hand(facts.vm)
    known = {*hand.verbs(), *disks.verbs(facts, (), hand), *slots.words(facts, (), hand), "v1-freezer", "v2-freezer"}
    assert {name for each in templates(signature) for name in SLOT.findall(each.command)} <= known


@pytest.mark.parametrize("word", HOSTILE)
@pytest.mark.parametrize("signature", IDS)
def test_a_hostile_name_never_becomes_a_command(signature: str, word: str) -> None:
    for manager in FOUR:
        facts = facts_of(manager, name=word, monitor=f"/run/{word}/qmp")
        honest = facts_of(manager, name="plain", monitor="/run/plain/qmp")
        for each in told(signature, facts, objects_named(word)):
            assert each.command.isprintable(), each.command
            assert commands(each.command) <= {
                "cat",
                *(name for one in told(signature, honest, objects_named("plain")) for name in commands(one.command)),
            }, each.command


def commands(line: str) -> set[str]:
    """Return the programs that a shell would run for a line."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words = list(lexer)
    assert not re.search(r"\$\(|`", re.sub(r"'[^']*'", "", line)), line
    return {word for before, word in zip(["&&", *words], words, strict=False) if before in {"&&", "||", ";", "|", "&"}}


@pytest.mark.parametrize("word", ["$(reboot)", "; rm -rf /", "a b'c\"d"])
def test_what_fills_a_slot_is_one_word_as_it_is(word: str) -> None:
    (command,) = filled("fsfreeze --unfreeze {mount}", {}, {"mount": (word,)})
    assert shlex.split(command) == ["fsfreeze", "--unfreeze", word]
    (command,) = filled("dd if={file} of=/dev/null", {}, {"file": (word,)})
    assert shlex.split(command) == ["dd", f"if={word}", "of=/dev/null"]


def test_a_command_is_told_once_for_each_of_its_objects_and_not_at_all_without_one() -> None:
    assert filled("kill -CONT {peer}", {}, {"peer": ("7", "8")}) == ("kill -CONT 7", "kill -CONT 8")
    assert filled("kill -CONT {peer}", {}, {"peer": ()}) == ()


def test_what_hangs_in_the_kernel_is_never_advised_to_be_killed_and_helps_is() -> None:
    found = told("nbd-silent", facts_of("libvirt"), (subjects.Peer(9),))
    assert [each.when for each in found if "destroy" in each.command] == ["never"]
    found = advise("lock-cycle", (), facts_of("libvirt"), kill="helps", proven=True, known_bugs=())
    assert found[0].command == "virsh destroy shop-db && virsh start shop-db"


def test_a_domain_whose_name_is_no_name_is_called_by_its_uuid() -> None:
    (first, *_) = advise("lock-cycle", (), facts_of("libvirt", "; reboot"), kill="helps", proven=True, known_bugs=())
    assert first.command == "virsh destroy 8a1e-uuid && virsh start 8a1e-uuid"


def configured(manager: str, files: dict[str, bytes]) -> Facts:
    bundle = cases.throttled(bps_total=1).bundle()
    domain = Domain(connection="qemu:///system", word="uuid") if manager == "libvirt" else None
    name = "102" if manager == "proxmox" else "shop-db"
    target = msgspec.structs.replace(bundle.manifest.target, name=name, manager=manager, domain=domain)
    rendered = sections.render(sections.Section(name, data) for name, data in files.items())
    stored = {**bundle.files, layout.evidence(layout.HOST, layout.VM_CONFIG): rendered}
    return gather_facts(e.Fake(msgspec.structs.replace(bundle.manifest, target=target), stored))


def lifting(facts: Facts) -> str:
    found = diagnose(facts)
    assert found.signature == "throttle-timer-wait"
    return found.advice[0].command


def test_a_limit_is_lifted_through_the_manager_that_set_it() -> None:
    disk = diagnose(facts_of("process")).objects[0].split()[0].encode()
    xml = b"<domain><disk type='file'><target dev='vda' bus='virtio'/><alias name='" + disk + b"'/></disk></domain>"
    command = lifting(configured("libvirt", {"/run/libvirt/qemu/shop-db.xml": xml}))
    assert shlex.split(command)[:6] == ["virsh", "blkdeviotune", "shop-db", "vda", "--total-bytes-sec", "0"]


def test_a_plain_process_is_spoken_to_through_its_own_monitor() -> None:
    words = shlex.split(lifting(facts_of("process")))
    assert words[:2] == ["python3", "-c"]
    assert words[3] == "/run/vm/qmp"
    assert [json.loads(each)["execute"] for each in words[4:]] == ["qmp_capabilities", "block_set_io_throttle"]


OWN = "scsi0: local-lvm:vm-102-disk-0,iothread=1,mbps_rd=1,iops=5,size=32G"


def test_proxmox_is_given_the_disk_s_own_line_without_its_limits() -> None:
    facts = configured("proxmox", {"/etc/pve/qemu-server/102.conf": OWN.encode() + b"\n[before]\nscsi1: x\n"})
    (found,) = facts.vm.configured_disks
    assert (found.device, found.options) == ("scsi0", OWN.removeprefix("scsi0: "))
    hand = Hand(facts.vm)
    assert isinstance(facts.disks, Known)
    (made, *_) = facts.disks.value
    scsi = dataclasses.replace(made, name="scsi0")
    assert shlex.split(disks._lift(hand, scsi, None)) == [
        "qm",
        "set",
        "102",
        "--scsi0",
        "local-lvm:vm-102-disk-0,iothread=1,size=32G",
    ]
    assert shlex.split(disks._own_iothread(hand, scsi))[3:6] == ["--scsihw", "virtio-scsi-single", "--scsi0"]


STORAGE_DAEMON_LACKS = {"stop", "cont", "system_reset", "system_wakeup", "migrate_cancel", "block_set_io_throttle"}


def test_a_storage_daemon_is_told_nothing_that_it_does_not_know() -> None:
    seen = 0
    for case in stored.CASES:
        facts = gather_facts(open_bundle(case.bundle))
        if facts.vm.is_storage_daemon:
            commands = [each.command for each in diagnose(facts).advice]
            verbs = {verb for command in commands for verb in re.findall(r'"execute": ?"([a-z_-]+)"', command)}
            assert not verbs & STORAGE_DAEMON_LACKS, (case.bundle, commands)
            seen += 1
            others = Hand(facts.vm).verbs().values()
            assert not [each for each in others if any(f'"{verb}"' in each for verb in STORAGE_DAEMON_LACKS)]
    assert seen >= 3


def test_nobody_is_warned_of_killing_what_has_ended() -> None:
    (case,) = (case for case in stored.CASES if case.home.name == "vm-ended-10.0.2")
    found = diagnose(gather_facts(open_bundle(case.bundle)))
    assert found.advice
    assert "never" not in {each.when for each in found.advice}


def test_no_kill_is_advised_where_nothing_looks_stuck() -> None:
    case = e.Case()
    case.idle_threads()
    case.parked((*e.YIELD, "monitor_qmp_dispatcher_co"), 1)
    calm = diagnose(gather_facts(case.bundle()))
    assert calm.signature == UNKNOWN
    assert calm.headline.startswith("Nothing looks stuck")
    assert not [each for each in calm.advice if each.command.startswith("kill ")]
