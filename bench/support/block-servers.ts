/** The servers that are compared: how each is started on an image or on nothing, and what speaks to it. */
import { fileURLToPath } from 'node:url';
import type { Backing } from './block-cells.js';

export const nullSizeMib = 4096;

/** What one process serves: `devices` times the same kind of disk, with a socket each. */
export interface Served {
  readonly backing: Backing;
  /** A file for each device; null devices have none. */
  readonly images: readonly string[];
  readonly sockets: readonly string[];
  readonly queues: number;
  /** That many threads for the queues, from a server that can; otherwise as many as it has without being asked. */
  readonly threads?: number;
}

export interface BlockServer {
  readonly name: string;
  /** Whether the queues of a device can have threads of their own. */
  readonly threaded: boolean;
  readonly protocol: 'vhost-user' | 'nbd';
  readonly command: (served: Served) => string[];
}

function blockdev({ backing, images }: Served, n: number): string {
  return backing === 'null'
    ? `driver=null-co,node-name=disk${n},size=${nullSizeMib * 1024 ** 2},read-zeroes=off`
    : `driver=file,node-name=disk${n},filename=${images[n]},aio=io_uring,cache.direct=${backing === 'direct' ? 'on' : 'off'}`;
}

/** Both storage daemons take the same options; `extra` goes behind every export's. */
function storageDaemonArguments(served: Served, extra: string): string[] {
  return served.sockets.flatMap((socket, n) => [
    '--blockdev',
    blockdev(served, n),
    '--export',
    `type=vhost-user-blk,id=export${n},node-name=disk${n},addr.type=unix,addr.path=${socket},writable=on,` +
      `num-queues=${served.queues}${extra}`,
  ]);
}

const ownDaemon = fileURLToPath(new URL('../../src/cli/vduse-storage-daemon.js', import.meta.url));

/** The same server with something in its environment. */
export function withEnvironment(server: BlockServer, assignment: string): BlockServer {
  // env becomes the program that it starts, so the process is the server's.
  return { ...server, command: (served) => ['env', assignment, ...server.command(served)] };
}

/** Ours, with default settings unless options of the export say otherwise. */
export function ours(name = 'vduse', exportOptions = ''): BlockServer {
  const extra = exportOptions === '' ? '' : `,${exportOptions}`;
  return {
    name,
    threaded: true,
    protocol: 'vhost-user',
    command: (served) => {
      const threads = Array.from({ length: served.threads ?? 0 }, (_, n) => n);
      const chosen = threads.map((n) => `,iothread.${n}=io${n}`).join('');
      return [
        process.execPath,
        ownDaemon,
        '--log-level',
        'warn',
        ...threads.flatMap((n) => ['--object', `iothread,id=io${n}`]),
        ...storageDaemonArguments(served, `${chosen}${extra}`),
      ];
    },
  };
}

/** In an iothread, as one that cares for speed configures it: the main loop is slower. */
export function qemuStorageDaemon(program = 'qemu-storage-daemon'): BlockServer {
  return {
    name: 'qemu-storage-daemon',
    threaded: false,
    protocol: 'vhost-user',
    command: (served) => [
      program,
      '--object',
      'iothread,id=io0',
      ...storageDaemonArguments(served, ',iothread=io0'),
    ],
  };
}

export function qemuNbd(program = 'qemu-nbd'): BlockServer {
  return {
    name: 'qemu-nbd',
    threaded: false,
    protocol: 'nbd',
    command: (served) => {
      const common = [program, '-k', served.sockets[0], '-e', String(served.queues), '-t'];
      if (served.backing === 'null') {
        const options = `driver=null-co,size=${nullSizeMib * 1024 ** 2},read-zeroes=off`;
        return [...common, '--image-opts', options];
      }
      const cache = served.backing === 'direct' ? 'none' : 'writeback';
      return [...common, '-f', 'raw', `--cache=${cache}`, '--aio=io_uring', served.images[0]];
    },
  };
}
