/**
 * Copies a disk as it is at one moment while it is in use (QEMU's backup). What users are about to overwrite is copied
 * first: their request waits for that in its queue, whose thread asks the main thread. Everything else is copied in
 * between.
 */
import { VduseError } from '../../base/errors.js';
import { Copier, CopyError } from '../../block/copier.js';
import { CopyChannel } from '../../block/copy-channel.js';
import { DirtyBitmap } from '../../block/dirty-bitmap.js';
import { closeFd, createEventFd } from '../../native/fd.js';
import { type FdWatcher, watchReadable } from '../../native/fd-watcher.js';
import type { GraphNode, NodeLink, NodeUser } from '../graph/graph-node.js';
import { allPermissions, Permission } from '../graph/permissions.js';
import { rootRole } from '../node-table.js';
import { untilDrained, within } from './bounds.js';
import type { Job, JobWork } from './job.js';
import type { Exclusively } from './mirror-job.js';

/** `none`: only what is overwritten from now on. `top` is `full`: there are no backing files. */
export type BackupSync = 'full' | 'top' | 'none';

export interface BackupOptions {
  readonly jobId: string;
  readonly source: GraphNode;
  readonly target: GraphNode;
  readonly sync: BackupSync;
  /** Parts copied at once, at most 8; 8 when absent. */
  readonly workers?: number;
}

/** Bytes that are copied before one of them is overwritten (QEMU's least). */
export const backupClusterBytes = 65_536;
const lookMs = 100;

export class BackupWork implements JobWork {
  readonly #options: BackupOptions;
  readonly #exclusively: Exclusively;
  /** Set: the part is still to be copied, or is being copied. */
  readonly #bitmap: DirtyBitmap;
  readonly #channel: CopyChannel;
  readonly #watcher: FdWatcher;
  readonly #copier: Copier;
  readonly #sourceLink: NodeLink;
  readonly #targetLink: NodeLink;
  #job: Job | undefined;
  #failure: unknown;
  /** All is copied, and the target has it for good. */
  #isFlushed = false;
  /** Copies that users wait for, and when the last progress was. */
  readonly #wanted = new Set<Promise<void>>();
  #progressAtMs = 0;
  #watchdog: NodeJS.Timeout | undefined;

  /** Takes the nodes for the job. It begins with `interpose`. Throws INVALID_ARGUMENT, BUSY or IMAGE_READ_ONLY. */
  constructor(options: BackupOptions, exclusively: Exclusively) {
    checkPair(options);
    const { source, target, sync, workers } = options;
    this.#options = options;
    this.#exclusively = exclusively;
    const granularity = Math.max(
      backupClusterBytes,
      source.limits.requestAlignment,
      target.limits.requestAlignment,
    );
    this.#bitmap = new DirtyBitmap({ size: source.size, granularity });
    this.#bitmap.mark(0, source.size);
    this.#targetLink = target.attach(this.#targetUser());
    try {
      this.#sourceLink = source.attach(this.#sourceUser());
    } catch (error) {
      void this.#targetLink.close();
      throw error;
    }
    source.jobs.set(this, { kind: 'backup', isBackupOfIt: true });
    try {
      // Nobody may write below the source from now on, past the job.
      source.checkPermissions();
      this.#copier = new Copier({
        source: source.opened,
        target,
        bitmap: this.#bitmap,
        ownsTarget: sync !== 'none',
        ...(workers === undefined ? {} : { workers }),
        onCopied: (bytes) => this.#onCopied(bytes),
      });
    } catch (error) {
      source.jobs.delete(this);
      void this.#targetLink.close();
      void this.#sourceLink.close();
      throw error;
    }
    this.#channel = new CopyChannel({ askFd: createEventFd(), doneFd: createEventFd() });
    this.#watcher = watchReadable(this.#channel.spec.askFd, () => this.#takeQuestions());
    target.jobs.set(this, { kind: 'backup' });
  }

  get source(): GraphNode {
    return this.#options.source;
  }

  /** The moment that is copied. The source's users have been drained. */
  interpose(): void {
    const { size, granularity, buffer } = this.#bitmap;
    this.source.interpose(this, (child) => ({
      kind: 'backup',
      child,
      bitmap: { size, granularity, buffer },
      channel: this.#channel.spec,
    }));
  }

  /** The job is not to begin after all. */
  async discard(): Promise<void> {
    // Engines that were made already let everything through.
    this.source.interpose(this, undefined);
    await this.release();
  }

  async run(job: Job): Promise<void> {
    this.#job = job;
    this.#copier.speed = job.speed;
    job.total = this.source.size;
    while (!this.#isOver(job)) {
      await job.whilePaused();
      try {
        // Asked to end while it was paused, it is not to begin anew.
        await (this.#isOver(job) ? undefined : this.#round(job));
      } catch (error) {
        await this.#onError(error, job);
      }
    }
    this.#throwIfFailed();
  }

  /** Copies until nothing is left, or the job is asked for something. */
  async #round(job: Job): Promise<void> {
    if (this.#options.sync === 'none') {
      await job.rest(lookMs);
      return;
    }
    await this.#copyMarked(job);
    if (this.#bitmap.count() === 0) {
      await this.#copier.flush();
      this.#isFlushed = true;
    } else if (!job.isPaused) {
      await job.rest(1);
    }
  }

  async #copyMarked(job: Job): Promise<void> {
    let isDone = false;
    const copied = this.#copier.run().finally(() => {
      isDone = true;
    });
    while (!isDone && !this.#isOver(job)) {
      await Promise.race([copied, job.rest(lookMs)]);
    }
    if (!isDone) {
      this.#copier.stop();
    }
    const { source, target } = this.#options;
    const parts = `copies from node '${source.nodeName}' to node '${target.nodeName}' did not end`;
    await within(copied, source.drainTimeoutMs, parts);
  }

  #isOver(job: Job): boolean {
    return job.wantsEnd || this.#failure !== undefined || this.#isFlushed;
  }

  stop(): void {
    this.#copier.stop();
    this.#channel.close();
  }

  setPaused(paused: boolean): void {
    if (paused) {
      this.#copier.stop();
    }
  }

  setSpeed(speed: number): void {
    this.#copier.speed = speed;
  }

  async commit(): Promise<void> {
    this.#throwIfFailed();
  }

  async release(): Promise<void> {
    const { source, target } = this.#options;
    this.stop();
    if (source.isInterposedBy(this)) {
      await untilDrained(() =>
        this.#exclusively(() => source.drained(async () => source.interpose(this, undefined))),
      );
    }
    const wanted = Promise.allSettled(this.#wanted).then(() => undefined);
    // Those that last longer end when the nodes are closed, or never.
    await within(wanted, source.drainTimeoutMs, 'copies did not end').catch(() => undefined);
    clearInterval(this.#watchdog);
    this.#watcher.close();
    closeFd(this.#channel.spec.askFd);
    closeFd(this.#channel.spec.doneFd);
    source.jobs.delete(this);
    target.jobs.delete(this);
    await this.#copier.close(
      () => this.#sourceLink.close(),
      () => this.#targetLink.close(),
    );
  }

  #targetUser(): NodeUser {
    return {
      ...this.#user,
      permissions: () => ({ uses: Permission.WRITE, shares: Permission.CONSISTENT_READ }),
      drained: (change, timeoutMs) => this.#copier.drainTarget(change, timeoutMs),
      // The source's users first: their requests may wait for copies.
      alsoDrains: this.source,
      drainsLast: true,
    };
  }

  #sourceUser(): NodeUser {
    const shares = allPermissions & ~Permission.RESIZE;
    return {
      ...this.#user,
      permissions: () => ({ uses: Permission.CONSISTENT_READ, shares }),
      drained: (change, timeoutMs) => this.#copier.drainSource(change, timeoutMs),
      drainsLast: true,
    };
  }

  get #user() {
    const { jobId } = this.#options;
    return { description: `backup job '${jobId}'`, role: rootRole, resized: () => undefined };
  }

  #onCopied(bytes: number): void {
    this.#progressAtMs = performance.now();
    if (this.#job !== undefined) {
      this.#job.current += bytes;
    }
  }

  #takeQuestions(): void {
    for (const { first, count } of this.#channel.take()) {
      const copied = this.#copyWanted(first, count).finally(() => {
        this.#wanted.delete(copied);
        this.#channel.signalDone();
      });
      this.#wanted.add(copied);
    }
    this.#watch();
  }

  /** Ends when the parts are copied, or when nobody waits for them any more. Never rejects. */
  async #copyWanted(first: number, count: number): Promise<void> {
    while (!this.#channel.isClosed) {
      try {
        await this.#copier.copyNow(first, count);
        return;
      } catch (error) {
        await this.#onError(error, this.#job).catch((failure: unknown) => this.#fail(failure));
      }
    }
  }

  /** Throws where the job is to fail. */
  async #onError(error: unknown, job: Job | undefined): Promise<void> {
    if (!(error instanceof CopyError) || job === undefined) {
      throw error;
    }
    await job.onError(error);
  }

  /** The disk goes on at once, whatever becomes of the job. */
  #fail(failure: unknown): void {
    this.#failure ??= failure;
    this.stop();
    this.#job?.endRest();
  }

  #throwIfFailed(): void {
    if (this.#failure !== undefined) {
      throw this.#failure;
    }
  }

  /** A target that does not answer, or a job that was stopped by an error, is not to hold the disk up for ever. */
  #watch(): void {
    if (this.#watchdog !== undefined || this.#wanted.size === 0) {
      return;
    }
    const { source, target } = this.#options;
    const waitMs = source.drainTimeoutMs;
    this.#progressAtMs = performance.now();
    this.#watchdog = setInterval(() => {
      if (this.#wanted.size === 0) {
        clearInterval(this.#watchdog);
        this.#watchdog = undefined;
      } else if (performance.now() - this.#progressAtMs > waitMs) {
        const waited = `users of node '${source.nodeName}' waited ${waitMs / 1000} s for a part to be copied to '${target.nodeName}'`;
        this.#fail(new VduseError('TIMEOUT', `${waited}; they go on without the backup`));
      }
    }, lookMs);
  }
}

function checkPair({ source, target }: BackupOptions): void {
  if (source === target) {
    throw new VduseError('INVALID_ARGUMENT', 'Source and target cannot be the same');
  }
  source.checkNoJob({ butBackups: true });
  target.checkNoJob();
  if (source.size !== target.size) {
    throw new VduseError('INVALID_ARGUMENT', 'Source and target image have different sizes', {
      hint: `${source.size} and ${target.size} bytes`,
    });
  }
  if (target.limits.requestAlignment > source.limits.requestAlignment) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `node '${target.nodeName}' takes requests of ${target.limits.requestAlignment} bytes at least, '${source.nodeName}' smaller ones`,
      { hint: 'Open the target without cache.direct=on.' },
    );
  }
}
