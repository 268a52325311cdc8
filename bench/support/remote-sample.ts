/** One fio run on a disk that lives elsewhere, with the processor time of all sides. */
import { availableParallelism } from 'node:os';
import { parseFio } from './fio.js';
import { busySeconds, childCpuSeconds, cpuSeconds, runProgram } from './processes.js';
import type { Contestant } from './remote-stores.js';

export interface RemoteWorkload {
  readonly rw: 'randread' | 'randwrite';
  readonly depth: number;
}

export interface RemoteSample {
  readonly iops: number;
  readonly p50Us: number;
  readonly p99Us: number;
  /** Processor time of all threads for each request; the client's is fio's. */
  readonly serverCpuUsPerIo: number;
  readonly clientCpuUsPerIo: number;
  readonly storeCpuUsPerIo: number;
  /** Of all processors' time: what others used meanwhile, or the hypervisor kept back. */
  readonly foreignShare: number;
}

/** A sample that others disturbed more than that is taken again, so often at most. */
export const foreignShareMax = 0.05;
const ATTEMPTS = 3;

export interface RemoteRun {
  readonly workload: RemoteWorkload;
  readonly milliseconds: number;
  readonly signal: AbortSignal;
}

const WARM_UP_MS = 200;

interface Costs {
  readonly figures: ReturnType<typeof parseFio>;
  readonly serverSeconds: number;
  readonly clientSeconds: number;
  readonly storeSeconds: number;
  readonly foreignShare: number;
}

/** Of several processes. */
function cpuSecondsOf(pids: readonly number[]): number {
  return pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0);
}

function ownCpuSeconds(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) / 1e6;
}

async function runOnce({ command, args, serverPids, storePids }: Contestant, run: RemoteRun): Promise<Costs> {
  const { rw, depth } = run.workload;
  const serverBefore = cpuSecondsOf(serverPids);
  const storeBefore = cpuSecondsOf(storePids);
  const clientBefore = childCpuSeconds();
  const ownBefore = ownCpuSeconds();
  const busyBefore = busySeconds();
  const startedMs = performance.now();
  const output = await runProgram(
    [
      ...command,
      '--output-format=json',
      '--eta=never',
      '--unified_rw_reporting=1',
      '--name=remote',
      `--rw=${rw}`,
      '--bs=4k',
      `--iodepth=${depth}`,
      '--time_based',
      `--runtime=${run.milliseconds}ms`,
      '--norandommap',
      '--randrepeat=0',
      '--invalidate=0',
      ...args,
    ],
    { signal: run.signal },
  );
  const elapsedSeconds = (performance.now() - startedMs) / 1000;
  const serverSeconds = cpuSecondsOf(serverPids) - serverBefore;
  const clientSeconds = childCpuSeconds() - clientBefore;
  const storeSeconds = cpuSecondsOf(storePids) - storeBefore;
  const known = serverSeconds + clientSeconds + storeSeconds + ownCpuSeconds() - ownBefore;
  const foreign = busySeconds() - busyBefore - known;
  return {
    figures: parseFio(output),
    serverSeconds,
    clientSeconds,
    storeSeconds,
    foreignShare: Math.max(0, foreign) / (elapsedSeconds * availableParallelism()),
  };
}

/** The least disturbed of a few attempts. */
export async function measure(contestant: Contestant, run: RemoteRun): Promise<RemoteSample> {
  let best = await measureOnce(contestant, run);
  for (let n = 1; n < ATTEMPTS && best.foreignShare > foreignShareMax; n++) {
    const again = await measureOnce(contestant, run);
    if (again.foreignShare < best.foreignShare) best = again;
  }
  return best;
}

/** The warm-up is measured too: what a longer run costs more is the requests', and not the client's start. */
async function measureOnce(contestant: Contestant, run: RemoteRun): Promise<RemoteSample> {
  const short = await runOnce(contestant, { ...run, milliseconds: WARM_UP_MS });
  const long = await runOnce(contestant, run);
  const ios = Math.max(1, long.figures.ios - short.figures.ios);
  const perIo = (key: 'serverSeconds' | 'clientSeconds' | 'storeSeconds'): number =>
    ((long[key] - short[key]) * 1e6) / ios;
  return {
    iops: long.figures.iops,
    p50Us: long.figures.p50Us,
    p99Us: long.figures.p99Us,
    serverCpuUsPerIo: perIo('serverSeconds'),
    clientCpuUsPerIo: perIo('clientSeconds'),
    storeCpuUsPerIo: perIo('storeSeconds'),
    foreignShare: long.foreignShare,
  };
}
