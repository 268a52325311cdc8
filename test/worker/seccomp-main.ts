/**
 * The program of seccomp.test.ts: forbids io_uring to itself, as container runtimes do, begins anew (libuv may have
 * a ring of its own by then), and serves a disk on queue threads and on the main thread. Says what was read.
 */
import { fileURLToPath } from 'node:url';
import { createLogger } from '../../src/base/log.js';
import { addressOf, bindLibc, check, libcCalls } from '../../src/native/ffi.js';
import { ioUringSupport } from '../../src/native/probe.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { localNode, memoryNode, startBlk } from '../support/blk.js';
import { MemoryDisk } from '../support/memory-disk.js';

const PR_SET_NO_NEW_PRIVS = 38;
const PR_SET_SECCOMP = 22;
const SECCOMP_MODE_FILTER = 2;
const EPERM = 1;
const F_SETFD = 2;

/** BPF: loads the call's number; io_uring_setup, _enter and _register (425 to 427) get EPERM, the rest goes through. */
const filter = Uint32Array.from(
  [
    [0x20, 0],
    [0x02000035, 425],
    [0x00010025, 427],
    [0x06, 0x00050000 | EPERM],
    [0x06, 0x7fff0000],
  ].flat(),
);

const prctl = bindLibc<(option: number, a: number, b: number, c: number, d: number) => number>(
  'prctl',
  'int',
  ['int', 'ulong', 'uintptr_t', 'ulong', 'ulong'],
);
const execv = bindLibc<(path: string, strings: BigUint64Array) => number>('execv', 'int', ['str', 'void *']);

if (process.argv[2] !== 'filtered') {
  const program = new BigUint64Array([BigInt(filter.length / 2), BigInt(addressOf(filter))]);
  check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 'prctl', 'no new privileges');
  check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, addressOf(program), 0, 0), 'prctl', 'the filter');
  // Node marks them to be closed.
  for (const fd of [0, 1, 2]) {
    check(libcCalls.fcntlNumber(fd, F_SETFD, 0), 'fcntl');
  }
  const strings = [process.execPath, fileURLToPath(import.meta.url), 'filtered'].map((text) =>
    Uint8Array.from(Buffer.from(`${text}\0`)),
  );
  check(
    execv(process.execPath, BigUint64Array.from([...strings.map((bytes) => BigInt(addressOf(bytes))), 0n])),
    'execv',
  );
}

const hosts = new QueueThreadPool({ size: 2, logger: createLogger({ format: 'json' }) });
const disks = [await memoryNode(1 << 20), localNode(new MemoryDisk({ size: 1 << 20 }))];
const found: number[] = [];
for (const node of disks) {
  const setup = await startBlk({ node, hosts, device: { queueCount: 2 } });
  const data = new Uint8Array(8192).fill(0x5a);
  await setup.client.write(4096, data, 1);
  const { data: read } = await setup.client.read(4096, 8192, 0);
  found.push(read.filter((byte) => byte === 0x5a).length);
  await setup.close();
}
await hosts.close();
console.log(JSON.stringify({ errno: ioUringSupport().errno, found }));
