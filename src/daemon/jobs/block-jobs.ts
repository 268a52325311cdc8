/** Starts the jobs that work on nodes of the graph. */
import { VduseError } from '../../base/errors.js';
import { compact } from '../../qmp/qapi.js';
import { drainedTogether } from '../graph/graph-node.js';
import type { NodeTable } from '../node-table.js';
import { type BackupOptions, BackupWork, backupClusterBytes } from './backup-job.js';
import type { ErrorPolicy } from './error-policy.js';
import type { Job } from './job.js';
import { JobGroup } from './job-group.js';
import type { JobTable } from './job-table.js';
import { type Exclusively, type MirrorOptions, MirrorWork } from './mirror-job.js';

/** What jobs on two nodes have. */
export interface BlockJobRequest extends ErrorPolicy {
  /** Node names. */
  readonly device: string;
  readonly target: string;
  /** Bytes a second; 0, the default: no limit. */
  readonly speed?: number;
  readonly autoFinalize?: boolean;
  readonly autoDismiss?: boolean;
}

export interface MirrorRequest extends BlockJobRequest, Omit<MirrorOptions, 'source' | 'target'> {}

export interface BackupRequest extends BlockJobRequest, Omit<BackupOptions, 'source' | 'target' | 'sync'> {
  readonly sync: BackupOptions['sync'] | 'incremental' | 'bitmap';
  /** There are none: naming one is an error. */
  readonly bitmap?: string;
  readonly bitmapMode?: string;
  readonly compress?: boolean;
  /** Bytes of the longest part; 0: no limit. */
  readonly chunkMax?: number;
  /** What QEMU would call the filter above the source; here there is none to be found under the name. */
  readonly filterNodeName?: string;
}

interface PreparedBackup {
  readonly request: BackupRequest;
  readonly work: BackupWork;
}

export class BlockJobs {
  readonly #nodes: NodeTable;
  readonly #jobs: JobTable;
  readonly #exclusively: Exclusively;

  constructor(parts: { nodes: NodeTable; jobs: JobTable; exclusively: Exclusively }) {
    this.#nodes = parts.nodes;
    this.#jobs = parts.jobs;
    this.#exclusively = parts.exclusively;
  }

  async startMirror(request: MirrorRequest): Promise<Job> {
    const { jobId, device, target, sync, copyMode, granularity, ...options } = request;
    this.#jobs.checkId(jobId);
    const nodes = { source: this.#nodes.refer(device), target: this.#nodes.refer(target) };
    const more = {
      ...(copyMode === undefined ? {} : { copyMode }),
      ...(granularity === undefined ? {} : { granularity }),
    };
    const work = await MirrorWork.begin({ jobId, sync, ...nodes, ...more }, this.#exclusively);
    return this.#jobs.start({ id: jobId, type: 'mirror', ...options }, work);
  }

  /**
   * Starts all or none, and all at one moment. Grouped: they succeed together, or none does. `check` comes when all
   * are prepared, and may still throw.
   */
  async startBackups(
    requests: readonly BackupRequest[],
    options: { readonly grouped?: boolean; readonly check?: () => void } = {},
  ): Promise<Job[]> {
    const prepared: PreparedBackup[] = [];
    try {
      for (const request of requests) {
        prepared.push({ request, work: this.#prepare(request, prepared) });
      }
      options.check?.();
      return await this.#startAll(prepared, options.grouped === true ? new JobGroup() : undefined);
    } catch (error) {
      for (const { work } of prepared) {
        await this.#giveUp(work);
      }
      throw error;
    }
  }

  #giveUp(work: BackupWork): Promise<void> {
    const job = this.#jobs.jobs.find((candidate) => candidate.does(work));
    if (job === undefined) {
      return work.discard();
    }
    job.cancel({ force: true });
    return Promise.resolve();
  }

  async #startAll(prepared: readonly PreparedBackup[], group: JobGroup | undefined): Promise<Job[]> {
    let jobs: Job[] = [];
    const sources = prepared.map(({ work }) => work.source);
    await drainedTogether(sources, async () => {
      for (const { work } of prepared) {
        work.interpose();
      }
      jobs = prepared.map(({ request, work }) => {
        const { jobId, speed, autoFinalize, autoDismiss, onSourceError, onTargetError } = request;
        const given = compact({ speed, autoFinalize, autoDismiss, onSourceError, onTargetError, group });
        return this.#jobs.add({ id: jobId, type: 'backup', ...given }, work);
      });
      for (const job of jobs) {
        job.start();
      }
    });
    return jobs;
  }

  /** In QEMU's order, so that of several errors the same one is told. */
  #prepare(request: BackupRequest, before: readonly PreparedBackup[]): BackupWork {
    const { jobId, device, target, sync, workers, speed = 0 } = request;
    const nodes = { source: this.#nodes.refer(device), target: this.#nodes.refer(target) };
    checkBitmap(request);
    this.#jobs.checkId(jobId);
    if (before.some((other) => other.request.jobId === jobId)) {
      throw new VduseError('ALREADY_EXISTS', `Job ID '${jobId}' already in use`);
    }
    checkNumbers(request);
    if (request.filterNodeName !== undefined) {
      this.#nodes.checkName(request.filterNodeName, 'Could not create node: ');
    }
    if (speed < 0) {
      throw invalid("Parameter 'speed' expects a non-negative value");
    }
    const isIncremental = sync === 'incremental' || sync === 'bitmap';
    return new BackupWork(
      { jobId, sync: isIncremental ? 'full' : sync, ...nodes, ...compact({ workers }) },
      this.#exclusively,
    );
  }
}

const invalid = (message: string) => new VduseError('INVALID_ARGUMENT', message);
const workersMax = 0x7fff_ffff;

function checkBitmap({ sync, bitmap, bitmapMode }: BackupRequest): void {
  if (bitmap !== undefined) {
    throw new VduseError('NOT_FOUND', `Bitmap '${bitmap}' could not be found`, {
      hint: 'There are no dirty bitmaps here: sync=full copies all.',
    });
  }
  if (sync === 'incremental' || sync === 'bitmap') {
    throw invalid(`must provide a valid bitmap name for '${sync}' sync mode`);
  }
  if (bitmapMode !== undefined) {
    throw invalid('Cannot specify bitmap sync mode without a bitmap');
  }
}

function checkNumbers({ workers = 1, chunkMax = 0, compress, target }: BackupRequest): void {
  if (compress === true) {
    throw new VduseError('NOT_SUPPORTED', 'Compression is not supported for this drive ', {
      hint: `Node '${target}' is raw storage, which holds what is written as it is.`,
    });
  }
  if (workers < 1 || workers > workersMax) {
    throw invalid(`max-workers must be between 1 and ${workersMax}`);
  }
  if (chunkMax < 0) {
    throw invalid('max-chunk must be zero (which means no limit) or positive');
  }
  if (chunkMax !== 0 && chunkMax < backupClusterBytes) {
    throw invalid(
      `Required max-chunk (${chunkMax}) is less than backup cluster size (${backupClusterBytes})`,
    );
  }
}
