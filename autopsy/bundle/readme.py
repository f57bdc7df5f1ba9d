"""README.txt inside every bundle: how to read it with tar and less alone."""

from __future__ import annotations

from autopsy.bundle.manifest import Clocks, TargetRecord

TEXT = """\
This is the evidence of one QEMU virtual machine, frozen by autopsy {version} before anybody killed it.

  VM       {name} (pid {pid}, {manager}), QEMU {qemu}
  when     {utc} UTC; the host's zone was {zone}

Start with report.html (any browser, no network) or diagnosis.json. Everything they say is read from the files here,
and you can read those without autopsy:

  manifest.json                     what was tried, in which order, with what outcome; every file with its SHA-256
  evidence/witness/                 the process before anything was asked of it
    tasks.txt                       every thread's stat, status, wchan, syscall and kernel stack, one after the other
    fds.txt                         every descriptor: its link and its fdinfo
    futexes.json polls.json         what sleeping threads sleep on; a mutex's owner is the thread id in "owner"
    maps cmdline auxv               as the kernel gave them
  evidence/freeze/freeze.json       how the memory was frozen, and for how long the VM stood still
  evidence/qmp.*/qmp.jsonl          one question to the monitor a line, with its answer and how long it took
  evidence/gdb.threads/             backtrace.txt (gdb's `thread apply all bt`), coroutines (requests that are parked
                                    have no thread: look for them here), who owns which lock
  evidence/proc.stacks/             the kernel's side of every thread once more
  evidence/proc.fds/ proc.aio/      descriptors and sockets with their peers; asynchronous I/O rings
  evidence/host/                    pressure, cgroup, block devices, mounts, kernel log
  evidence/watch/ring.jsonl         where `autopsy watch` ran: what it had seen in the minute before, one sample a line
  evidence/second-exposure/         the same a few seconds later: what did not move is stuck
  core                              registers, stacks and heap for gdb or drgn, without the guest's memory

A file such as tasks.txt holds many small ones; each has a header with its name and length:

  ==> task/4242/wchan (9 bytes) <==

All times named *_ns are CLOCK_MONOTONIC in nanoseconds; manifest.json ties that clock to UTC and to the host's zone.
To open the core by hand:  gdb -nx PATH-TO-THE-SAME-QEMU core   (then: thread apply all bt)
The core and the command line can hold secrets (passwords, fragments of guest data in QEMU's buffers): do not attach
this file to a public bug; `autopsy redact` makes a copy that you can.
"""


def readme(version: str, target: TargetRecord, began: Clocks) -> str:
    """Return the text for one bundle."""
    return TEXT.format(
        version=version,
        name=target.name,
        pid=target.pid,
        manager=target.manager,
        qemu=target.qemu_version or "(unknown version)",
        utc=began.utc,
        zone=began.zone,
    )


IMPORTED = """\
This is evidence of one QEMU virtual machine that others took, put into one file by autopsy {version}.

  VM       {name}, as far as it is told
  imported {utc} UTC; when it was taken is not known

Start with report.html (any browser, no network) or diagnosis.json. No answer in them is surer than "consistent", but
where the evidence itself proves it; what was not taken is told as not known.

  manifest.json            what was given (`imported`), under which number it is kept, and what was not taken
  evidence/given/1 2 ...   the files as they were given
  evidence/gdb.threads/    backtrace.txt: their stacks, one after the other, as they were understood
  core                     where a core was given: without the guest's memory

Cores, logs and command lines can hold secrets: do not attach this file to a public bug; `autopsy redact` makes a copy
that you can.
"""


def readme_of_import(version: str, target: TargetRecord, began: Clocks) -> str:
    """Return the text for one bundle of imported evidence."""
    return IMPORTED.format(version=version, name=target.name, utc=began.utc)
