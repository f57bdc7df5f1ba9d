"""What QEMU 7.2's human monitor printed, and libvirt 9 and Proxmox VE keep of a VM, shortened."""

from __future__ import annotations

HMP = """QEMU 7.2.22 monitor - type 'help' for more information
(qemu) info status
VM status: running
(qemu) info block
d0 (#block172): a.qcow2 (qcow2)
    Attached to:      /machine/peripheral/vda/virtio-backend
    Cache mode:       writethrough
    Backing file:     base.qcow2 (chain depth: 1)
    I/O status:       nospace
    I/O throttling:   bps=1000000 bps_rd=0 bps_wr=0 iops=50 iops_rd=0 iops_size=0 group=g0

Images:
image: a.qcow2
file format: qcow2

d1 (#block561): c.qcow2 (qcow2, read-only)
    Attached to:      /machine/peripheral-anon/device[0]
    Cache mode:       writeback

nn: json:{"driver": "null-co", "size": 10485760} (null-co)
    Attached to:      sd1
    Cache mode:       writeback

ide1-cd0: [not inserted]
    Attached to:      /machine/unattached/device[21]
    Removable device: not locked, tray closed
(qemu) info blockstats
d0: rd_bytes=0 wr_bytes=4096 rd_operations=0 wr_operations=8 flush_operations=0 idle_time_ns=5
d1: rd_bytes=512 wr_bytes=0 rd_operations=1 wr_operations=0 flush_operations=0 idle_time_ns=1502646729
: rd_bytes=0 wr_bytes=0 rd_operations=3 wr_operations=0 flush_operations=0 idle_time_ns=0
ide1-cd0: rd_bytes=0 wr_bytes=0 rd_operations=0 wr_operations=0 flush_operations=0
(qemu) info block-jobs
Type mirror, device d1: Completed 67100000 of 67108864 bytes, speed limit 100 bytes/s
(qemu) info iothreads
io0:
  thread_id=7134
  poll-max-ns=32768
(qemu) info migrate
globals:
store-global-state: on
(qemu) info cpus
* CPU #0: thread_id=7137
  CPU #1: thread_id=7138
(qemu) info block -n
#block862: c.qcow2 (mirror_top)
    Cache mode:       writeback

nn: json:{"driver": "null-co", "size": 10485760} (null-co)
    Cache mode:       writeback
"""

DOMAIN = """<domain type='kvm' id='1'>
  <name>web1</name>
  <uuid>3ec85303-98ea-414d-8ee3-2d9b9c3d3468</uuid>
  <memory unit='KiB'>65536</memory>
  <iothreads>1</iothreads>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' io='native' iothread='1'/>
      <source file='/srv/web1.qcow2' index='1'/>
      <backingStore/>
      <target dev='vda' bus='virtio'/>
      <iotune>
        <total_bytes_sec>1000</total_bytes_sec>
        <write_iops_sec>7</write_iops_sec>
      </iotune>
      <alias name='virtio-disk0'/>
    </disk>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/web1-data'><host name='mon1' port='6789'/></source>
      <target dev='sda' bus='scsi'/>
      <alias name='scsi0-0-0-0'/>
    </disk>
    <disk type='file' device='cdrom'>
      <target dev='sdb' bus='sata'/>
    </disk>
    <graphics type='vnc' port='5900' passwd='hunter2hunter2'/>
  </devices>
</domain>
"""
STATUS = f"<domstatus state='paused' reason='ioerror' pid='5000'>\n  <taint flag='x'/>\n  {DOMAIN}</domstatus>\n"

PROXMOX = """#a note of somebody's: memory
agent: 1
boot: order=scsi0;ide2
cores: 4
cipassword: hunter2hunter2
ide2: none,media=cdrom
memory: 4096
name: web1
net0: virtio=BC:24:11:00:00:01,bridge=vmbr0
ostype: l26
scsi0: local-lvm:vm-100-disk-0,aio=native,iops=50,iothread=1,mbps_rd=10,size=32G
scsihw: virtio-scsi-single
smbios1: uuid=3ec85303-98ea-414d-8ee3-2d9b9c3d3468
virtio1: ceph:vm-100-disk-1,cache=writeback,size=8G

[before]
cores: 1
name: as-it-was
scsi7: local-lvm:vm-100-disk-7,size=1G
"""
OTHER = PROXMOX.replace("100", "101").replace("web1", "db1")
PVEREPORT = f"""
==== general system info ====

# hostname
pve1

==== info about virtual guests ====

# qm list
      VMID NAME                 STATUS     MEM(MB)    BOOTDISK(GB) PID
       100 web1                 running    4096              32.00 5000
       101 db1                  running    4096              32.00 6000
       102 off                  stopped    4096              32.00 0
# output '/etc/pve/qemu-server/\\d+\\.conf' file(s)

# cat /etc/pve/qemu-server/100.conf
{PROXMOX}

# cat /etc/pve/qemu-server/101.conf
{OTHER}

# pct list
# cat /etc/pve/lxc/200.conf
arch: amd64
cores: 1
memory: 512
rootfs: local-lvm:vm-200-disk-0,size=8G
"""
