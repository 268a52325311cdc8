#!/bin/busybox sh
# First process of the lab's machine. Everything before the job is done with busybox from the initramfs,
# because a dynamic program costs a second each while the host's root is still cold.
export PATH=/bin
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys

fail() {
  echo "lab: $*" >/dev/console
  # Let the console drain; the host takes the end of the machine before its time as a failure.
  busybox sleep 0.2
  busybox poweroff -f
}

for module in /modules/*.ko; do
  busybox insmod "$module" || fail "insmod $module failed"
done

transport=trans=virtio,version=9p2000.L,cache=loose,msize=524288
busybox mount -t 9p -o "ro,$transport" host-root /lower || fail "the host's root can't be mounted"

# The guest writes wherever it likes: into memory.
busybox mount -t tmpfs -o mode=755,size=80% layers /layers || fail "no tmpfs for the overlay"
busybox mkdir /layers/upper /layers/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/layers/upper,workdir=/layers/work overlay /root ||
  fail "the overlay over the host's root can't be mounted"

for directory in dev proc sys run tmp lib/modules; do
  [ -d "/root/$directory" ] || busybox mkdir -p "/root/$directory"
done
busybox mount -t 9p -o "ro,$transport" modules /root/lib/modules || fail "the kernel's modules can't be mounted"
busybox mount -t tmpfs -o mode=755 run /root/run
busybox mkdir -p /root/run/lock /root/run/vduse-lab
busybox cp /bin/busybox /session.sh /root/run/vduse-lab/
for directory in dev proc sys; do
  busybox mount --move "/$directory" "/root/$directory"
done
exec busybox switch_root /root /run/vduse-lab/busybox sh /run/vduse-lab/session.sh
