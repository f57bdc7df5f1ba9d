"""What in a text tells whose machine it was, and what every machine has."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Keys whose values are names of somebody or something: replaced by the same word everywhere.
IDENTITY_KEY = re.compile(
    r"^(?:.*\.)?(?:user(?:name)?|ciuser|login|host(?:name)?|domain|searchdomain|nameserver|server|portal"
    r"|monhost|serial|wwn"
    r"|export|pool|image|namespace|volume|vgname|thinpool|datastore|share|snapshot|initiator-name|target|tags?|guest"
    r"|netbiosname)$",
    re.IGNORECASE,
)
IDENTITY_WORD = re.compile(
    r"(?P<key>(?<![\w-])(?:(?:user(?:name)?|login|host(?:name)?|server\.host|serial(?: ?number)?|wwn"
    r"|export|pool|image|volume"
    r"|share|initiator-name|guest|acct)\s*[=:]\s*|(?:[Ff]or user|[Hh]ostname set to|[Ss]et hostname to"
    r"|of user|[Ss]erial(?: [Nn]umber)?:?)\s+))"
    r"(?P<value>\"[^\"\n]*\"|<[^>\n]+>|[^\s,;'\"()<>\[\]{}/]{3,})"
)
# Options of QEMU whose value is of no use to anybody who looks for stuck I/O.
DROPPED_OPTIONS = frozenset(
    {b"-append", b"-smbios", b"-fw_cfg", b"-acpitable", b"-runas", b"-option-rom", b"-vnc", b"-spice", b"-prom-env"}
)
DROPPED_ELEMENTS = re.compile(
    r"(<(title|description|metadata|secret|passwd|password|passphrase|qemu:env|auth|sysinfo"
    r"|os:label)\b[^>]*(?<!/)>)(.*?)(</\2>)",
    re.DOTALL,
)
XML_ATTRIBUTE = re.compile(r"\b(name|pool|volume|username|usage|host|hostname|dev|bridge|network|value)=(['\"])(.*?)\2")
KEY = re.compile(r"[A-Za-z0-9_-]+")

URL = re.compile(
    r"\b(?P<scheme>[a-z][a-z0-9+]{1,15})://(?:(?P<user>[^\s/@'\"]+)@)?(?P<host>\[[0-9a-fA-F:.]+\]|[^\s/:,'\")\]?#;]*)"
    r"(?P<port>:\d{1,5})?(?P<path>/[^\s,'\")#?;]*)?(?P<query>\?[^\s,'\")]*)?"
)
MAC = re.compile(r"(?<![\w:-])[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){5}(?![\w:-])")
LENGTH_OF_MAC, LENGTH_OF_UUID = 17, 36
UUID = re.compile(r"(?<![0-9a-fA-F])[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}(?![0-9a-fA-F])")
IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
IPV6 = re.compile(r"(?<![\w:.])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w:])")
HEX_ADDRESS = re.compile(r"(?<![0-9A-F])(?:[0-9A-F]{32}|[0-9A-F]{8})(?=:[0-9A-F]{4}\b)")  # of /proc/net/tcp
FQDN = re.compile(
    r"(?<![\w./@-])(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}(?:com|net|org|edu|gov|int|mil"
    r"|local|lan|home|internal|intra"
    r"|intranet|corp|localdomain|example|test|invalid|cloud|info|biz|eu|de|uk|fr|nl|ch|at|it|es|pl|cz|ru"
    r"|us|ca|jp|cn|in|br|au|se|no|dk|fi"
    r"|be)(?![\w.-]*\w)",
)
PATH = re.compile(r"(?<![\w.%<>/~-])/(?:[\w.@+:%~=\\-]+/)*[\w.@+:%~=\\-]+/?")
NFS = re.compile(r"(?<![\w/.:,-])(?P<host>[A-Za-z0-9][\w.-]{1,62}|\[[0-9a-fA-F:]+\]):(?=/(?!/))")
NO_HOSTS = frozenset(
    {
        "unix",
        "tcp",
        "udp",
        "fd",
        "file",
        "json",
        "exec",
        "vc",
        "pty",
        "pipe",
        "chardev",
        "telnet",
        "inet",
        "nbd",
        "cgroup",
        "systemd",
        "sock",
    }
)
CIFS = re.compile(r"(?<![\w:/])//(?P<host>[\w.-]+)(?=/)")
# As long and as mixed as no word of a kernel, of QEMU or of ours is.
SHORTEST_OPAQUE, SHORTEST_HEX = 20, 32
OPAQUE = re.compile(r"(?<![\w+/=-])(?=[\w+/=-]*[A-Z])(?=[\w+/=-]*[a-z])(?=[\w+/=-]*\d)[A-Za-z0-9+/=-]{20,}(?![\w+/=-])")
LONG_HEX = re.compile(r"(?<![0-9A-Za-z_])[0-9a-f]{32,64}(?![0-9A-Za-z_])")
# One of these has every line without a key in which any of the patterns finds anything, here and among the secrets.
UNUSUAL = re.compile(r"[./@]|[A-Za-z]-|:.*:|gh[pousr]_|(?<!\S)(?!\d{15,31}(?!\S))\S{15}")
ONE_DIGIT = str.maketrans("123456789", "000000000")

# Of these places every machine has the same files: their paths stay.
PUBLIC = (
    *(
        "/usr/bin/",
        "/usr/sbin/",
        "/usr/lib/",
        "/usr/lib64/",
        "/usr/libexec/",
        "/usr/share/",
        "/lib/",
        "/lib64/",
        "/bin/",
    ),
    *(
        "/sbin/",
        "/proc/",
        "/machine",
        "/objects/",
        "/chardevs/",
        "/backend/",
        "/memfd:qemu",
        "/memory-backend",
        "/SYSV",
    ),
    *("/[aio]", "/anon_hugepage", "/dev/zero", "/sys/kernel/", "/sys/module/", "/sys/fs/fuse/", "/sys/fs/aio"),
)
COMPONENT = re.compile(
    r"\d+|\.{1,2}|(?:sd|vd|hd|xvd)[a-z]{1,3}\d*|nvme\d+(?:c\d+)?(?:n\d+(?:p\d+)?)?|(?:loop|dm-|md|nbd|rbd"
    r"|zd|sr|ram|drbd|tty|pts|vhost-)\d*"
    r"|[a-z]+\d*:\d+|\d+:\d+|lib[\w.+-]+\.so(?:\.\d+)*|(?:vm-)?\d+-?disk-?\d+(?:\.\w+)?|qemu-system-\w+"
    r"|[a-z0-9_]+\.(?:max|min|low|high|stat|current"
    r"|pressure|events|freeze|type|weight|latency|\w+_in_bytes|failcnt|oom_control|state|shares|cfs_\w+"
    r"|cpus|effective_cpus|procs)"
    r"|blkio\.[\w.]+|freezer\.\w+|memory\.[\w.]+|cpu\.[\w.]+|cpuset\.[\w.]+"
)
WORDS = frozenset(
    """
    bin sbin usr lib lib64 libexec share local etc var opt srv home root mnt media tmp run dev proc sys boot log
    cache spool mail
    lock data images image disk disks backup backups dump template iso snippets private public storage pool volumes
    nfs smb cifs
    libvirt qemu qemu-server kvm pve nodes storage.cfg nova instances cinder ceph rbd lxc docker overlay2
    containerd kubelet
    mapper disk by-id by-path by-uuid by-label by-partuuid by-partlabel shm pts net vhost-net vhost-vsock kvm null
    zero urandom random
    hugepages mqueue fuse fd task fdinfo class block bus pci devices device queue inflight stat ro size slaves
    holders dm suspended name
    vendor model rotational scheduler nr_requests wbt_lat_usec write_cache state timeout rev fs cgroup unified
    memory cpu cpuset blkio
    freezer pids systemd cpuacct machine machine.slice qemu.slice system.slice user.slice init.scope
    system-modular.slice emulator
    firmware uefi ovmf seabios efi edk2 code vars lost+found lxcfs ksm cmdline maps smaps status wchan stack
    syscall comm schedstat
    disk.raw disk.qcow2 disk.img qmp control monitor qmp.sock monitor.sock console halt.rom d.raw sock socket pidfile
    """.split()  # noqa: SIM905 - words read best as words
)
ENDING = re.compile(
    r"(?:\.(?:qcow2|raw|img|vmdk|iso|sock|sk|log|xml|conf|cfg|pid|qed|vdi|vhdx|vhd|slice|scope|service"
    r"|mount|rom|fd|bin|qmp|serial0|qga"
    r"|rpm|socket|so(?:\.\d+)*))$"
)
# A name that is one of QEMU's own words is taken out only where it stands as a name.
TOO_COMMON = frozenset(
    """
    qemu guest disk drive block throttle host none raw file main node name limits group test vm virtio drive0 disk0
    root admin null
    true false thread threads worker write read cpu memory core kernel linux debian ubuntu storage data images
    image backup local
    ext2 ext3 ext4 xfs btrfs zfs nfs nfs4 cifs tmpfs cgroup cgroup2 systemd x86_64 aarch64 amd64 i386 pids freezer
    cpuset blkio
    default system user users log tmp unknown job stop running paused stuck lock queue device devices process snapshot
    """.split()  # noqa: SIM905 - words read best as words
)


def unusual(lines: Sequence[str]) -> list[str]:
    """Return the lines that are UNUSUAL, for which one digit is as good as another: few differ in more than those."""
    shapes = "\n".join(lines).translate(ONE_DIGIT).split("\n")
    strange = {shape for shape in set(shapes) if UNUSUAL.search(shape)}
    return [line for line, shape in zip(lines, shapes, strict=True) if shape in strange] if strange else []
