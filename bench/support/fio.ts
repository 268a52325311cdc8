/** fio's command lines and its answers. */
import type { Workload } from './block-cells.js';
import type { FioClient } from './fio-client.js';
import { runProgram } from './processes.js';

export interface FioRun {
  readonly workload: Pick<Workload, 'rw' | 'bs' | 'depth' | 'queues'>;
  /** A vhost-user socket each, or one NBD socket: several are devices side by side. */
  readonly sockets: readonly string[];
  readonly protocol: 'vhost-user' | 'nbd';
  readonly milliseconds: number;
  readonly sizeMib: number;
  /** More of fio's arguments, for every job. */
  readonly extra?: readonly string[];
}

export interface FioFigures {
  readonly iops: number;
  readonly bytesPerSecond: number;
  readonly ios: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly p999Us: number;
}

function engine(protocol: FioRun['protocol'], socket: string): string[] {
  return protocol === 'nbd'
    ? ['--ioengine=nbd', `--uri=nbd+unix:///?socket=${socket}`]
    : ['--ioengine=libblkio', '--libblkio_driver=virtio-blk-vhost-user', `--libblkio_path=${socket}`];
}

export function fioArguments(run: FioRun): string[] {
  const { workload, sockets, protocol } = run;
  const common = [
    `--rw=${workload.rw}`,
    ...(workload.rw === 'randrw' ? ['--rwmixread=70'] : []),
    `--bs=${workload.bs}`,
    `--iodepth=${workload.depth}`,
    `--size=${run.sizeMib}M`,
    '--time_based',
    `--runtime=${run.milliseconds}ms`,
    '--norandommap',
    '--randrepeat=0',
    // Nothing to drop: the page cache that counts is the server's.
    '--invalidate=0',
    `--numjobs=${workload.queues}`,
    ...(run.extra ?? []),
  ];
  // Threads of one fio share a libblkio instance and have a queue each; processes have an instance each. libblkio
  // counts all threads, so devices side by side are processes.
  // fio connects once to each for its size; by the time its processes connect, the servers must have noticed the end
  // of that.
  const threads = sockets.length === 1 ? ['--thread'] : ['--startdelay=500ms'];
  return [
    '--output-format=json',
    '--eta=never',
    '--group_reporting',
    '--unified_rw_reporting=1',
    ...sockets.flatMap((socket, n) => [`--name=${n}`, ...common, ...threads, ...engine(protocol, socket)]),
  ];
}

interface FioAnswer {
  readonly jobs: readonly {
    readonly error: number;
    readonly mixed: {
      readonly iops: number;
      readonly bw_bytes: number;
      readonly total_ios: number;
      readonly clat_ns: { readonly percentile?: Readonly<Record<string, number>> };
    };
  }[];
}

/** Reads fio's JSON. fio may print warnings in front of it. */
export function parseFio(output: string): FioFigures {
  const start = output.indexOf('{');
  if (start === -1) throw new Error(`fio gave no figures: ${output.slice(0, 1024)}`);
  const { jobs } = JSON.parse(output.slice(start)) as FioAnswer;
  const [job] = jobs;
  if (job === undefined || job.error !== 0) throw new Error(`fio's job failed with error ${job?.error}`);
  const { mixed } = job;
  const percentileUs = (name: string): number => (mixed.clat_ns.percentile?.[name] ?? 0) / 1000;
  return {
    iops: mixed.iops,
    bytesPerSecond: mixed.bw_bytes,
    ios: mixed.total_ios,
    p50Us: percentileUs('50.000000'),
    p99Us: percentileUs('99.000000'),
    p999Us: percentileUs('99.900000'),
  };
}

/** Beyond its running time: fio starts within a second, on a busy machine within several, and a process for each device. */
const STARTING_MS = 10_000;
const STARTING_MS_PER_DEVICE = 100;

export async function runFio(client: FioClient, run: FioRun, signal: AbortSignal): Promise<FioFigures> {
  const limitMs = 2 * run.milliseconds + STARTING_MS + STARTING_MS_PER_DEVICE * run.sockets.length;
  return parseFio(await runProgram([...client.command, ...fioArguments(run)], { signal, limitMs }));
}
