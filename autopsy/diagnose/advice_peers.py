"""Advice on programs at the other end of a socket: the first lines of their runbooks."""
# ruff: noqa: E501 - sentences for people, as the runbooks have them

from __future__ import annotations

from types import MappingProxyType

from autopsy.diagnose.counsel import Advice

ADVICE = MappingProxyType(
    {
        "nbd-silent": Advice(
            (
                "See the server's process and its state: `ss -xp` or `ss -tinp` for the socket, then `grep State /proc/SERVER/status`; T is stopped, D waits for its own storage",
                "Make the server answer: `kill -CONT SERVER`, or repair the storage it serves",
                "A server that restarts is found again only with `reconnect-delay`; without it the disk stays dead until the VM is started anew",
            ),
            ("Which request the server had taken and not answered: capture the server's stack too",),
        ),
        "nbd-reconnecting": Advice(
            (
                "See the attempts: `ss -tnp | grep PID` (SYN-SENT), `journalctl -u nbd-server -n 50`",
                "Start the server again before the delay is over: nothing is lost then",
                "After the delay: errors reach the guest; resume or reboot it when the server is back",
            ),
            ("How long the server has been gone, if neither log tells",),
        ),
        "rbd-silent": Advice(
            (
                "See the cluster: `ceph -s`, `ceph health detail`, `rbd status POOL/IMAGE`, `ceph osd blocklist ls`",
                "Repair the cluster; remove a wrong blocklist entry: `ceph osd blocklist rm ADDRESS`",
                "A blocklisted librbd does not recover: the VM must be started anew",
            ),
            ("Which OSD was waited for: librados knows it, in memory alone",),
        ),
        "iscsi-silent": Advice(
            (
                "See the connection: `ss -tni dport = :3260`",
                "Bring the target or the network back",
                "If the target is gone for good, the VM must be started anew with other storage",
            ),
            ("Which command the target holds",),
        ),
        "libnfs-silent": Advice(
            (
                "See the connection: `ss -tni dport = :2049`",
                "Bring the server or the network back",
                "If it is gone for good, the VM must be started anew with other storage",
            ),
        ),
        "remote-image-silent": Advice(
            (
                "See the connection: `ss -tnpi | grep PID`",
                "Bring the server or the network back",
                "If it is gone for good: copy the image, and start the VM anew with the copy",
            ),
        ),
        "vhost-user-silent": Advice(
            (
                "See who is at the other end: `ss -xp | grep PID`, then `grep State /proc/BACKEND/status`",
                "Make the back end answer: `kill -CONT BACKEND`; look at its own log",
                "Restart the back end: with `reconnect` on the chardev QEMU finds it again; without, the VM must be started anew",
            ),
            ("What the back end was doing: capture its stack too",),
        ),
        "swtpm-silent": Advice(
            (
                "See swtpm's state: `pgrep -a swtpm`, `grep -E '^(State|Name)' /proc/SWTPM/status`",
                "Make it answer: `kill -CONT SWTPM`, or repair the storage of its state",
                "If it has died, the VM must be started anew",
            ),
            ("What swtpm was waiting for",),
        ),
        "peer-blocks-thread": Advice(
            (
                "See whom it waits for: `cat /proc/PID/task/TID/syscall`, then `ss -xtunp | grep pid=PID`",
                "Make that program or network answer (`kill -CONT`, restart it, bring the link back): the call returns, and QEMU goes on",
                "The call ends with the connection: a driver without reconnection (ssh) then fails its requests, and the VM must be started anew",
            ),
            ("What the program at the other end was doing: look at it, too, before it is restarted",),
        ),
    }
)
