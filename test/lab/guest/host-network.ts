/**
 * An address of the host's loopback interface, at that same address in the machine: servers on the host that tell
 * their clients where to go, as Ceph's do, can be used without the host's network being changed for it. QEMU's user
 * network (its defaults) connects to whatever address the machine asks for, one of 127.0.0.0/8 too.
 */
import { sh } from './shell.js';

export async function reachHostLoopback(address: string): Promise<void> {
  await sh('modprobe virtio_net && ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up');
  // All of 127.0.0.0/8 is the machine's own until it is told otherwise, and such addresses are not for other interfaces.
  await sh('ip address add 127.0.0.1/32 dev lo && ip address delete 127.0.0.1/8 dev lo');
  await sh('echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet');
  await sh(`ip route add ${address} via 10.0.2.2`);
}
