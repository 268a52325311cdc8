/**
 * The life of `vduse export`: a storage daemon with one node, one export and one monitor. Whatever ends it, and
 * whenever, it takes the disk away before it leaves: a device without its process blocks its users for ever.
 */
import { existsSync } from 'node:fs';
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { VduseError } from '../../base/errors.js';
import type { Logger } from '../../base/log.js';
import type { BlockNodeOptions } from '../../block/node.js';
import { openBlockNode } from '../../block/open.js';
import type { ExportRequest } from '../../daemon/block-export.js';
import { isIdentifier } from '../../daemon/identifier.js';
import { StorageDaemon } from '../../daemon/storage-daemon.js';
import { createVduseBlkExport, type VduseBlkExport } from '../../daemon/vduse-export.js';
import { createVhostUserBlkExport, type VhostUserBlkExport } from '../../daemon/vhost-user-export.js';
import { vdpaBusDevice } from '../../native/vdpa-bus.js';
import { compact } from '../../qmp/qapi.js';
import { QueueThreadPool, type QueueThreadPoolOptions } from '../../worker/queue-thread-pool.js';
import { controlSocketPath, prepareRunDirectory } from './control-socket.js';
import { describeUse, deviceOpeners, diskUses } from './disk-use.js';
import { ExitStatus } from './errors.js';
import type { ExportReport } from './export-report.js';
import { flushDisk } from './flush-disk.js';
import { type Binding, loadModulesFor } from './modules.js';
import { RateMeter } from './rates.js';

export interface ExportSettings {
  readonly node: BlockNodeOptions;
  /** The image as it was given, for people. */
  readonly image: string;
  readonly name: string;
  /** Whether the name was made of the image's. */
  readonly nameIsDerived: boolean;
  readonly serial: string;
  readonly irqCpus: readonly number[] | undefined;
  readonly queues: number;
  readonly queueSize: number;
  readonly blockSize: number | undefined;
  readonly binding: Binding;
  /** The path of a vhost-user socket to serve on instead of a VDUSE device. */
  readonly vhostUser: string | undefined;
  readonly threads: QueueThreadPoolOptions;
  readonly intervalMs: number;
}

/** How long whoever uses the disk at the first Ctrl-C has to let go of it. */
const GRACE_MS = 5000;
const GRACE_STEP_MS = 500;
/** A terminal and a program that passes signals on may both send the same one; nobody presses a key so fast. */
const SAME_SIGNAL_MS = 500;
/** A sync that takes longer than this does not keep a SIGTERM waiting. */
const FLUSH_MS_MAX = 30_000;

/** All that end a process. SIGQUIT too: its core dump would leave the device behind. */
const endSignals = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const;
type EndSignal = (typeof endSignals)[number];

export class ExportSession {
  readonly #settings: ExportSettings;
  readonly #report: ExportReport;
  readonly #hosts: QueueThreadPool;
  readonly #daemon: StorageDaemon;
  /** Aborted by the second signal: do not wait for others any more. */
  readonly #hurry = new AbortController();
  #exported: VduseBlkExport | VhostUserBlkExport | undefined;
  #signal: EndSignal | undefined;
  #signalMs = 0;
  #readyMs: number | undefined;
  #status: number = ExitStatus.OK;
  /** What a signal would have to wait for now. */
  #waitingFor: () => string = () => 'the image to be opened';

  constructor(settings: ExportSettings, report: ExportReport, logger: Logger) {
    this.#settings = settings;
    this.#report = report;
    const hosts = new QueueThreadPool({ ...settings.threads, logger });
    this.#hosts = hosts;
    this.#daemon = new StorageDaemon({
      openBlockNode,
      exportCreators: {
        'vduse-blk': async (options) => {
          this.#exported = await createVduseBlkExport(options, { hosts, logger });
          return this.#exported;
        },
        'vhost-user-blk': async (options) => {
          this.#exported = await createVhostUserBlkExport(options, { hosts, logger });
          return this.#exported;
        },
      },
      logger,
    });
  }

  /** Serves until it is told to end. Returns the exit status. */
  async run(): Promise<number> {
    const unlisten = this.#listen();
    try {
      await this.#start();
      await this.#serve();
    } catch (error) {
      this.#fail(error);
    }
    await this.#end();
    unlisten();
    return this.#status;
  }

  async #start(): Promise<void> {
    const { node, name, vhostUser } = this.#settings;
    const { shutdownSignal } = this.#daemon;
    await this.#daemon.addNode(node);
    if (vhostUser === undefined) {
      await this.#loadModules();
    }
    shutdownSignal.throwIfAborted();
    prepareRunDirectory();
    this.#waitingFor = () => vhostUser ?? `the kernel to finish attaching ${name}, which can't be cancelled`;
    await this.#report.during(`attaching ${name}`, this.#addExport());
    shutdownSignal.throwIfAborted();
    await this.#startMonitor();
    this.#reportReady();
  }

  /** Two disks of one name would have one control socket. */
  async #startMonitor(): Promise<void> {
    const { name } = this.#settings;
    try {
      await this.#daemon.startMonitor(controlSocketPath(name));
    } catch (error) {
      if (error instanceof VduseError && error.code === 'BUSY') {
        throw new VduseError('BUSY', `a disk '${name}' is served already`, {
          cause: error,
          hint: "'vduse list' shows it. Choose another name: --name.",
        });
      }
      throw error;
    }
  }

  async #loadModules(): Promise<void> {
    this.#waitingFor = () => 'the kernel modules to be loaded';
    const loaded = await this.#report.during(
      'loading kernel modules',
      loadModulesFor(this.#settings.binding),
    );
    if (loaded.length > 0) {
      this.#report.notice(`loaded the kernel modules ${loaded.join(', ')}`);
    }
  }

  async #addExport(): Promise<void> {
    try {
      await this.#daemon.addExport(exportRequest(this.#settings));
    } catch (error) {
      const { nameIsDerived, vhostUser } = this.#settings;
      const isName =
        error instanceof VduseError && error.code === 'ALREADY_EXISTS' && vhostUser === undefined;
      if (isName && nameIsDerived) {
        const hint = "The name was made of the image's. Choose another one: --name.";
        throw new VduseError(error.code, error.message, { cause: error, hint });
      }
      throw error;
    }
  }

  #reportReady(): void {
    const { name, image } = this.#settings;
    const exported = this.#exported!;
    const path = this.#settings.vhostUser ?? this.#path();
    this.#readyMs = Date.now();
    // What ps and `vduse list` show.
    process.title = `vduse: ${name}`;
    this.#report.ready({
      name,
      path,
      size: exported.node.size,
      readOnly: !exported.writable,
      queues: exported.queueCount,
      queueSize: exported.queueSize,
      image,
    });
    if (path !== undefined && !existsSync(path)) {
      this.#report.warning(
        `${path} is not in this /dev: a container has to be given the host's node, or make one with mknod`,
      );
    }
  }

  /** Resolves when the end was asked for. Throws when the device can't be served any more. */
  async #serve(): Promise<void> {
    const exported = this.#exported!;
    const { name, intervalMs } = this.#settings;
    const meter = new RateMeter(exported.statistics, Date.now());
    const timer = setInterval(() => {
      this.#report.statistics(meter.sample(exported.statistics, Date.now()), { name, path: this.#path() });
    }, intervalMs);
    try {
      await Promise.race([aborted(this.#daemon.shutdownSignal), exported.closed]);
    } finally {
      clearInterval(timer);
    }
    if (!this.#daemon.shutdownSignal.aborted && !exported.shuttingDown) {
      throw new VduseError('DEVICE_BROKEN', `'${name}' can't be served any more`, {
        hint: 'The messages above say why; so may the kernel log (dmesg).',
      });
    }
  }

  /** Where the disk is now: whoever may, can take it off the bus and put it back. */
  #path(): string | undefined {
    if (this.#settings.vhostUser !== undefined) {
      return this.#settings.vhostUser;
    }
    const device = vdpaBusDevice(this.#settings.name);
    return device?.blockDevice ?? device?.vhostDevice;
  }

  async #end(): Promise<void> {
    const exported = this.#exported;
    const path = exported === undefined ? undefined : this.#path();
    if (exported !== undefined && path !== undefined && this.#status === ExitStatus.OK) {
      await this.#letGo(path);
    }
    this.#waitingFor = () => this.#detachObstacles(path);
    const label = (): string => `waiting for ${this.#waitingFor()}`;
    try {
      // An export that failed by itself is no longer the daemon's to close.
      await this.#report.during(label, exported?.close({ hard: true }) ?? Promise.resolve());
    } catch (error) {
      this.#fail(error);
    }
    await this.#report.during(label, this.#daemon.close());
    await this.#hosts.close();
    if (!this.#daemon.endedCleanly && this.#status === ExitStatus.OK) {
      this.#fail(
        new VduseError('DEVICE_BROKEN', `'${this.#settings.name}' was not taken away in order`, {
          hint: "The messages above say why; 'vduse list' shows what is left.",
        }),
      );
    }
    this.#reportEnd(path);
  }

  #reportEnd(path: string | undefined): void {
    if (this.#readyMs === undefined || this.#exported === undefined) {
      return;
    }
    this.#report.detached({
      name: this.#settings.name,
      path,
      reason: this.#signal ?? (this.#status === ExitStatus.OK ? 'quit' : 'error'),
      durationMs: Date.now() - this.#readyMs,
      total: this.#exported.statistics,
    });
  }

  /** Gives who uses the disk a chance: their data is written, and at a first Ctrl-C there is time to unmount. */
  async #letGo(path: string): Promise<void> {
    const isDisk = !isVhost(path) && this.#settings.vhostUser === undefined;
    const uses = isDisk ? diskUses(path) : [];
    if (uses.length === 0) {
      return;
    }
    this.#report.warning(`in use: ${uses.map(describeUse).join('; ')}`);
    this.#waitingFor = () => 'the data to be written';
    const waitMs = sleep(FLUSH_MS_MAX, undefined, { signal: this.#hurry.signal, ref: false });
    await this.#report.during(
      `writing out the data of ${path}`,
      Promise.race([flushDisk(path, uses), waitMs.catch(() => undefined)]),
    );
    if (this.#signal !== 'SIGINT' || this.#hurry.signal.aborted) {
      return;
    }
    this.#waitingFor = () => 'the disk to be unmounted';
    this.#report.notice(
      `Its data has been written. ${path} goes away in ${GRACE_MS / 1000} s: unmount it now, or press Ctrl-C again.`,
    );
    const deadline = Date.now() + GRACE_MS;
    while (Date.now() < deadline && !this.#hurry.signal.aborted && diskUses(path).length > 0) {
      await sleep(GRACE_STEP_MS, undefined, { signal: this.#hurry.signal }).catch(() => undefined);
    }
  }

  /** What detaching waits for, as far as one can tell from here: a virtual machine, or requests in flight. */
  #detachObstacles(path: string | undefined): string {
    const inFlight = this.#exported?.statistics.inFlight ?? 0;
    if (this.#settings.vhostUser !== undefined) {
      return `requests in flight to end (${inFlight})`;
    }
    const what = path !== undefined && isVhost(path) ? deviceOpeners(path).map(describeUse) : [];
    if (inFlight > 0) {
      what.push(`${inFlight} request${inFlight === 1 ? '' : 's'} in flight`);
    }
    return `the kernel to take ${this.#settings.name} away${what.length === 0 ? '' : ` (${what.join('; ')})`}`;
  }

  /** Reports an error, unless it is the end that somebody asked for during the start. */
  #fail(error: unknown): void {
    if (error === this.#daemon.shutdownSignal.reason) {
      const number = this.#signal === undefined ? 0 : constants.signals[this.#signal];
      this.#status = number === 0 ? ExitStatus.FAILURE : 128 + number;
      return;
    }
    this.#report.error(error);
    this.#status = ExitStatus.FAILURE;
  }

  #onSignal(signal: EndSignal): void {
    const first = this.#signal === undefined;
    if (signal === this.#signal && Date.now() - this.#signalMs < SAME_SIGNAL_MS) {
      return;
    }
    this.#signal ??= signal;
    this.#signalMs = Date.now();
    if (!first) {
      this.#hurry.abort();
      const { name, vhostUser } = this.#settings;
      const kill =
        vhostUser === undefined
          ? ` Killing this process (SIGKILL) would leave the device behind, for 'vduse remove ${name}'.`
          : '';
      this.#report.notice(`Still waiting for ${this.#waitingFor()}.${kill}`);
      return;
    }
    if (this.#readyMs === undefined) {
      this.#report.notice(`${signal}: waiting for ${this.#waitingFor()}; then all is taken away again.`);
    }
    this.#daemon.requestShutdown(`${signal} received`);
  }

  #listen(): () => void {
    const handlers = new Map<string, () => void>(
      endSignals.map((signal) => [signal, () => this.#onSignal(signal)]),
    );
    // A stopped process would stop everybody who uses the disk.
    handlers.set('SIGTSTP', () =>
      this.#report.notice('Ctrl-Z is ignored: it would stop all who use the disk.'),
    );
    const onException = (error: unknown): void => {
      this.#fail(error);
      this.#daemon.requestShutdown('unexpected error');
    };
    for (const [signal, handler] of handlers) {
      process.on(signal, handler);
    }
    process.on('uncaughtException', onException);
    return () => {
      for (const [signal, handler] of handlers) {
        process.off(signal, handler);
      }
      process.off('uncaughtException', onException);
    };
  }
}

function exportRequest(settings: ExportSettings): ExportRequest {
  const { node, name, serial, queues, queueSize, blockSize, irqCpus, binding, vhostUser } = settings;
  const common = {
    id: isIdentifier(name) ? name : 'disk',
    nodeName: node.nodeName,
    writable: node.readOnly !== true,
    serial,
    queueCount: queues,
    ...compact({ logicalBlockSize: blockSize }),
  };
  if (vhostUser !== undefined) {
    return {
      type: 'vhost-user-blk',
      ...common,
      address: { type: 'unix', path: vhostUser, server: true },
    };
  }
  return {
    type: 'vduse-blk',
    ...common,
    name,
    queueSize,
    ...compact({ irqCpus }),
    ...(binding === false ? {} : { attach: binding }),
  };
}

/** A device for a virtual machine, of which this machine knows only who has it open. */
function isVhost(path: string): boolean {
  return path.startsWith('/dev/vhost-vdpa-');
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve();
    }
    signal.addEventListener('abort', () => resolve(), { once: true });
  });
}
