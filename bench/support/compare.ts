/** Measures cells on servers that take turns: interleaved repetitions, so that what disturbs one disturbs all. */
import { join } from 'node:path';
import { say, withProgress } from '../../lab/progress.js';
import { type Backing, backings, backingTitles, type Cell, cellTitle, writes } from './block-cells.js';
import { type BlockServer, nullSizeMib } from './block-servers.js';
import { formatCount, median } from './figures.js';
import { runFio } from './fio.js';
import type { FioClient } from './fio-client.js';
import { dropPageCache, makeImage, syncFile, warmPageCache } from './images.js';
import { cpuSeconds, startServer } from './processes.js';
import { CellFailure, Seat } from './seat.js';

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
  /** By server: a sample for each repetition, those of one repetition taken side by side. None where it failed. */
  readonly samples: ReadonlyMap<string, readonly Sample[]>;
  /** By server: why it has no samples. */
  readonly failures: ReadonlyMap<string, string>;
}

const WARM_UP_MS = 150;

interface Place {
  readonly seat: Seat;
  readonly socket: string;
  readonly image: string | undefined;
}

/** One fio run with what the server's processor time was before and after it. */
async function takeSample(plan: Plan, cell: Cell, { seat, socket, image }: Place): Promise<Sample> {
  const run = {
    workload: cell.workload,
    sockets: [socket],
    protocol: seat.server.protocol,
    sizeMib: cell.backing === 'null' ? nullSizeMib : plan.imageMib,
  };
  if (cell.backing === 'cached' && image !== undefined) await warmPageCache(image);
  // The other server had the processors: let caches, clocks and pollers settle.
  await runFio(plan.client, { ...run, milliseconds: WARM_UP_MS }, plan.signal);
  const before = cpuSeconds(seat.pid);
  const figures = await runFio(
    plan.client,
    { ...run, milliseconds: Math.round(plan.seconds * 1000) },
    plan.signal,
  );
  const cpu = cpuSeconds(seat.pid) - before;
  if (cell.backing === 'cached' && image !== undefined && writes(cell)) await syncFile(image);
  return {
    iops: figures.iops,
    bytesPerSecond: figures.bytesPerSecond,
    p50Us: figures.p50Us,
    p99Us: figures.p99Us,
    p999Us: figures.p999Us,
    cpuUsPerIo: (cpu * 1e6) / figures.ios,
  };
}

async function measureCell(plan: Plan, cell: Cell, places: readonly Place[]): Promise<CellResult> {
  const samples = new Map(places.map(({ seat }) => [seat.server.name, [] as Sample[]]));
  const failures = new Map<string, string>();
  for (let n = 0; n < plan.repetitions; n++) {
    // The order turns, so that no server is always the one after the same other.
    for (let k = 0; k < places.length; k++) {
      const place = places[(n + k) % places.length];
      const { name } = place.seat.server;
      if (failures.has(name)) continue;
      try {
        const sample = await place.seat.work(() => takeSample(plan, cell, place), plan.signal);
        samples.get(name)?.push(sample);
      } catch (error) {
        if (!(error instanceof CellFailure)) throw error;
        failures.set(name, error.message);
        samples.set(name, []);
      }
    }
  }
  return { cell, samples, failures };
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

async function takePlaces(
  plan: Plan,
  served: { backing: Backing; queues: number; images: ReadonlyMap<string, string> },
): Promise<Place[]> {
  const { backing, queues } = served;
  const places: Place[] = [];
  try {
    for (const [n, server] of plan.servers.entries()) {
      const image = served.images.get(server.name);
      const socket = join(plan.folder, `${backing}-${queues}-${n}.sock`);
      const images = image === undefined ? [] : [image];
      const command = server.command({ backing, queues, images, sockets: [socket] });
      places.push({
        seat: await Seat.take(server, () => startServer(command, [socket])),
        image,
        socket,
      });
    }
  } catch (error) {
    await leavePlaces(places);
    throw error;
  }
  return places;
}

async function leavePlaces(places: readonly Place[]): Promise<void> {
  await Promise.all(places.map(({ seat }) => seat.stop()));
}

function tell(result: CellResult, done: string): void {
  const figures = [...result.samples].map(
    ([name, samples]) =>
      result.failures.get(name) ?? `${name} ${formatCount(median(samples.map(({ iops }) => iops)))}`,
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
      const places = await takePlaces(plan, { backing, queues, images });
      try {
        for (const cell of ofBacking.filter(({ workload }) => workload.queues === queues)) {
          const place = `[${results.length + 1}/${plan.cells.length}]`;
          const left = timeLeft({ started, done: results.length, all: plan.cells.length });
          const label = `${place} ${cellTitle(cell)}${left}`;
          const result = await withProgress(label, () => measureCell(plan, cell, places), 'bench');
          results.push(result);
          tell(result, place);
        }
      } finally {
        await leavePlaces(places);
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
