/** Measures cells on servers that take turns: interleaved repetitions, so that what disturbs one disturbs all. */
import { join } from 'node:path';
import { say, withProgress } from '../../lab/progress.js';
import { type Backing, backings, backingTitles, type Cell, cellTitle, writes } from './block-cells.js';
import { type BlockServer, nullSizeMib } from './block-servers.js';
import { formatCount, median } from './figures.js';
import { runFio } from './fio.js';
import type { FioClient } from './fio-client.js';
import { dropPageCache, makeImage, syncFile, warmPageCache } from './images.js';
import { cpuSeconds, type Running, startServer } from './processes.js';

export interface Plan {
  readonly cells: readonly Cell[];
  readonly servers: readonly BlockServer[];
  readonly repetitions: number;
  readonly seconds: number;
  readonly imageMib: number;
  readonly client: FioClient;
  /** An empty directory for images and sockets. */
  readonly folder: string;
  readonly signal: AbortSignal;
}

export interface Sample {
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
  /** The server's processor time, all its threads, divided by requests. */
  readonly cpuUsPerIo: number;
}

export interface CellResult {
  readonly cell: Cell;
  /** By server: a sample for each repetition, those of one repetition taken side by side. */
  readonly samples: ReadonlyMap<string, readonly Sample[]>;
}

const WARM_UP_MS = 150;

interface Seat {
  readonly server: BlockServer;
  readonly running: Running;
  readonly socket: string;
  readonly image: string | undefined;
}

/** One fio run with what the server's processor time was before and after it. */
async function takeSample(plan: Plan, cell: Cell, seat: Seat): Promise<Sample> {
  const run = {
    workload: cell.workload,
    sockets: [seat.socket],
    protocol: seat.server.protocol,
    sizeMib: cell.backing === 'null' ? nullSizeMib : plan.imageMib,
  };
  if (cell.backing === 'cached' && seat.image !== undefined) await warmPageCache(seat.image);
  // The other server had the processors: let caches, clocks and pollers settle.
  await runFio(plan.client, { ...run, milliseconds: WARM_UP_MS }, plan.signal);
  const before = cpuSeconds(seat.running.pid);
  const figures = await runFio(
    plan.client,
    { ...run, milliseconds: Math.round(plan.seconds * 1000) },
    plan.signal,
  );
  const cpu = cpuSeconds(seat.running.pid) - before;
  if (cell.backing === 'cached' && seat.image !== undefined && writes(cell)) await syncFile(seat.image);
  return {
    iops: figures.iops,
    bytesPerSecond: figures.bytesPerSecond,
    p50Us: figures.p50Us,
    p99Us: figures.p99Us,
    p999Us: figures.p999Us,
    cpuUsPerIo: (cpu * 1e6) / figures.ios,
  };
}

async function measureCell(plan: Plan, cell: Cell, seats: readonly Seat[]): Promise<CellResult> {
  const samples = new Map(seats.map(({ server }) => [server.name, [] as Sample[]]));
  for (let n = 0; n < plan.repetitions; n++) {
    // The order turns, so that no server is always the one after the same other.
    for (let k = 0; k < seats.length; k++) {
      const seat = seats[(n + k) % seats.length];
      samples.get(seat.server.name)?.push(await takeSample(plan, cell, seat));
    }
  }
  return { cell, samples };
}

/** An image each: image locks are real, and nobody is to warm another one's cache. */
async function makeImages(plan: Plan, backing: Backing): Promise<ReadonlyMap<string, string>> {
  const images = new Map<string, string>();
  if (backing === 'null') return images;
  const label = `writing images of ${plan.imageMib} MiB for the ${backingTitles[backing]}`;
  await withProgress(
    label,
    async () => {
      for (const { name } of plan.servers) {
        plan.signal.throwIfAborted();
        const path = join(plan.folder, `${backing}-${name.replace(/\W+/g, '-')}.img`);
        await makeImage(path, plan.imageMib);
        if (backing === 'direct') await dropPageCache(path);
        images.set(name, path);
      }
    },
    'bench',
  );
  return images;
}

async function startSeats(
  plan: Plan,
  served: { backing: Backing; queues: number; images: ReadonlyMap<string, string> },
): Promise<Seat[]> {
  const seats: Seat[] = [];
  try {
    for (const server of plan.servers) {
      const image = served.images.get(server.name);
      const name = `${served.backing}-${served.queues}-${plan.servers.indexOf(server)}.sock`;
      const socket = join(plan.folder, name);
      const command = server.command({
        backing: served.backing,
        queues: served.queues,
        images: image === undefined ? [] : [image],
        sockets: [socket],
      });
      seats.push({ server, image, socket, running: await startServer(command, [socket]) });
    }
  } catch (error) {
    await stopSeats(seats);
    throw error;
  }
  return seats;
}

async function stopSeats(seats: readonly Seat[]): Promise<void> {
  await Promise.all(seats.map(({ running }) => running.stop()));
}

function tell(result: CellResult, done: string): void {
  const figures = [...result.samples].map(
    ([name, samples]) => `${name} ${formatCount(median(samples.map(({ iops }) => iops)))}`,
  );
  say(`${done} ${cellTitle(result.cell)}: ${figures.join(', ')}`, 'bench');
}

/** All cells, grouped by what the servers have to be started with. */
export async function compare(plan: Plan): Promise<CellResult[]> {
  const results: CellResult[] = [];
  const started = Date.now();
  for (const backing of backings) {
    const ofBacking = plan.cells.filter((cell) => cell.backing === backing);
    if (ofBacking.length === 0) continue;
    const images = await makeImages(plan, backing);
    for (const queues of new Set(ofBacking.map((cell) => cell.workload.queues))) {
      const seats = await startSeats(plan, { backing, queues, images });
      try {
        for (const cell of ofBacking.filter(({ workload }) => workload.queues === queues)) {
          const place = `[${results.length + 1}/${plan.cells.length}]`;
          const left = timeLeft({ started, done: results.length, all: plan.cells.length });
          const label = `${place} ${cellTitle(cell)}${left}`;
          const result = await withProgress(label, () => measureCell(plan, cell, seats), 'bench');
          results.push(result);
          tell(result, place);
        }
      } finally {
        await stopSeats(seats);
      }
    }
  }
  return results;
}

function timeLeft({ started, done, all }: { started: number; done: number; all: number }): string {
  if (done === 0) return '';
  const minutes = (((Date.now() - started) / done) * (all - done)) / 60_000;
  return minutes < 1 ? ', the last minute' : `, about ${Math.ceil(minutes)} min left`;
}
