/** The examples of the library run on a real kernel, as a user would type them. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runInLab } from '../../lab/run.js';

const script = `
set -e
exec 2>&1
modprobe -a vduse virtio_vdpa virtio_blk virtio_net
start() {
  node --conditions=vduse-checkout "build/examples/$1" $2 >/tmp/out &
  pid=$!
  for n in $(seq 300); do [ -s /tmp/out ] && break; sleep 0.1; done
}
# Ends the example and shows what it printed; nothing of it may be left.
end() {
  kill $pid
  wait $pid
  sed "s/^/$1: /" /tmp/out
  [ ! -e /dev/vda ] && [ "$(ls /dev/vduse)" = control ] && echo "$1: nothing left"
  rm /tmp/out
}

truncate -s 64M /tmp/disk.img
start 1-file.js /tmp/disk.img
mkfs.ext4 -q /dev/vda
end file
e2fsck -fn /tmp/disk.img >/dev/null && echo 'file: the image has the file system'

start 2-memory.js
sleep 1
echo "memory: sectors $(cat /sys/block/vda/size)"
echo "memory: serial $(cat /sys/block/vda/serial)"
mkfs.ext4 -q /dev/vda
end memory

start 3-block-driver.js
head -c 16M /dev/urandom >/tmp/random
dd if=/tmp/random of=/dev/vda bs=1M oflag=direct status=none
blockdev --flushbufs /dev/vda
cmp /dev/vda /tmp/random && echo 'block driver: what was written is read'
end 'block driver'

start 4-device.js
ip address add 10.9.8.1/24 dev eth0
ip link set eth0 up
busybox ping -c 3 -W 5 10.9.8.2
end device
`;

test('the examples run on a real kernel', { timeout: 1_000_000 }, async () => {
  const { exitStatus, output } = await runInLab({ command: ['bash', '-c', script], timeoutMs: 900_000 });
  const shown = `the guest printed:\n${output}`;
  assert.equal(exitStatus, 0, shown);
  for (const line of [
    'file: /dev/vda: 67108864 bytes. Ctrl-C takes it away.',
    'file: nothing left',
    'file: the image has the file system',
    'memory: /dev/vda: 128 MiB',
    'memory: sectors 262144',
    'memory: serial scratch-0001',
    'memory: nothing left',
    'block driver: what was written is read',
    'block driver: nothing left',
    '3 packets transmitted, 3 packets received, 0% packet loss',
    'device: nothing left',
  ]) {
    assert.ok(output.includes(line), `"${line}" is missing; ${shown}`);
  }
  assert.match(output, /memory: \d+ reads, [1-9]\d* writes/, shown);
});
