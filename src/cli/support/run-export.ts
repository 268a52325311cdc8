/** From the options of `vduse export` to a session that runs. */
import { resolve } from 'node:path';
import { limits } from '../../base/limits.js';
import type { AioMode, BlockNodeOptions, DetectZeroes, DiscardMode } from '../../block/node.js';
import { deviceNameFor, fileNodeOptions, namedNodeOptions } from '../../daemon/export-disk.js';
import { compact } from '../../qmp/qapi.js';
import { type CommandContext, checked } from './command.js';
import { UsageError } from './errors.js';
import { JsonReport, TextReport } from './export-report.js';
import { ExportSession, type ExportSettings } from './export-session.js';
import { checkImageName, experimentName, experimentNode } from './image-source.js';
import type { LogOptions } from './log-options.js';
import { terminalLogger } from './logger.js';
import { withoutSecrets } from './without-secrets.js';

export interface ExportFlags extends LogOptions {
  readonly readOnly?: true;
  readonly name?: string;
  readonly serial?: string;
  readonly queues: number;
  readonly queueSize: number;
  readonly blockSize?: number;
  /** False with --no-attach. */
  readonly attach: boolean;
  readonly vhost?: true;
  /** A socket's path. */
  readonly vhostUser?: string;
  readonly cacheDirect?: true;
  readonly discard?: DiscardMode;
  readonly detectZeroes?: DetectZeroes;
  readonly aio?: AioMode;
  readonly threads?: number;
  readonly cpus?: readonly number[];
  readonly pollUs?: number;
  readonly irqCpus?: readonly number[];
  readonly json?: true;
  readonly interval: number;
}

/** Returns the exit status. Throws UsageError for options that do not go together. */
export function runExport(image: string, flags: ExportFlags, context: CommandContext): Promise<number> {
  const { terminal, print } = context;
  const settings = exportSettings(image, flags);
  const report = flags.json === true ? new JsonReport(print) : new TextReport(terminal, print);
  return new ExportSession(settings, report, terminalLogger(terminal, flags)).run();
}

/** Throws UsageError for options that do not go together. */
export function exportSettings(image: string, flags: ExportFlags): ExportSettings {
  checkImageName(image);
  if (!flags.attach && flags.vhost === true) {
    throw new UsageError('--vhost and --no-attach exclude each other');
  }
  if (flags.vhostUser !== undefined && (!flags.attach || flags.vhost === true)) {
    throw new UsageError('--vhost-user serves on a socket: --vhost and --no-attach are for VDUSE devices');
  }
  const name = flags.name ?? deviceNameFor(experimentName(image) ?? image);
  return {
    node: nodeOptions(image, flags),
    image,
    name,
    nameIsDerived: flags.name === undefined,
    serial: flags.serial ?? name.slice(0, limits.serialBytesMax),
    queues: flags.queues,
    queueSize: flags.queueSize,
    blockSize: flags.blockSize,
    binding: !flags.attach ? false : flags.vhost === true ? 'vhost' : 'virtio',
    vhostUser: flags.vhostUser,
    threads: { ...compact({ size: flags.threads, cpus: flags.cpus, pollUs: flags.pollUs }) },
    irqCpus: flags.irqCpus,
    intervalMs: flags.interval * 1000,
  };
}

const nodeName = 'disk';

function nodeOptions(image: string, flags: ExportFlags): BlockNodeOptions {
  const { discard = 'unmap', detectZeroes = 'off', aio } = flags;
  if (detectZeroes === 'unmap' && discard !== 'unmap') {
    throw new UsageError('--detect-zeroes unmap needs --discard unmap');
  }
  const common = { nodeName, readOnly: flags.readOnly === true, discard, detectZeroes };
  const experiment =
    experimentNode(image, nodeName) ??
    checked(withoutSecrets(image), () => namedNodeOptions(image, nodeName));
  if (experiment !== undefined) {
    if (flags.cacheDirect === true || aio !== undefined) {
      throw new UsageError(`--cache-direct and --aio are for images and disks, not for ${image}`);
    }
    return { ...experiment, ...common };
  }
  if (aio === 'native' && flags.cacheDirect !== true) {
    throw new UsageError('--aio native needs --cache-direct');
  }
  return {
    ...fileNodeOptions(resolve(image), nodeName),
    ...common,
    cache: { direct: flags.cacheDirect === true },
    ...(aio === undefined ? {} : { aio }),
  };
}
