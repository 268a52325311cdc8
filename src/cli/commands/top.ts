/** vduse top: what the exports of a storage daemon do, as it goes. */
import { setTimeout as delay } from 'node:timers/promises';
import type { Command } from 'commander';
import { VduseError } from '../../base/errors.js';
import { type CommandContext, checkedOption, createCommand, integerIn } from '../support/command.js';
import { connectToMonitor } from '../support/connect.js';
import type { QmpClient } from '../support/qmp-client.js';
import { formatCount, formatSize, formatUs } from '../support/size.js';
import { formatTable } from '../support/table.js';
import { type ExportActivity, sparkline, TopMeter, topBoundaries } from '../support/top-meter.js';

const examples = `
Asks once an interval, and sets latency histograms on the exports that have none, which is when their queues begin to
measure time; they are taken away at the end. p50 and p99 are of all requests of the interval.

Examples:
  vduse top /run/vduse/qmp.sock
  vduse top /run/vduse/qmp.sock --json --count 10 | jq .exports`;

interface TopFlags {
  readonly json?: true;
  readonly interval: number;
  readonly count?: number;
}

const HISTORY = 24;

export function topCommand(context: CommandContext): Command {
  return createCommand('top', 'show what the exports of a storage daemon do')
    .argument('<socket>', "the monitor's socket, or the name of a device")
    .option('--json', 'print an object a line for each interval')
    .addOption(
      checkedOption(
        '--interval <ms>',
        'milliseconds between two looks',
        integerIn({ min: 50, max: 60_000 }),
      ).default(1000),
    )
    .addOption(checkedOption('--count <n>', 'end after so many intervals', integerIn({ min: 1, max: 1e9 })))
    .addHelpText('after', examples)
    .action((socket: string, flags: TopFlags) => run(context, socket, flags));
}

async function run(context: CommandContext, socket: string, flags: TopFlags): Promise<void> {
  const end = new AbortController();
  const stop = (): void => end.abort();
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  let hasEnded = false;
  const onEnd = (): void => {
    hasEnded = true;
    stop();
  };
  const client = await connectToMonitor(socket, { onEnd });
  const timed = new Set<string>();
  const view = flags.json === true ? undefined : new TopView(context);
  try {
    const meter = new TopMeter();
    meter.sample(await ask(client, timed), performance.now());
    for (let n = 0; n < (flags.count ?? Number.POSITIVE_INFINITY) && !end.signal.aborted; n++) {
      await delay(flags.interval, undefined, { signal: end.signal }).catch(() => undefined);
      if (end.signal.aborted) {
        break;
      }
      const activities = meter.sample(await ask(client, timed), performance.now());
      if (view === undefined) {
        context.print(`${JSON.stringify({ time: new Date().toISOString(), exports: activities })}\n`);
      } else {
        view.show(activities);
      }
    }
    if (hasEnded) {
      throw new VduseError('ABORTED', `${socket}: the monitor has ended the connection`);
    }
  } finally {
    for (const id of timed) {
      await client.execute('block-latency-histogram-set', { id }).catch(() => undefined);
    }
    client.close();
    process.off('SIGINT', stop);
    process.off('SIGTERM', stop);
  }
}

/** The counters; sees to it that times are measured. */
async function ask(client: QmpClient, timed: Set<string>): Promise<Parameters<TopMeter['sample']>[0]> {
  const answer = await client.execute('query-blockstats');
  for (const id of TopMeter.untimed(answer)) {
    await client.execute('block-latency-histogram-set', { id, boundaries: [...topBoundaries] });
    timed.add(id);
  }
  return answer;
}

class TopView {
  readonly #context: CommandContext;
  readonly #history = new Map<string, number[]>();

  constructor(context: CommandContext) {
    this.#context = context;
  }

  show(activities: readonly ExportActivity[]): void {
    const rows = activities.map((activity) => {
      const operations = activity.readsPerSecond + activity.writesPerSecond;
      const history = [...(this.#history.get(activity.id) ?? []), operations].slice(-HISTORY);
      this.#history.set(activity.id, history);
      return [
        activity.id,
        activity.node,
        formatCount(activity.readsPerSecond),
        formatCount(activity.writesPerSecond),
        formatSize(Math.round(activity.readBytesPerSecond)),
        formatSize(Math.round(activity.writeBytesPerSecond)),
        formatLatency(activity.p50Us),
        formatLatency(activity.p99Us),
        `${activity.inFlight}`,
        `${activity.errors}`,
        sparkline(history),
      ];
    });
    const header = [
      'EXPORT',
      'NODE',
      'R/s',
      'W/s',
      'READ/s',
      'WRITE/s',
      'P50',
      'P99',
      'DEPTH',
      'ERRORS',
      'IOPS',
    ];
    const text = rows.length === 0 ? 'There are no exports.' : formatTable(header, rows);
    // What goes to a file or a pipe is there to be kept.
    if (this.#context.terminal.interactive && process.stdout.isTTY) {
      this.#context.terminal.live(text);
    } else {
      this.#context.print(`${text}\n`);
    }
  }
}

function formatLatency(us: number | undefined): string {
  return us === undefined ? '-' : formatUs(us);
}
