/**
 * Moves a disk to another node while it is in use (QEMU's mirror). What is written meanwhile is marked by the queue
 * threads and copied again, or written to both nodes where copy-mode asks for that. At the end the users stand still
 * for a moment, the last parts are copied, and they go on from the target without noticing.
 */
import { VduseError } from '../../base/errors.js';
import { Copier, CopyError } from '../../block/copier.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import type { GraphNode, NodeLink, NodeUser } from '../graph/graph-node.js';
import { allPermissions, Permission } from '../graph/permissions.js';
import { rootRole } from '../node-table.js';
import { untilDrained, within } from './bounds.js';
import type { Job, JobWork } from './job.js';

export type MirrorSync = 'full' | 'top' | 'none';
export type MirrorCopyMode = 'background' | 'write-blocking';

export interface MirrorOptions {
  readonly jobId: string;
  readonly source: GraphNode;
  readonly target: GraphNode;
  /** `none`: only what is written from now on. `top` is `full`: there are no backing files. */
  readonly sync: MirrorSync;
  readonly copyMode?: MirrorCopyMode;
  /** Bytes, a power of two: how finely writes are told apart. */
  readonly granularity?: number;
}

/** Runs an operation on the graph while no other one is under way. */
export type Exclusively = (operation: () => Promise<void>) => Promise<void>;

const granularityDefault = 65_536;
const granularityMax = 1 << 20;
/** How often a mirror that has caught up looks for what was written. */
const lookMs = 20;
/** Below so many marked parts the users are asked to stand still. */
const fewParts = 64;
/** So long it may take until only so few are left. */
const patienceMs = 5000;

export class MirrorWork implements JobWork {
  readonly #options: MirrorOptions;
  readonly #exclusively: Exclusively;
  readonly #bitmap: DirtyBitmap;
  readonly #copier: Copier;
  readonly #sourceLink: NodeLink;
  readonly #targetLink: NodeLink;
  #job: Job | undefined;
  #endAskedAtMs: number | undefined;
  /** The last copies took too long; they may still be under way. */
  #isGivenUp = false;
  /** The users stand still by the job's own doing. */
  #isSwitching = false;

  /** Starts to watch the source's writes. Throws INVALID_ARGUMENT, BUSY or IMAGE_READ_ONLY. */
  static async begin(options: MirrorOptions, exclusively: Exclusively): Promise<MirrorWork> {
    checkPair(options);
    const work = new MirrorWork(options, exclusively);
    try {
      await options.source.drained(async () => work.#interpose());
    } catch (error) {
      // Not by an operation of its own: this is one.
      options.source.interpose(work, undefined);
      await work.release();
      throw error;
    }
    return work;
  }

  private constructor(options: MirrorOptions, exclusively: Exclusively) {
    const { source, target, jobId } = options;
    this.#options = options;
    this.#exclusively = exclusively;
    const alignment = Math.max(source.limits.requestAlignment, target.limits.requestAlignment);
    const wanted = Math.min(granularityMax, options.granularity ?? granularityDefault);
    this.#bitmap = new DirtyBitmap({ size: source.size, granularity: Math.max(alignment, wanted) });
    const user = (uses: number, shares: number, drain: NonNullable<NodeUser['drained']>): NodeUser => ({
      description: `mirror job '${jobId}'`,
      role: rootRole,
      permissions: () => ({ uses, shares }),
      resized: () => undefined,
      drained: (change, timeoutMs) => (this.#isSwitching ? change() : drain(change, timeoutMs)),
    });
    this.#targetLink = target.attach({
      ...user(Permission.WRITE, 0, (change, timeoutMs) => this.#copier.drainTarget(change, timeoutMs)),
      // Queue threads write there too, where they write to both.
      alsoDrains: source,
    });
    try {
      this.#sourceLink = source.attach(
        user(Permission.CONSISTENT_READ, allPermissions & ~Permission.RESIZE, (change, timeoutMs) =>
          this.#copier.drainSource(change, timeoutMs),
        ),
      );
    } catch (error) {
      void this.#targetLink.close();
      throw error;
    }
    this.#copier = new Copier({
      source: source.opened,
      target,
      bitmap: this.#bitmap,
      // What users write to both does not go through here, so nothing is known of it.
      ownsTarget: options.copyMode !== 'write-blocking' && options.sync !== 'none',
      onCopied: (bytes) => this.#onCopied(bytes),
    });
    source.jobs.set(this, { kind: 'mirror' });
    target.jobs.set(this, { kind: 'mirror' });
  }

  async run(job: Job): Promise<void> {
    this.#job = job;
    this.#copier.speed = job.speed;
    job.total = this.#bitmap.count() * this.#bitmap.granularity;
    while (!job.isCancelled && !this.#isTimeToEnd()) {
      await job.whilePaused();
      if (job.isCancelled) {
        return;
      }
      try {
        await this.#round(job);
      } catch (error) {
        if (!(error instanceof CopyError)) {
          throw error;
        }
        await job.onError(error);
      }
      await job.rest(lookMs);
    }
  }

  /** Copies until nothing is marked, which under load may be never. */
  async #round(job: Job): Promise<void> {
    let isOver = false;
    const round = this.#copier.run().finally(() => {
      isOver = true;
    });
    while (!isOver && !job.isCancelled && !this.#isTimeToEnd()) {
      await Promise.race([round, job.rest(lookMs)]);
      this.#count();
      if (this.#bitmap.count() <= fewParts && !job.isPaused) {
        job.setReady();
      }
    }
    if (!isOver) {
      this.#copier.stop();
    }
    const { source, target } = this.#options;
    const parts = `copies from node '${source.nodeName}' to node '${target.nodeName}' did not end`;
    await within(round, source.drainTimeoutMs, parts);
  }

  /** Asked to end: with little left, or when waiting does not make it less. */
  #isTimeToEnd(): boolean {
    const job = this.#job;
    if (job === undefined || !job.wantsEnd || !job.isReady) {
      return false;
    }
    this.#endAskedAtMs ??= performance.now();
    return this.#bitmap.count() <= fewParts || performance.now() - this.#endAskedAtMs > patienceMs;
  }

  stop(): void {
    this.#copier.stop();
  }

  setPaused(paused: boolean): void {
    if (paused) {
      this.#copier.stop();
    }
  }

  setSpeed(speed: number): void {
    this.#copier.speed = speed;
  }

  /** Makes both sides equal while the users stand still, and moves them, unless the job was only to stop. */
  commit(): Promise<void> {
    return this.#switch(async () => {
      const { source, target } = this.#options;
      if (source.size !== this.#bitmap.size) {
        throw new VduseError('ABORTED', `the size of node '${source.nodeName}' has changed meanwhile`);
      }
      await this.#copyLastParts();
      source.interpose(this, undefined);
      if (this.#job?.isStopped === true) {
        return;
      }
      await this.#targetLink.close();
      for (const link of [...source.links]) {
        if (link !== this.#sourceLink) {
          link.moveTo(target);
        }
      }
    });
  }

  /** The users stand still meanwhile: if it takes too long they go on from the source. */
  async #copyLastParts(): Promise<void> {
    const { source, target } = this.#options;
    this.#copier.speed = 0;
    const copied = (async () => {
      do {
        await this.#copier.run();
      } while (this.#bitmap.count() > 0 && !this.#isGivenUp);
      await (this.#isGivenUp ? undefined : this.#copier.flush());
    })();
    try {
      await within(
        copied,
        source.drainTimeoutMs,
        `the last parts of node '${source.nodeName}' were not on node '${target.nodeName}'`,
      );
    } catch (error) {
      this.#isGivenUp = true;
      this.#copier.stop();
      throw error;
    }
    this.#count();
  }

  async release(): Promise<void> {
    const { source, target } = this.#options;
    this.#copier.stop();
    if (source.isInterposedBy(this)) {
      await untilDrained(() => this.#switch(async () => source.interpose(this, undefined)));
    }
    source.jobs.delete(this);
    target.jobs.delete(this);
    await this.#copier.close(
      () => this.#sourceLink.close(),
      () => this.#targetLink.close(),
    );
  }

  #switch(change: () => Promise<void>): Promise<void> {
    return this.#exclusively(async () => {
      this.#isSwitching = true;
      try {
        await this.#options.source.drained(change);
      } finally {
        this.#isSwitching = false;
      }
    });
  }

  #interpose(): void {
    const { source, target, copyMode, sync } = this.#options;
    const { size, granularity, buffer } = this.#bitmap;
    if (sync !== 'none') {
      this.#bitmap.mark(0, size);
    }
    source.interpose(this, (child) => ({
      kind: 'mirror',
      child,
      bitmap: { size, granularity, buffer },
      ...(copyMode === 'write-blocking' ? { target: target.engine } : {}),
    }));
  }

  #onCopied(bytes: number): void {
    const job = this.#job;
    if (job !== undefined) {
      job.current += bytes;
    }
  }

  /** What is still to be copied is part of the whole, however often it was copied before. */
  #count(): void {
    const job = this.#job;
    if (job !== undefined) {
      job.total = job.current + this.#bitmap.count() * this.#bitmap.granularity;
    }
  }
}

const invalid = (message: string, hint?: string) => new VduseError('INVALID_ARGUMENT', message, { hint });

function checkPair({ source, target, granularity }: MirrorOptions): void {
  if (source === target) {
    throw invalid("Can't mirror node into itself");
  }
  source.checkNoJob();
  target.checkNoJob();
  if (granularity !== undefined && (granularity < 512 || granularity > 64 << 20)) {
    throw invalid("Parameter 'granularity' expects a value in range [512B, 64MB]");
  }
  if (granularity !== undefined && (granularity & (granularity - 1)) !== 0) {
    throw invalid("Parameter 'granularity' expects a power of 2");
  }
  if (source.size !== target.size) {
    throw invalid('Source and target image have different sizes', `${source.size} and ${target.size} bytes`);
  }
  if (target.limits.requestAlignment > source.limits.requestAlignment) {
    throw invalid(
      `node '${target.nodeName}' takes requests of ${target.limits.requestAlignment} bytes at least, '${source.nodeName}' smaller ones`,
      'Open the target without cache.direct=on.',
    );
  }
  if (source.features.writeZeroes && !target.features.writeZeroes) {
    throw invalid(
      `node '${target.nodeName}' can't write zeroes, which users of '${source.nodeName}' may ask for`,
    );
  }
}
