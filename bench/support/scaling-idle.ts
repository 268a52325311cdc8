/** What those queues and devices of a daemon cost that nobody uses: memory, and processor time. */
import { setTimeout as sleep } from 'node:timers/promises';
import { withProgress } from '../../lab/progress.js';
import type { BlockServer } from './block-servers.js';
import { runFio } from './fio.js';
import { cpuSeconds, memoryUse } from './processes.js';
import type { Daemon, ScalingBench, Shape } from './scaling.js';
import { CellFailure, withAttempts } from './seat.js';

const IDLE_DEVICES = 16;
const IDLE_QUEUES = 15;
const IDLE_THREADS = 4;
const CONNECTED_MS = 60_000;
const SETTLE_MS = 1_500;
const SHARE_SECONDS = 20;
const SHARE_SECONDS_QUICK = 5;

/** Memory in MiB, processor time as a share of one core. */
export interface IdleFigures {
  /** With a client that is connected and asks for nothing. */
  readonly furtherDeviceMib: number;
  /** Without one. */
  readonly furtherUnusedDeviceMib: number;
  readonly furtherQueueMib: number;
  /** A further queue on a further thread. */
  readonly furtherThreadMib?: number;
  readonly unusedCpuShare: number;
  readonly connectedCpuShare: number;
}

export interface IdleCost {
  readonly server: string;
  /** Of the shares of a core. */
  readonly devices: number;
  /** Or why there are none. */
  readonly found: IdleFigures | { readonly failure: string };
}

/** While clients are connected to all devices and have asked for one block each. */
async function whileConnected<T>(
  bench: ScalingBench,
  { daemon, queues }: { daemon: Daemon; queues: number },
  work: () => Promise<T>,
): Promise<T> {
  const end = new AbortController();
  const { client, signal } = bench.plan;
  const workload = { rw: 'randread', bs: '4k', depth: 1, queues } as const;
  const run = { ...bench.fio(daemon, workload, CONNECTED_MS), extra: ['--thinktime=120s'] };
  const clients = runFio(client, run, AbortSignal.any([end.signal, signal])).catch((error: Error) => {
    if (!end.signal.aborted) throw error;
  });
  try {
    return await Promise.race([work(), clients.then(() => Promise.reject(new Error('fio ended early')))]);
  } finally {
    end.abort();
    await clients.catch(() => undefined);
  }
}

/** What `read` finds in a fresh daemon of this shape that has come to rest, with or without clients. */
async function inFreshDaemon(
  bench: ScalingBench,
  { server, shape, connected }: { server: BlockServer; shape: Shape; connected: boolean },
  read: (pid: number) => number | Promise<number>,
): Promise<number> {
  const { signal } = bench.plan;
  const attempt = async (): Promise<number> => {
    const daemon = await bench.start(server, shape);
    const { queues } = shape;
    const settled = async (): Promise<number> => {
      // fio's processes start half a second after their parent has asked for sizes.
      await sleep(SETTLE_MS + (connected ? 500 : 0), undefined, { signal });
      return await read(daemon.seat.pid);
    };
    try {
      return connected ? await whileConnected(bench, { daemon, queues }, settled) : await settled();
    } finally {
      await daemon.seat.stop();
    }
  };
  return await withAttempts(server.name, attempt, signal);
}

async function measureServer(bench: ScalingBench, server: BlockServer): Promise<IdleFigures> {
  const ownMib = (pid: number): number => memoryUse(pid).ownKib / 1024;
  const seconds = bench.plan.quick ? SHARE_SECONDS_QUICK : SHARE_SECONDS;
  const share = async (pid: number): Promise<number> => {
    const before = cpuSeconds(pid);
    await sleep(seconds * 1000, undefined, { signal: bench.plan.signal });
    return (cpuSeconds(pid) - before) / seconds;
  };
  const unused = (shape: Shape, read = ownMib as typeof share | typeof ownMib): Promise<number> =>
    inFreshDaemon(bench, { server, shape, connected: false }, read);
  const connected = (shape: Shape, read = ownMib as typeof share | typeof ownMib): Promise<number> =>
    inFreshDaemon(bench, { server, shape, connected: true }, read);
  const onThreads = (count: number): Promise<number> =>
    connected({ devices: 1, queues: count, threads: count });

  const one = { devices: 1, queues: 1 };
  const many = { devices: 1 + IDLE_DEVICES, queues: 1 };
  const idle = { devices: IDLE_DEVICES, queues: 1 };
  const oneMib = await connected(one);
  return {
    furtherUnusedDeviceMib: ((await unused(many)) - (await unused(one))) / IDLE_DEVICES,
    furtherDeviceMib: ((await connected(many)) - oneMib) / IDLE_DEVICES,
    furtherQueueMib: ((await connected({ devices: 1, queues: 1 + IDLE_QUEUES })) - oneMib) / IDLE_QUEUES,
    ...(server.threaded
      ? { furtherThreadMib: ((await onThreads(1 + IDLE_THREADS)) - (await onThreads(1))) / IDLE_THREADS }
      : {}),
    unusedCpuShare: await unused(idle, share),
    connectedCpuShare: await connected(idle, share),
  };
}

export async function measureIdle(bench: ScalingBench): Promise<IdleCost[]> {
  const costs: IdleCost[] = [];
  for (const server of bench.plan.servers) {
    const work = async (): Promise<IdleCost['found']> => {
      try {
        return await measureServer(bench, server);
      } catch (error) {
        if (!(error instanceof CellFailure)) throw error;
        return { failure: error.message };
      }
    };
    const found = await withProgress(`what is idle costs ${server.name}`, work, 'bench');
    costs.push({ server: server.name, devices: IDLE_DEVICES, found });
  }
  return costs;
}
