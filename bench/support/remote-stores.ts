/** The stores that the remote benchmark starts, and who reads and writes them, each on an image of its own. */
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CephCluster } from '../../test/support/ceph-cluster.js';
import { BASELINE } from './compare-report.js';
import type { FioClient } from './fio-client.js';
import { makeImage } from './images.js';
import { type Running, startServer } from './processes.js';

export interface Contestant {
  readonly name: string;
  /** fio as it is called, and its arguments that choose engine and image. */
  readonly command: readonly string[];
  readonly args: readonly string[];
  /** The processes between fio and the store, and the store's. */
  readonly serverPids: readonly number[];
  readonly storePids: readonly number[];
}

/** A storage daemon between the store and fio. */
export interface RemoteDaemon {
  readonly name: string;
  readonly command: readonly string[];
  /** More options of its export, each behind a comma. */
  readonly exportOptions: string;
}

export interface RemoteStore {
  readonly name: string;
  readonly title: string;
  readonly contestants: readonly Contestant[];
  close(): Promise<void>;
}

export interface StoreContext {
  /** An empty directory. */
  readonly folder: string;
  readonly client: FioClient;
  readonly daemons: readonly RemoteDaemon[];
  readonly imageMib: number;
  readonly queues: number;
}

const ownDaemon = fileURLToPath(new URL('../../src/cli/vduse-storage-daemon.js', import.meta.url));

/** Ours, with default settings unless options of the export say otherwise. */
export function ourDaemon(name: string, options: string): RemoteDaemon {
  return {
    name,
    command: [process.execPath, ownDaemon, '--log-level', 'warn'],
    exportOptions: options === '' ? '' : `,${options}`,
  };
}

/** In an iothread, as one that cares for speed configures it: the main loop is slower. */
export const qemuDaemon: RemoteDaemon = {
  name: BASELINE,
  command: ['qemu-storage-daemon', '--object', 'iothread,id=io0'],
  exportOptions: ',iothread=io0',
};

interface StartedDaemons {
  readonly contestants: Contestant[];
  readonly running: Running[];
}

async function stopAll(running: readonly Running[]): Promise<void> {
  await Promise.all(running.map((server) => server.stop()));
}

/** Starts the daemons; the store tells the options of the n-th one's node, and its own processes. */
async function startDaemons(
  { folder, client, daemons, queues }: StoreContext,
  store: { blockdev(n: number): string; pids(n: number): readonly number[] },
): Promise<StartedDaemons> {
  const started: StartedDaemons = { contestants: [], running: [] };
  try {
    for (const [n, { name, command, exportOptions }] of daemons.entries()) {
      const socket = join(folder, `daemon-${n}.sock`);
      const vhostUser = `type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path=${socket},writable=on,num-queues=${queues}`;
      const server = await startServer(
        [
          ...command,
          '--blockdev',
          `node-name=disk,${store.blockdev(n)}`,
          '--export',
          `${vhostUser}${exportOptions}`,
        ],
        [socket],
      );
      started.running.push(server);
      started.contestants.push({
        name,
        command: client.command,
        args: [
          '--ioengine=libblkio',
          '--libblkio_driver=virtio-blk-vhost-user',
          `--libblkio_path=${socket}`,
          '--thread',
          `--numjobs=${queues}`,
          '--group_reporting',
        ],
        serverPids: [server.pid],
        storePids: store.pids(n),
      });
    }
    return started;
  } catch (error) {
    await stopAll(started.running);
    throw error;
  }
}

/** A Ceph cluster of one OSD; librbd's cache is off everywhere, or it would be the cache that is measured. */
export async function openRbdStore(context: StoreContext): Promise<RemoteStore> {
  const cluster = await CephCluster.start({ settings: ['rbd cache = false'] });
  try {
    const file = join(context.folder, 'source.img');
    await makeImage(file, context.imageMib);
    // One more than daemons: fio's own.
    for (let n = 0; n <= context.daemons.length; n++) {
      await cluster.rbd('import', '--no-progress', file, `disk-${n}`);
    }
    const storePids = [cluster.osdPid(0), ...(cluster.monitorPid === undefined ? [] : [cluster.monitorPid])];
    const { contestants, running } = await startDaemons(context, {
      blockdev: (n) => `driver=rbd,pool=${cluster.pool},image=disk-${n},conf=${cluster.conf},cache.direct=on`,
      pids: () => storePids,
    });
    const fio: Contestant = {
      name: "fio's rbd engine",
      command: ['env', `CEPH_CONF=${cluster.conf}`, 'fio'],
      args: [
        '--ioengine=rbd',
        '--clientname=admin',
        `--pool=${cluster.pool}`,
        `--rbdname=disk-${context.daemons.length}`,
      ],
      serverPids: [],
      storePids,
    };
    return {
      name: 'rbd',
      title: 'Ceph RBD: one OSD in memory, one copy, exclusive locks, no cache in the client',
      contestants: [...contestants, fio],
      close: async () => {
        await stopAll(running);
        await cluster.stop();
      },
    };
  } catch (error) {
    await cluster.stop();
    throw error;
  }
}

/** nbdkit's memory plugin, a process for each contestant. */
export async function openNbdStore(context: StoreContext): Promise<RemoteStore> {
  const { folder, daemons, imageMib } = context;
  const servers: Running[] = [];
  const socket = (n: number): string => join(folder, `nbdkit-${n}.sock`);
  try {
    for (let n = 0; n <= daemons.length; n++) {
      const command = ['nbdkit', '--foreground', '--unix', socket(n), 'memory', `${imageMib}M`];
      servers.push(await startServer(command, [socket(n)]));
    }
    const { contestants, running } = await startDaemons(context, {
      blockdev: (n) => `driver=nbd,server.type=unix,server.path=${socket(n)}`,
      pids: (n) => [servers[n].pid],
    });
    const fio: Contestant = {
      name: "fio's nbd engine",
      command: ['fio'],
      args: ['--ioengine=nbd', `--uri=nbd+unix:///?socket=${socket(daemons.length)}`],
      serverPids: [],
      storePids: [servers[daemons.length].pid],
    };
    return {
      name: 'nbd',
      title: 'NBD: nbdkit with a disk in memory, on a Unix socket',
      contestants: [...contestants, fio],
      close: () => stopAll([...running, ...servers]),
    };
  } catch (error) {
    await stopAll(servers);
    throw error;
  }
}
