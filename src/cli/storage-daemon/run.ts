/** The life of the daemon process: start-up in the given order, serving, and an orderly end. */
import { VduseError } from '../../base/errors.js';
import { createLogger, type Logger } from '../../base/log.js';
import { openBlockNode } from '../../block/open.js';
import { StorageDaemon } from '../../daemon/storage-daemon.js';
import { createVduseBlkExport } from '../../daemon/vduse-export.js';
import { createVhostUserBlkExport } from '../../daemon/vhost-user-export.js';
import { QueueThreadPool } from '../../worker/queue-thread-pool.js';
import {
  type CommandLine,
  inOption,
  parseCommandLine,
  programName,
  type StartupPlan,
} from './command-line.js';
import { type BackgroundProcess, backgroundProcess, startInBackground } from './daemonize.js';

const SHUTDOWN_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
/** The longest interval there is. */
const KEEP_ALIVE_MS = 2 ** 31 - 1;

/** Returns the exit status: 0, or 1 on any failure. */
export async function main(args: readonly string[]): Promise<number> {
  const background = backgroundProcess();
  let commandLine: CommandLine;
  try {
    commandLine = parseCommandLine(args);
  } catch (error) {
    return fail(error);
  }
  if (commandLine.plan === undefined) {
    process.stdout.write(commandLine.print);
    return 0;
  }
  if (commandLine.plan.daemonize && background === undefined) {
    return startInBackground(args);
  }
  return run(commandLine.plan, background);
}

async function run(plan: StartupPlan, background: BackgroundProcess | undefined): Promise<number> {
  // The process lives until it is told to end, also when nothing (no monitor, no export) holds its event loop.
  const keepAlive = setInterval(() => undefined, KEEP_ALIVE_MS);
  try {
    return await serve(plan, background);
  } finally {
    clearInterval(keepAlive);
  }
}

async function serve(plan: StartupPlan, background: BackgroundProcess | undefined): Promise<number> {
  const logger = createLogger({ level: plan.logLevel, format: plan.logFormat });
  let hosts: QueueThreadPool;
  try {
    hosts = new QueueThreadPool({ logger });
  } catch (error) {
    return fail(error);
  }
  const daemon = new StorageDaemon({
    openBlockNode,
    exportCreators: {
      'vduse-blk': (options) => createVduseBlkExport(options, { hosts, logger }),
      'vhost-user-blk': (options) => createVhostUserBlkExport(options, { hosts, logger }),
    },
    logger,
  });
  let status = 0;
  endOnSignals(daemon);
  background?.onAbandoned(() => daemon.requestShutdown('the process that started the daemon has gone'));
  process.on('uncaughtException', (error) => {
    // A device whose process just vanishes leaves its users waiting for ever: end in order as far as possible.
    logger.fatal({ err: error }, 'unexpected error');
    status = 1;
    daemon.requestShutdown('unexpected error');
  });
  try {
    await startUp(daemon, plan, logger);
    await background?.ready();
    logger.info('ready');
    await shutdownRequested(daemon);
  } catch (error) {
    if (error !== daemon.shutdownSignal.reason) {
      status = fail(error);
    }
  }
  await daemon.close();
  await hosts.close();
  return daemon.endedCleanly ? status : 1;
}

/** Throws the first step's error, or the reason of a shutdown that was asked for meanwhile. */
async function startUp(daemon: StorageDaemon, plan: StartupPlan, logger: Logger): Promise<void> {
  if (plan.trace) {
    logger.warn('--trace has no effect: there is no tracing; --log-level debug tells more');
  }
  for (const step of plan.steps) {
    try {
      await step.apply(daemon);
    } catch (error) {
      const isOurs = error instanceof VduseError && error !== daemon.shutdownSignal.reason;
      throw isOurs ? inOption(step.given, error) : error;
    }
  }
  // QEMU documents this order: a client that sees the file can connect, and nobody was served before.
  if (plan.pidFile !== undefined) {
    await daemon.createPidFile(plan.pidFile);
  }
  daemon.serveMonitors();
}

function endOnSignals(daemon: StorageDaemon): void {
  for (const signal of SHUTDOWN_SIGNALS) {
    // The handler stays: a second signal must not cut short what the first one asked for.
    process.on(signal, () => daemon.requestShutdown(`${signal} received`));
  }
}

async function shutdownRequested(daemon: StorageDaemon): Promise<void> {
  const signal = daemon.shutdownSignal;
  if (signal.aborted) {
    return;
  }
  await new Promise<void>((requested) => {
    signal.addEventListener('abort', () => requested(), { once: true });
  });
}

function fail(error: unknown): number {
  const isOurs = error instanceof VduseError;
  const text = isOurs ? error.message : error instanceof Error ? error.stack : String(error);
  const hint = isOurs && error.hint !== undefined ? `\n${error.hint}` : '';
  process.stderr.write(`${programName}: ${text}${hint}\n`);
  return 1;
}
