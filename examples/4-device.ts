// A virtio device of another kind, whole: a network card behind which somebody answers ping.
//
//     modprobe virtio_net
//     node 4-device.js &
//     ip address add 10.9.8.1/24 dev eth0 && ip link set eth0 up    (or the name your system gives it)
//     ping 10.9.8.2
import { exportDevice } from 'vduse';

// Virtio 1.3, 5.1: device 1 is a network card. Queue 0 receives, queue 1 transmits, and every frame has a
// header of 12 bytes before it. Feature bit 5: the card has a MAC address, in its configuration space.
const NETWORK = 1;
const RECEIVE = 0;
const headerBytes = 12;
const cardMac = [0x02, 0, 0, 0, 0, 0x01];
const peerMac = [0x02, 0, 0, 0, 0, 0x02];
const peerAddress = [10, 9, 8, 2];

/** Buffers that the driver has given for frames to come: each waits for its frame. */
const waiting: ((frame: Uint8Array) => void)[] = [];

/** The answer to a frame: to ARP requests for the peer, and to its echo requests. */
function answer(frame: Buffer): Buffer | undefined {
  const reply = Buffer.from(frame);
  frame.copy(reply, 0, 6, 12);
  reply.set(peerMac, 6);
  const etherType = frame.readUInt16BE(12);
  if (
    etherType === 0x0806 &&
    frame.readUInt16BE(20) === 1 &&
    frame.subarray(38, 42).equals(Buffer.from(peerAddress))
  ) {
    reply.writeUInt16BE(2, 20);
    reply.set([...peerMac, ...peerAddress], 22);
    frame.copy(reply, 32, 22, 32);
    return reply;
  }
  if (etherType === 0x0800 && frame[23] === 1 && frame[34] === 8) {
    frame.copy(reply, 26, 30, 34);
    frame.copy(reply, 30, 26, 30);
    reply[34] = 0;
    // The checksum grows by what the type has lost (RFC 1624), with its carry around.
    const sum = frame.readUInt16BE(36) + 0x0800;
    reply.writeUInt16BE((sum & 0xffff) + (sum >> 16), 36);
    return reply;
  }
  return undefined;
}

const card = await exportDevice(
  {
    deviceId: NETWORK,
    features: 1n << 5n,
    config: Uint8Array.from([...cardMac, 0, 0]),
    queueCount: 2,
    onRequest(request) {
      if (request.queue === RECEIVE) {
        return new Promise((resolve) => waiting.push(resolve));
      }
      const reply = answer(Buffer.from(request.data.subarray(headerBytes)));
      if (reply !== undefined) {
        waiting.shift()?.(Buffer.concat([Buffer.alloc(headerBytes), reply]));
      }
      return undefined;
    },
    onStop() {
      for (const give of waiting.splice(0)) {
        give(new Uint8Array());
      }
    },
  },
  { name: 'ping' },
);
console.log(`${card.name} is on the vDPA bus (${card.attached?.driver})`);

process.once('SIGINT', () => card.close());
process.once('SIGTERM', () => card.close());
