/** The life of `vduse bench`: a node, jobs on it, and figures. */
import { VduseError } from '../../base/errors.js';
import type { BlockNode, BlockNodeOptions } from '../../block/node.js';
import type { DirectionFigures } from '../../daemon/bench/load-counters.js';
import { type Measurement, measure } from '../../daemon/bench/measure.js';
import { systemCallError } from '../../native/ffi.js';
import type { BenchFlags } from '../commands/bench.js';
import type { CommandContext } from './command.js';
import { InterruptedError, UsageError } from './errors.js';
import { Interruption } from './interruption.js';
import { reportErrors } from './json-errors.js';
import { terminalLogger } from './logger.js';
import { NodeSession, nodeArgument } from './node-session.js';
import { formatCount, formatSeconds, formatSize, formatUs } from './size.js';
import { withoutSecrets } from './without-secrets.js';

const blockBytesMax = 16 << 20;
/** Of all requests in flight. */
const memoryBytesMax = 2 ** 30;

/** Throws UsageError for arguments that can't be. Other errors are an event with --json. */
export async function runBench(node: string, flags: BenchFlags, context: CommandContext): Promise<void> {
  const options = nodeArgument(node, 'node');
  if (flags.bs < 512 || flags.bs > blockBytesMax) {
    throw new UsageError(`--bs: blocks have 512 bytes to ${formatSize(blockBytesMax)}`);
  }
  if (flags.bs * flags.iodepth * flags.numjobs > memoryBytesMax) {
    throw new UsageError(
      `--bs, --iodepth and --numjobs: together they want more than ${formatSize(memoryBytesMax)} of memory`,
    );
  }
  await reportErrors(context, flags.json === true, () =>
    new Bench(withoutSecrets(node), flags, context).run(options),
  );
}

/** The part of a node that is worked on. Throws INVALID_ARGUMENT. */
export function benchRegion(
  node: Pick<BlockNode, 'size' | 'limits'>,
  flags: Pick<BenchFlags, 'bs' | 'size' | 'offset'>,
): { readonly offset: number; readonly blocks: number } {
  const { bs, offset } = flags;
  const alignment = node.limits.requestAlignment;
  const invalid = (message: string) => new VduseError('INVALID_ARGUMENT', message);
  for (const [name, value] of [
    ['--bs', bs],
    ['--offset', offset],
  ] as const) {
    if (value % alignment !== 0) {
      throw invalid(`${name} ${value}: the node takes multiples of ${alignment} bytes`);
    }
  }
  if (offset + (flags.size ?? 0) > node.size) {
    throw invalid(`--offset and --size: the node has ${node.size} bytes`);
  }
  const blocks = Math.floor((flags.size ?? node.size - offset) / bs);
  if (blocks === 0) {
    throw invalid(`--bs ${bs}: there is no room for one block`);
  }
  return { offset, blocks };
}

class Bench {
  readonly #name: string;
  readonly #flags: BenchFlags;
  readonly #context: CommandContext;

  constructor(name: string, flags: BenchFlags, context: CommandContext) {
    this.#name = name;
    this.#flags = flags;
    this.#context = context;
  }

  async run(options: BlockNodeOptions): Promise<void> {
    const { terminal } = this.#context;
    const session = new NodeSession(terminalLogger(terminal, { logLevel: 'warn', logFormat: 'text' }));
    const interruption = Interruption.impatient();
    try {
      await session.addObjects(this.#flags.object ?? []);
      const node = await this.#open(session, options);
      const region = benchRegion(node, this.#flags);
      const result = await this.#measure(node, region, interruption.signal);
      terminal.live('');
      this.#report(result, region);
      await session.close();
      if (interruption.received !== undefined) {
        throw new InterruptedError(interruption.received, `${interruption.received}: it ended early`);
      }
    } finally {
      interruption.close();
      terminal.live('');
    }
  }

  async #open(session: NodeSession, options: BlockNodeOptions): Promise<BlockNode> {
    const { rw, direct, write } = this.#flags;
    const opened = direct === true ? { ...options, cache: { ...options.cache, direct: true } } : options;
    const writes = readPercent(this.#flags) < 100;
    const forgets = options.driver === 'memory' || options.driver === 'null-co';
    if (!writes) {
      return session.open({ ...opened, readOnly: true });
    }
    if (write === true || forgets) {
      const node = await session.openWritable(opened);
      if (!forgets && this.#flags.json !== true) {
        const { offset, blocks } = benchRegion(node, this.#flags);
        const size = formatSize(blocks * this.#flags.bs);
        this.#context.terminal.say(`Overwriting ${size} of '${this.#name}', from byte ${offset} on.`);
      }
      return node;
    }
    const node = await session.open({ ...opened, readOnly: true });
    const { offset, blocks } = benchRegion(node, this.#flags);
    const bytes = blocks * this.#flags.bs;
    await session.close();
    throw new UsageError(
      `--rw ${rw} would overwrite ${formatSize(bytes)} of '${this.#name}', from byte ${offset} on: what it holds there would be lost`,
      'Add --write if nothing there is needed.',
    );
  }

  #measure(
    node: BlockNode,
    region: { readonly offset: number; readonly blocks: number },
    signal: AbortSignal,
  ): Promise<Measurement> {
    const { rw, bs, iodepth, numjobs, runtime, ramp_time } = this.#flags;
    const jobs = Array.from({ length: numjobs }, (_, n) => ({
      isRandom: rw.startsWith('rand'),
      readPercent: readPercent(this.#flags),
      blockBytes: bs,
      depth: iodepth,
      ...region,
      firstBlock: Math.floor((region.blocks * n) / numjobs),
      rampMs: ramp_time * 1000,
      runtimeMs: runtime * 1000,
    }));
    let last = { ios: 0, bytes: 0, atMs: performance.now() };
    const onLook = (ios: number, bytes: number): void => {
      const atMs = performance.now();
      const perSecond = (count: number): number => (count / Math.max(1, atMs - last.atMs)) * 1000;
      const rates = `${formatCount(perSecond(ios - last.ios))} IOPS  ${formatSize(Math.round(perSecond(bytes - last.bytes)))}/s`;
      this.#context.terminal.live(`${rw} ${this.#name}  ${rates}`);
      last = { ios, bytes, atMs };
    };
    return measure({ engine: node.engine, jobs, signal, onLook });
  }

  #report(result: Measurement, region: { readonly offset: number; readonly blocks: number }): void {
    const { rw, bs, iodepth, numjobs, json } = this.#flags;
    const { seconds, read, write, errors, cpu } = result;
    const ios = Math.max(1, read.ios + write.ios);
    const failure =
      errors === 0 ? undefined : systemCallError('request', result.firstErrno, `on '${this.#name}'`).message;
    const cpuFigures = {
      userUsPerIo: cpu.userUs / ios,
      systemUsPerIo: cpu.systemUs / ios,
      percent: (cpu.userUs + cpu.systemUs) / seconds / 1e4,
    };
    const perSecond = (figures: DirectionFigures) => ({
      ...figures,
      iops: figures.ios / seconds,
      bytesPerSecond: figures.bytes / seconds,
    });
    const { print } = this.#context;
    if (json === true) {
      const job = { node: this.#name, rw, bs, iodepth, numjobs, ...region };
      const figures = { seconds, read: perSecond(read), write: perSecond(write), cpu: cpuFigures };
      print(`${JSON.stringify({ ...job, ...figures, errors, firstError: failure ?? null })}\n`);
    } else {
      const jobs = numjobs === 1 ? '' : `, ${numjobs} jobs`;
      print(
        `${this.#name}: ${rw}, blocks of ${formatSize(bs)}, depth ${iodepth}${jobs}, ${formatSeconds(seconds)}\n`,
      );
      print([direction('read', perSecond(read)), direction('write', perSecond(write))].join(''));
      print(
        `  cpu    ${formatUs(cpuFigures.userUsPerIo + cpuFigures.systemUsPerIo)} a request (${formatUs(cpuFigures.userUsPerIo)} user, ${formatUs(cpuFigures.systemUsPerIo)} system), ${cpuFigures.percent.toFixed(0)}% of a processor\n`,
      );
    }
    if (failure !== undefined) {
      throw new VduseError('SYSTEM_CALL', `${errors} requests have failed; the first one: ${failure}`);
    }
  }
}

function readPercent({ rw, rwmixread }: BenchFlags): number {
  switch (rw) {
    case 'read':
    case 'randread':
      return 100;
    case 'write':
    case 'randwrite':
      return 0;
    default:
      return rwmixread;
  }
}

function direction(
  name: string,
  figures: DirectionFigures & { readonly iops: number; readonly bytesPerSecond: number },
): string {
  if (figures.ios === 0) {
    return '';
  }
  const { iops, bytesPerSecond, meanUs, p50Us, p99Us, p999Us, maxUs } = figures;
  const times = [
    ['mean', meanUs],
    ['p50', p50Us],
    ['p99', p99Us],
    ['p99.9', p999Us],
    ['max', maxUs],
  ] as const;
  const latency = times.map(([what, us]) => `${what} ${formatUs(us)}`).join('  ');
  return `  ${name.padEnd(5)}  ${formatCount(iops)} IOPS  ${formatSize(Math.round(bytesPerSecond))}/s  ${latency}\n`;
}
