/** How a daemon grows: with queues and with devices, under load. */
import { join } from 'node:path';
import { say, withProgress } from '../../lab/progress.js';
import type { BlockServer } from './block-servers.js';
import { formatCount, median } from './figures.js';
import { type FioRun, runFio } from './fio.js';
import type { FioClient } from './fio-client.js';
import { makeImage, warmPageCache } from './images.js';
import { cpuSeconds, memoryUse, startServer, threadCount } from './processes.js';
import { CellFailure, Seat } from './seat.js';

const IMAGE_MIB = 16;
const QUEUE_DEPTH = 32;
/** Of each device, when there are several. */
const DEVICE_DEPTH = 8;

export interface ScalingPlan {
  readonly servers: readonly BlockServer[];
  readonly client: FioClient;
  readonly folder: string;
  readonly signal: AbortSignal;
  readonly quick: boolean;
  readonly repetitions: number;
  readonly seconds: number;
}

export interface Shape {
  readonly devices: number;
  readonly queues: number;
  readonly threads?: number;
}

export interface LoadedShape extends Shape {
  /** Of each queue. */
  readonly depth: number;
}

export interface ScalingFigures {
  readonly iops: number;
  readonly cpuUsPerIo: number;
  /** After the load, without memory that is shared with clients. */
  readonly ownMib: number;
  readonly threads: number;
}

export interface ScalingPoint extends LoadedShape {
  readonly server: string;
  /** Or why there are none. */
  readonly found: ScalingFigures | { readonly failure: string };
}

/** The shapes by queues of one device, and by devices in one daemon. */
export const scalingParts = {
  queues: { counts: [1, 2, 4, 8, 16], quick: [1, 4, 16] },
  devices: { counts: [1, 4, 16, 64], quick: [1, 16] },
} as const;
export type ScalingPart = keyof typeof scalingParts;

function shapeOf(part: ScalingPart, count: number): LoadedShape {
  return part === 'queues'
    ? { devices: 1, queues: count, depth: QUEUE_DEPTH }
    : { devices: count, queues: 1, depth: DEVICE_DEPTH };
}

export interface Daemon {
  readonly seat: Seat;
  readonly sockets: readonly string[];
}

/** Starts servers on images of their own. */
export class ScalingBench {
  #runs = 0;
  readonly #images = new Map<string, string[]>();

  constructor(readonly plan: ScalingPlan) {}

  async start(server: BlockServer, shape: Shape): Promise<Daemon> {
    this.plan.signal.throwIfAborted();
    const run = this.#runs++;
    const { devices } = shape;
    const sockets = Array.from({ length: devices }, (_, n) => join(this.plan.folder, `${run}-${n}.sock`));
    const images = await this.#imagesOf(server.name, devices);
    const command = server.command({ ...shape, backing: 'cached', images, sockets });
    return { sockets, seat: await Seat.take(server, () => startServer(command, sockets)) };
  }

  fio({ seat, sockets }: Daemon, workload: FioRun['workload'], milliseconds: number): FioRun {
    return { workload, sockets, protocol: seat.server.protocol, milliseconds, sizeMib: IMAGE_MIB };
  }

  /** Image locks are real, so a server has its own; those that are there are used again. */
  async #imagesOf(server: string, count: number): Promise<readonly string[]> {
    const images = this.#images.get(server) ?? [];
    this.#images.set(server, images);
    const missing = count - images.length;
    if (missing <= 0) return images.slice(0, count);
    const number = [...this.#images.keys()].indexOf(server);
    const work = async (): Promise<void> => {
      while (images.length < count) {
        this.plan.signal.throwIfAborted();
        const path = join(this.plan.folder, `${number}-${images.length}.img`);
        await makeImage(path, IMAGE_MIB);
        await warmPageCache(path);
        images.push(path);
      }
    };
    await withProgress(`writing ${missing} images of ${IMAGE_MIB} MiB`, work, 'bench');
    return images;
  }
}

type Load = Pick<ScalingFigures, 'iops' | 'cpuUsPerIo'>;

async function loadOnce(bench: ScalingBench, daemon: Daemon, { depth, queues }: LoadedShape): Promise<Load> {
  const { client, seconds, signal } = bench.plan;
  const workload = { rw: 'randread', bs: '4k', depth, queues } as const;
  const run = async (): Promise<Load> => {
    await runFio(client, bench.fio(daemon, workload, 100), signal);
    const before = cpuSeconds(daemon.seat.pid);
    const { iops, ios } = await runFio(
      client,
      bench.fio(daemon, workload, Math.round(seconds * 1000)),
      signal,
    );
    return { iops, cpuUsPerIo: ((cpuSeconds(daemon.seat.pid) - before) * 1e6) / ios };
  };
  return await daemon.seat.work(run, signal);
}

function figuresOf({ seat }: Daemon, loads: readonly Load[]): ScalingFigures {
  return {
    iops: median(loads.map(({ iops }) => iops)),
    cpuUsPerIo: median(loads.map(({ cpuUsPerIo }) => cpuUsPerIo)),
    ownMib: memoryUse(seat.pid).ownKib / 1024,
    threads: threadCount(seat.pid),
  };
}

/** One shape on all servers, which take turns. */
async function measureShape(bench: ScalingBench, shape: LoadedShape): Promise<ScalingPoint[]> {
  const { servers, repetitions } = bench.plan;
  const daemons: Daemon[] = [];
  try {
    for (const server of servers) daemons.push(await bench.start(server, shape));
    const loads = daemons.map(() => [] as Load[]);
    const failures = daemons.map((): string | undefined => undefined);
    for (let n = 0; n < repetitions; n++) {
      for (let k = 0; k < daemons.length; k++) {
        const turn = (n + k) % daemons.length;
        if (failures[turn] !== undefined) continue;
        try {
          loads[turn].push(await loadOnce(bench, daemons[turn], shape));
        } catch (error) {
          if (!(error instanceof CellFailure)) throw error;
          failures[turn] = error.message;
        }
      }
    }
    return daemons.map((daemon, n) => {
      const failure = failures[n];
      const found = failure === undefined ? figuresOf(daemon, loads[n]) : { failure };
      return { ...shape, server: daemon.seat.server.name, found };
    });
  } finally {
    await Promise.all(daemons.map(({ seat }) => seat.stop()));
  }
}

/** What a point says in a line of progress. */
function brief({ server, found }: ScalingPoint): string {
  return 'failure' in found ? found.failure : `${server} ${formatCount(found.iops)}`;
}

export async function measurePart(bench: ScalingBench, part: ScalingPart): Promise<ScalingPoint[]> {
  const points: ScalingPoint[] = [];
  for (const count of scalingParts[part][bench.plan.quick ? 'quick' : 'counts']) {
    const title = `${part}: ${count}`;
    const found = await withProgress(title, () => measureShape(bench, shapeOf(part, count)), 'bench');
    say(`${title}: ${found.map(brief).join(', ')}`, 'bench');
    points.push(...found);
  }
  return points;
}
