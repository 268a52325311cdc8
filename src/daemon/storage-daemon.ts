/**
 * A storage daemon: block nodes, exports of them, and monitors through which both are controlled. The command
 * line is one way to set it up; code is another. Operations run one after the other, whoever asks for them, so
 * none meets the half-done work of another.
 */
import { VduseError } from '../base/errors.js';
import { type Logger, silentLogger } from '../base/log.js';
import type { ImageOptions } from '../block/create.js';
import type { BlockNode, BlockNodeOptions, BlockServices, ChildOpener } from '../block/node.js';
import { describeErrno, Errno } from '../native/errno.js';
import type { SocketAddress } from '../qmp/socket-address.js';
import type { BlockExport, ExportCreators, ExportRequest } from './block-export.js';
import { createCommands } from './commands/commands.js';
import { type ExportRemoveMode, ExportTable } from './export-table.js';
import type { GraphNode } from './graph/graph-node.js';
import { type BackupRequest, BlockJobs, type MirrorRequest } from './jobs/block-jobs.js';
import { CreateWork } from './jobs/create-job.js';
import type { Job } from './jobs/job.js';
import { jobEvents } from './jobs/job-events.js';
import { JobTable } from './jobs/job-table.js';
import { MetricsServer } from './metrics-server.js';
import { MonitorTable } from './monitor-table.js';
import { NbdService } from './nbd-service.js';
import { NodeTable } from './node-table.js';
import { ObjectTable } from './object-table.js';
import type { Authorization } from './options/authz-options.js';
import type { ChardevRequest, MonitorRequest } from './options/chardev-options.js';
import type { NbdServerRequest } from './options/nbd-options.js';
import type { UserObject } from './options/object-options.js';
import type { ThrottleLimitValues } from './options/throttle-options.js';
import { PidFile } from './pid-file.js';
import { SerialQueue } from './serial-queue.js';
import { qmpVersion } from './version.js';

export interface StorageDaemonOptions {
  readonly openBlockNode: (
    options: BlockNodeOptions,
    children: ChildOpener,
    services: BlockServices,
  ) => Promise<BlockNode>;
  readonly exportCreators: ExportCreators;
  readonly logger?: Logger;
  /** How long a change of the graph waits for requests in flight, milliseconds; limits.drainMsMax when absent. */
  readonly drainTimeoutMs?: number;
}

export type { BackupRequest, MirrorRequest } from './jobs/block-jobs.js';

export class StorageDaemon {
  readonly #logger: Logger;
  readonly #services: BlockServices;
  readonly #queue = new SerialQueue();
  readonly #nodes: NodeTable;
  readonly #exports: ExportTable;
  readonly #objects = new ObjectTable();
  readonly #monitors: MonitorTable;
  readonly #nbd: NbdService;
  readonly #jobs: JobTable;
  readonly #blockJobs: BlockJobs;
  /** Settles when jobs may do their last steps inside of the daemon's own. */
  readonly #jobsTurn: Promise<void>;
  #giveJobsTheirTurn: () => void = () => undefined;
  readonly #lastSteps = new SerialQueue();
  readonly #shutdown = new AbortController();
  #metrics: MetricsServer | undefined;
  #pidFile: PidFile | undefined;
  #endedCleanly = true;
  #closed: Promise<void> | undefined;

  constructor(options: StorageDaemonOptions) {
    this.#logger = options.logger ?? silentLogger;
    this.#nbd = new NbdService(
      {
        tlsCredentials: (id) => this.#objects.tlsCredentials(id),
        authorize: (id, name) => this.#objects.authorize(id, name),
      },
      this.#logger,
    );
    this.#services = {
      secret: (id) => this.#objects.secret(id),
      tlsCredentials: (id) => this.#objects.tlsCredentials(id),
      logger: this.#logger,
    };
    const { drainTimeoutMs } = options;
    this.#nodes = new NodeTable({
      open: (node, children) => options.openBlockNode(node, children, this.#services),
      throttleGroup: (id) => this.#objects.throttleGroup(id),
      ...(drainTimeoutMs === undefined ? {} : { drainTimeoutMs }),
    });
    this.#jobs = new JobTable(
      jobEvents((name, data) => this.#monitors.sendEvent({ name, data }), this.#logger),
    );
    this.#blockJobs = new BlockJobs({
      nodes: this.#nodes,
      jobs: this.#jobs,
      exclusively: (operation) => this.#forJob(operation),
    });
    this.#exports = new ExportTable({
      creators: { nbd: (request) => this.#nbd.createExport(request), ...options.exportCreators },
      onDeleted: (id) => this.#onExportDeleted(id),
      onIoError: ({ id, node }, { operation, errno }) =>
        this.#monitors.sendEvent({
          name: 'BLOCK_IO_ERROR',
          data: {
            device: id,
            'node-name': node.nodeName,
            operation,
            action: 'report',
            nospace: errno === Errno.ENOSPC,
            reason: describeErrno(errno).text,
          },
        }),
      logger: this.#logger,
    });
    this.#jobsTurn = new Promise((begin) => {
      this.#giveJobsTheirTurn = begin;
    });
    this.#monitors = new MonitorTable({
      commands: createCommands(this),
      version: qmpVersion,
      logger: this.#logger,
    });
  }

  /** Aborted when somebody asked for the end: a signal, a client's `quit`, or close(). */
  get shutdownSignal(): AbortSignal {
    return this.#shutdown.signal;
  }

  /** Asks whoever runs the daemon to close it. Idempotent. */
  requestShutdown(reason: string): void {
    if (!this.#shutdown.signal.aborted) {
      this.#logger.info(`shutting down: ${reason}`);
      this.#shutdown.abort(new VduseError('ABORTED', `shutting down: ${reason}`));
    }
  }

  addNode(options: BlockNodeOptions): Promise<BlockNode> {
    return this.#operate(() => this.#nodes.add(options));
  }

  /** Throws BUSY while an export, a job or another node uses the node. */
  deleteNode(nodeName: string): Promise<void> {
    return this.#operate(() => this.#nodes.delete(nodeName));
  }

  /** Changes a node's size in bytes, rounded up to a whole sector, and tells the front-ends. */
  resizeNode(names: {
    device?: string | undefined;
    nodeName?: string | undefined;
    size: number;
  }): Promise<void> {
    return this.#operate(async () => this.#nodes.resize(this.#nodes.find(names), names.size));
  }

  /** Opens nodes again with other options, while their users stand still: each stays what and where it is. */
  reopenNodes(nodes: readonly BlockNodeOptions[]): Promise<void> {
    return this.#operate(() => this.#nodes.reopen(nodes));
  }

  /** The newest first, those of inline definitions among them. */
  get nodes(): readonly GraphNode[] {
    return this.#nodes.entries;
  }

  addExport(request: ExportRequest): Promise<BlockExport> {
    return this.#operate(async () => {
      this.#exports.checkId(request.id);
      const node = this.#nodes.find({ nodeName: request.nodeName });
      const threads = this.#objects.threads(request.iothreads ?? []);
      const blockExport = await this.#exports.add(request, node, threads);
      this.#logger.info(
        `export ${request.id}: node ${request.nodeName} as ${blockExport.description}, ${blockExport.writable ? 'writable' : 'read-only'}`,
      );
      return blockExport;
    });
  }

  get jobs(): JobTable {
    return this.#jobs;
  }

  /** Makes an image. The job stays in the list until it is dismissed, as QEMU's does. */
  startCreate(jobId: string, options: ImageOptions): Promise<Job> {
    return this.#operate(async () => {
      const work = new CreateWork(options, this.#services);
      return this.#jobs.start({ id: jobId, type: 'create', autoDismiss: false }, work);
    });
  }

  /** Starts to move what uses a node to another one, while it is in use. Throws what stands in the way. */
  startMirror(request: MirrorRequest): Promise<Job> {
    return this.#operate(() => this.#blockJobs.startMirror(request));
  }

  /**
   * Starts copies of disks as they are at one moment, while they are in use: all or none. Grouped: they succeed
   * together, or none does. `check` comes when all are prepared, and may still throw.
   */
  startBackups(
    requests: readonly BackupRequest[],
    options: { readonly grouped?: boolean; readonly check?: () => void } = {},
  ): Promise<Job[]> {
    return this.#operate(() => this.#blockJobs.startBackups(requests, options));
  }

  /** `safe` throws BUSY while a front-end uses the export. */
  async deleteExport(id: string, mode: ExportRemoveMode = 'safe'): Promise<void> {
    this.#exports.checkDeletable(id);
    await this.#operate(() => this.#exports.delete(id, mode));
  }

  get exports(): readonly BlockExport[] {
    return this.#exports.exports;
  }

  findExport(id: string): BlockExport | undefined {
    return this.#exports.find(id);
  }

  /** Serves exports of the type `nbd` from now on. Throws ALREADY_EXISTS while a server runs. */
  startNbdServer(request: NbdServerRequest): Promise<void> {
    return this.#operate(() => this.#nbd.start(request));
  }

  /** Ends the server and its exports, whoever uses them. */
  stopNbdServer(): Promise<void> {
    return this.#operate(async () => {
      this.#nbd.checkRunning();
      await this.#exports.closeAll('nbd');
      await this.#nbd.stop();
    });
  }

  addObject(object: UserObject): Promise<void> {
    return this.#operate(async () => this.#objects.add(object));
  }

  /** Sets limits of a throttle group, at once, whoever is in it; those that are not named stay. Throws NOT_FOUND. */
  setThrottleLimits(id: string, limits: ThrottleLimitValues): Promise<void> {
    return this.#operate(async () => this.#objects.setThrottleLimits(id, limits));
  }

  /** Changes the rules of an authorization object: those who come from now on are asked by the new ones. Throws NOT_FOUND. */
  setAuthorization(object: Authorization & UserObject): Promise<void> {
    return this.#operate(async () => this.#objects.replace(object));
  }

  get objects(): readonly UserObject[] {
    return this.#objects.objects;
  }

  /** Throws BUSY while an export uses the object. */
  deleteObject(id: string): Promise<void> {
    return this.#operate(async () =>
      this.#objects.delete(id, this.#exports.usesIothread(id) || this.#nodes.usesThrottleGroup(id)),
    );
  }

  /** With `wait` it settles when the first client has connected. */
  async addChardev(request: ChardevRequest): Promise<void> {
    const chardev = await this.#operate(() => this.#monitors.addChardev(request));
    if (request.backend !== 'null' && request.wait) {
      this.#logger.info(`waiting for a connection on: ${chardev.filename}`);
      await this.#unlessShutdown(chardev.connected);
    }
  }

  /** Throws NOT_FOUND, and BUSY for one that a monitor has. */
  removeChardev(id: string): Promise<void> {
    return this.#operate(() => this.#monitors.removeChardev(id));
  }

  /** Clients of the monitor wait until serveMonitors() is called. */
  addMonitor(request: MonitorRequest): Promise<void> {
    return this.#operate(async () => this.#monitors.addMonitor(request));
  }

  /** Greets the clients of all monitors from now on. */
  serveMonitors(): void {
    this.#monitors.serve();
  }

  /** A QMP monitor on a Unix socket, at once: character device, monitor, and serving. */
  async startMonitor(path: string, options: { id?: string; pretty?: boolean } = {}): Promise<void> {
    const { id = 'qmp', pretty = false } = options;
    await this.addChardev({ id, address: { type: 'unix', path }, server: true, wait: false });
    await this.addMonitor({ chardev: id, pretty });
    this.serveMonitors();
  }

  get chardevs(): readonly { id: string; filename: string; isAttached: boolean }[] {
    return this.#monitors.chardevs;
  }

  /** Serves figures to Prometheus. Returns the server. Throws ALREADY_EXISTS for a second one. */
  startMetrics(address: SocketAddress): Promise<MetricsServer> {
    return this.#operate(async () => {
      if (this.#metrics !== undefined) {
        throw new VduseError('ALREADY_EXISTS', 'metrics are served already');
      }
      this.#metrics = await MetricsServer.start({ address, source: this, logger: this.#logger });
      return this.#metrics;
    });
  }

  /** Tells the process id in a file that is removed when the daemon closes. */
  createPidFile(path: string): Promise<void> {
    return this.#operate(async () => {
      this.#pidFile = PidFile.create(path);
    });
  }

  /**
   * Ends the exports, requests in flight first, then closes the nodes, then the monitors. Never rejects: what
   * goes wrong is logged, and the rest is closed all the same. Idempotent.
   */
  close(): Promise<void> {
    this.#shutdown.abort(new VduseError('ABORTED', 'the storage daemon is closed'));
    this.#closed ??= this.#queue.run(() => this.#closeAll());
    return this.#closed;
  }

  /** Whether everything ended as it should have. Known once close() has settled. */
  get endedCleanly(): boolean {
    return this.#endedCleanly;
  }

  async #closeAll(): Promise<void> {
    this.#giveJobsTheirTurn();
    await this.#jobs.close();
    // Jobs that could not end for requests that lasted end when the exports have.
    this.#endedCleanly = await this.#exports.closeAll();
    if (this.#nbd.isRunning) {
      await this.#nbd.stop();
    }
    await this.#jobs.close();
    for (const node of this.#nodes.fromTheTop()) {
      await this.#closeNode(node);
    }
    await this.#metrics?.close();
    await this.#monitors.close();
    this.#pidFile?.remove();
  }

  async #closeNode(node: GraphNode): Promise<void> {
    try {
      await this.#nodes.delete(node.nodeName);
    } catch (error) {
      // An export that did not end may still read and write: its node stays open as long as the process lives.
      this.#endedCleanly = false;
      this.#logger.error({ err: error }, `block node ${node.nodeName} was not closed`);
    }
  }

  /** Runs a step of a job as an operation; at the end of the daemon it is closeAll, which waits for jobs, that it runs in. */
  #forJob(operation: () => Promise<void>): Promise<void> {
    let begun: Promise<void> | undefined;
    const begin = (): Promise<void> => {
      begun ??= operation();
      return begun;
    };
    return Promise.race([this.#queue.run(begin), this.#jobsTurn.then(() => this.#lastSteps.run(begin))]);
  }

  /** Runs an operation when those before it have ended, unless the daemon is on its way out. */
  #operate<T>(operation: () => Promise<T>): Promise<T> {
    return this.#queue.run(() => {
      this.#shutdown.signal.throwIfAborted();
      return operation();
    });
  }

  async #unlessShutdown(promise: Promise<void>): Promise<void> {
    const { signal } = this.#shutdown;
    signal.throwIfAborted();
    await new Promise<void>((done, abort) => {
      signal.addEventListener('abort', () => abort(signal.reason), { once: true });
      void promise.then(done);
    });
  }

  #onExportDeleted(id: string): void {
    this.#logger.info(`export ${id}: ended`);
    this.#monitors.sendEvent({ name: 'BLOCK_EXPORT_DELETED', data: { id } });
  }
}
