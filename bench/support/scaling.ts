/** How a daemon grows: with queues, with devices, and what those cost that nobody uses. */
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { say, withProgress } from '../../lab/progress.js';
import type { BlockServer } from './block-servers.js';
import { formatCount, median } from './figures.js';
import { type FioRun, runFio } from './fio.js';
import type { FioClient } from './fio-client.js';
import { makeImage, warmPageCache } from './images.js';
import { cpuSeconds, memoryUse, type Running, startServer, threadCount } from './processes.js';

export const queueCounts = [1, 2, 4, 8, 16];
export const deviceCounts = [1, 4, 16, 64];
const IMAGE_MIB = 32;
const QUEUE_DEPTH = 32;
/** Of each device, when there are several. */
const DEVICE_DEPTH = 8;
const IDLE_DEVICES = 16;
const IDLE_QUEUES = 15;
const IDLE_THREADS = 4;
const CONNECTED_MS = 60_000;

export interface ScalingPlan {
  readonly servers: readonly BlockServer[];
  readonly client: FioClient;
  readonly folder: string;
  readonly signal: AbortSignal;
  readonly quick: boolean;
  readonly repetitions: number;
  readonly seconds: number;
}

interface Shape {
  readonly devices: number;
  readonly queues: number;
  readonly threads?: number;
}

interface LoadedShape extends Shape {
  /** Of each queue. */
  readonly depth: number;
}

export interface ScalingPoint extends LoadedShape {
  readonly server: string;
  readonly iops: number;
  readonly cpuUsPerIo: number;
  /** After the load, without memory that is shared with clients. */
  readonly ownMib: number;
  readonly threads: number;
}

/** What nobody uses costs. Memory in MiB, processor time as a share of one core. */
export interface IdleCost {
  readonly server: string;
  /** With a client that is connected and asks for nothing. */
  readonly furtherDeviceMib: number;
  /** Without one. */
  readonly furtherUnusedDeviceMib: number;
  readonly furtherQueueMib: number;
  /** A further queue on a further thread. */
  readonly furtherThreadMib?: number;
  readonly devices: number;
  readonly unusedCpuShare: number;
  readonly connectedCpuShare: number;
}

export interface Scaling {
  readonly queues: readonly ScalingPoint[];
  readonly devices: readonly ScalingPoint[];
  readonly idle: readonly IdleCost[];
}

interface Daemon {
  readonly server: BlockServer;
  readonly running: Running;
  readonly sockets: readonly string[];
}

class Bench {
  #runs = 0;

  constructor(
    readonly plan: ScalingPlan,
    private readonly images: ReadonlyMap<string, readonly string[]>,
  ) {}

  async start(server: BlockServer, { devices, ...rest }: Shape): Promise<Daemon> {
    this.plan.signal.throwIfAborted();
    const run = this.#runs++;
    const sockets = Array.from({ length: devices }, (_, n) => join(this.plan.folder, `${run}-${n}.sock`));
    const images = (this.images.get(server.name) ?? []).slice(0, devices);
    const command = server.command({ backing: 'cached', images, sockets, ...rest });
    return { server, sockets, running: await startServer(command, sockets) };
  }

  fio(daemon: Daemon, workload: FioRun['workload'], milliseconds: number): FioRun {
    const { server, sockets } = daemon;
    return { workload, sockets, protocol: server.protocol, milliseconds, sizeMib: IMAGE_MIB };
  }

  /** While clients are connected to all devices and have asked for one block each. */
  async whileConnected<T>(daemon: Daemon, shape: Shape, work: () => Promise<T>): Promise<T> {
    const end = new AbortController();
    const workload = { rw: 'randread', bs: '4k', depth: 1, queues: shape.queues } as const;
    const run = { ...this.fio(daemon, workload, CONNECTED_MS), extra: ['--thinktime=120s'] };
    const clients = runFio(this.plan.client, run, AbortSignal.any([end.signal, this.plan.signal])).catch(
      (error: Error) => {
        if (!end.signal.aborted) throw error;
      },
    );
    try {
      return await Promise.race([work(), clients.then(() => Promise.reject(new Error('fio ended early')))]);
    } finally {
      end.abort();
      await clients.catch(() => undefined);
    }
  }
}

async function makeImages(plan: ScalingPlan): Promise<ReadonlyMap<string, readonly string[]>> {
  const images = new Map<string, string[]>();
  const count = Math.max(...deviceCounts);
  const label = `writing ${count * plan.servers.length} images of ${IMAGE_MIB} MiB`;
  const work = async (): Promise<void> => {
    for (const [k, { name }] of plan.servers.entries()) {
      const paths = Array.from({ length: count }, (_, n) => join(plan.folder, `${k}-${n}.img`));
      for (const path of paths) {
        plan.signal.throwIfAborted();
        await makeImage(path, IMAGE_MIB);
        await warmPageCache(path);
      }
      images.set(name, paths);
    }
  };
  await withProgress(label, work, 'bench');
  return images;
}

interface Load {
  readonly iops: number;
  readonly cpuUsPerIo: number;
}

async function loadOnce(bench: Bench, daemon: Daemon, { depth, queues }: LoadedShape): Promise<Load> {
  const { client, seconds, signal } = bench.plan;
  const workload = { rw: 'randread', bs: '4k', depth, queues } as const;
  await runFio(client, bench.fio(daemon, workload, 100), signal);
  const before = cpuSeconds(daemon.running.pid);
  const { iops, ios } = await runFio(client, bench.fio(daemon, workload, Math.round(seconds * 1000)), signal);
  return { iops, cpuUsPerIo: ((cpuSeconds(daemon.running.pid) - before) * 1e6) / ios };
}

/** One shape on all servers, which take turns. */
async function measureShape(bench: Bench, shape: LoadedShape): Promise<ScalingPoint[]> {
  const { servers, repetitions } = bench.plan;
  const daemons: Daemon[] = [];
  try {
    for (const server of servers) daemons.push(await bench.start(server, shape));
    const loads = daemons.map(() => [] as Load[]);
    for (let n = 0; n < repetitions; n++) {
      for (let k = 0; k < daemons.length; k++) {
        const turn = (n + k) % daemons.length;
        loads[turn].push(await loadOnce(bench, daemons[turn], shape));
      }
    }
    return daemons.map(({ server, running }, n) => ({
      ...shape,
      server: server.name,
      iops: median(loads[n].map(({ iops }) => iops)),
      cpuUsPerIo: median(loads[n].map(({ cpuUsPerIo }) => cpuUsPerIo)),
      ownMib: memoryUse(running.pid).ownKib / 1024,
      threads: threadCount(running.pid),
    }));
  } finally {
    await Promise.all(daemons.map(({ running }) => running.stop()));
  }
}

async function measureShapes(bench: Bench, shapes: readonly LoadedShape[]): Promise<ScalingPoint[]> {
  const points: ScalingPoint[] = [];
  for (const shape of shapes) {
    const title = `${shape.devices} device${shape.devices === 1 ? '' : 's'}, ${shape.queues} queue${shape.queues === 1 ? '' : 's'} each`;
    const found = await withProgress(title, () => measureShape(bench, shape), 'bench');
    const figures = found.map(({ server, iops }) => `${server} ${formatCount(iops)}`);
    say(`${title}: ${figures.join(', ')}`, 'bench');
    points.push(...found);
  }
  return points;
}

const SETTLE_MS = 2_000;

/** Memory of a fresh daemon of this shape, with or without clients. */
async function freshMemoryMib(
  bench: Bench,
  { server, shape, connected }: { server: BlockServer; shape: Shape; connected: boolean },
): Promise<number> {
  const daemon = await bench.start(server, shape);
  try {
    const read = async (): Promise<number> => {
      await sleep(SETTLE_MS, undefined, { signal: bench.plan.signal });
      return memoryUse(daemon.running.pid).ownKib / 1024;
    };
    return connected ? await bench.whileConnected(daemon, shape, read) : await read();
  } finally {
    await daemon.running.stop();
  }
}

async function cpuShare(bench: Bench, daemon: Daemon): Promise<number> {
  const seconds = bench.plan.quick ? 5 : 20;
  await sleep(SETTLE_MS, undefined, { signal: bench.plan.signal });
  const before = cpuSeconds(daemon.running.pid);
  await sleep(seconds * 1000, undefined, { signal: bench.plan.signal });
  return (cpuSeconds(daemon.running.pid) - before) / seconds;
}

async function measureIdle(bench: Bench, server: BlockServer): Promise<IdleCost> {
  const unused = (shape: Shape): Promise<number> =>
    freshMemoryMib(bench, { server, shape, connected: false });
  const connected = (shape: Shape): Promise<number> =>
    freshMemoryMib(bench, { server, shape, connected: true });
  const one = { devices: 1, queues: 1 };
  const many = { devices: 1 + IDLE_DEVICES, queues: 1 };
  const furtherUnusedDeviceMib = ((await unused(many)) - (await unused(one))) / IDLE_DEVICES;
  const oneMib = await connected(one);
  const furtherDeviceMib = ((await connected(many)) - oneMib) / IDLE_DEVICES;
  const furtherQueueMib = ((await connected({ devices: 1, queues: 1 + IDLE_QUEUES })) - oneMib) / IDLE_QUEUES;
  const onThreads = (count: number): Promise<number> =>
    connected({ devices: 1, queues: count, threads: count });
  const furtherThread = server.threaded
    ? { furtherThreadMib: ((await onThreads(1 + IDLE_THREADS)) - (await onThreads(1))) / IDLE_THREADS }
    : {};

  const shape = { devices: IDLE_DEVICES, queues: 1 };
  const daemon = await bench.start(server, shape);
  try {
    return {
      server: server.name,
      furtherDeviceMib,
      furtherUnusedDeviceMib,
      furtherQueueMib,
      ...furtherThread,
      devices: IDLE_DEVICES,
      unusedCpuShare: await cpuShare(bench, daemon),
      connectedCpuShare: await bench.whileConnected(daemon, shape, () => cpuShare(bench, daemon)),
    };
  } finally {
    await daemon.running.stop();
  }
}

export async function measureScaling(plan: ScalingPlan): Promise<Scaling> {
  const bench = new Bench(plan, await makeImages(plan));
  const queues = await measureShapes(
    bench,
    queueCounts.map((count) => ({ devices: 1, queues: count, depth: QUEUE_DEPTH })),
  );
  const devices = await measureShapes(
    bench,
    deviceCounts.map((count) => ({ devices: count, queues: 1, depth: DEVICE_DEPTH })),
  );
  const idle: IdleCost[] = [];
  for (const server of plan.servers) {
    const label = `what is idle costs ${server.name}`;
    idle.push(await withProgress(label, () => measureIdle(bench, server), 'bench'));
  }
  return { queues, devices, idle };
}
