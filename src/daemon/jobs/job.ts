/**
 * A long operation in the background, with QEMU's states: `created`, `running`, maybe `ready` (a mirror that only
 * follows what is written), `waiting` and `pending` (done, not yet in effect), `concluded`; `paused` and `standby` are
 * `running` and `ready` at rest, `aborting` is the way from a failure to `concluded`.
 */
import { errorMessage, VduseError } from '../../base/errors.js';
import type { CopyError } from '../../block/copier.js';
import { Errno } from '../../native/errno.js';
import { decide, type ErrorAction, type ErrorPolicy } from './error-policy.js';
import type { JobGroup } from './job-group.js';

export type JobStatus =
  | 'created'
  | 'running'
  | 'paused'
  | 'ready'
  | 'standby'
  | 'waiting'
  | 'pending'
  | 'aborting'
  | 'concluded'
  | 'null';

export type JobType = 'mirror' | 'backup' | 'create';

/** What a block job's last error was, until it is resumed. */
export type IoStatus = 'ok' | 'failed' | 'nospace';

export interface JobOptions extends ErrorPolicy {
  readonly id: string;
  readonly type: JobType;
  /** False: a job that is done waits for `finalize` before it takes effect. */
  readonly autoFinalize?: boolean;
  /** False: a concluded job stays in the list until `dismiss`. */
  readonly autoDismiss?: boolean;
  /** Bytes a second; 0, the default: no limit. */
  readonly speed?: number;
  /** The job takes effect with these, or not at all. */
  readonly group?: JobGroup;
}

/** What a job does. The job around it has the states. */
export interface JobWork {
  /** Returns when all is done that can be before the end, early when the job is asked to end. Throws the job's failure. */
  run(job: Job): Promise<void>;
  /** Puts into effect what was done. */
  commit(): Promise<void>;
  /** Gives back what the work holds, whatever came before. */
  release(): Promise<void>;
  /** Ends what is under way: the job was cancelled. */
  stop(): void;
  /** Stops, and later goes on where it was. */
  setPaused?(paused: boolean): void;
  /** Bytes a second; 0: no limit. */
  setSpeed?(speed: number): void;
}

export interface JobListener {
  onStatus(job: Job): void;
  /** A mirror has reached the point from which it can be completed. */
  onReady(job: Job): void;
  /** Done, and waits for `finalize`. */
  onPending(job: Job): void;
  /** One of its nodes failed. */
  onError(job: Job, error: { readonly operation: 'read' | 'write'; readonly action: ErrorAction }): void;
  /** At its end, with `error` where it failed. */
  onEnd(job: Job): void;
}

/** Which states allow what (QEMU's JobVerbTable). */
const allowed: Record<string, readonly JobStatus[]> = {
  cancel: ['created', 'running', 'paused', 'ready', 'standby', 'waiting', 'pending'],
  pause: ['created', 'running', 'paused', 'ready', 'standby'],
  resume: ['created', 'running', 'paused', 'ready', 'standby'],
  'set-speed': ['created', 'running', 'paused', 'ready', 'standby'],
  complete: ['ready'],
  finalize: ['pending'],
  dismiss: ['concluded'],
};

export class Job {
  readonly id: string;
  readonly type: JobType;
  readonly autoFinalize: boolean;
  readonly autoDismiss: boolean;
  /** Bytes. */
  current = 0;
  total = 0;
  speed: number;
  ioStatus: IoStatus = 'ok';
  /** Settles at the end. */
  readonly ended: Promise<void>;
  readonly #policy: ErrorPolicy;
  readonly #group: JobGroup | undefined;
  readonly #work: JobWork;
  readonly #listener: JobListener;
  #status: JobStatus = 'created';
  #error: string | undefined;
  #isReady = false;
  #isPaused = false;
  #errorToldAtMs = Number.NEGATIVE_INFINITY;
  /** How the job was asked to end. */
  #end: 'complete' | 'stop' | 'cancel' | undefined;
  #wake: () => void = () => undefined;
  #finalize: () => void = () => undefined;
  readonly #finalized: Promise<void>;
  #reportEnd: () => void = () => undefined;

  constructor(options: JobOptions, work: JobWork, listener: JobListener) {
    this.id = options.id;
    this.type = options.type;
    this.autoFinalize = options.autoFinalize ?? true;
    this.autoDismiss = options.autoDismiss ?? true;
    this.speed = options.speed ?? 0;
    this.#policy = options;
    this.#group = options.group;
    this.#group?.add(this);
    this.#work = work;
    this.#listener = listener;
    this.ended = new Promise((report) => {
      this.#reportEnd = report;
    });
    this.#finalized = new Promise((go) => {
      this.#finalize = go;
    });
  }

  get status(): JobStatus {
    return this.#status;
  }

  /** Why it failed. */
  get error(): string | undefined {
    return this.#error;
  }

  get isReady(): boolean {
    return this.#isReady;
  }

  get isPaused(): boolean {
    return this.#isPaused;
  }

  get isCancelled(): boolean {
    return this.#end === 'cancel';
  }

  /** Ready, and told to end without taking effect: the copy stays as it is at that moment. */
  get isStopped(): boolean {
    return this.#end === 'stop';
  }

  /** Somebody has asked for the end. */
  get wantsEnd(): boolean {
    return this.#end !== undefined;
  }

  /** Whether this is the job of that work. */
  does(work: JobWork): boolean {
    return work === this.#work;
  }

  /** Tells of itself: it is in the list. */
  announce(): void {
    this.#setStatus('created');
  }

  start(): void {
    this.#setStatus('running');
    void this.#run();
  }

  /** For the work: it has only to follow from here on. */
  setReady(): void {
    if (!this.#isReady) {
      this.#isReady = true;
      this.#setStatus('ready');
      this.#listener.onReady(this);
    }
  }

  /** For the work: waits a while, less when the job is asked for something. */
  async rest(ms: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((wake) => {
      this.#wake = wake;
      timer = setTimeout(wake, ms);
    });
    clearTimeout(timer);
  }

  /** For the work: waits while the job is paused. */
  async whilePaused(): Promise<void> {
    while (this.#isPaused && !this.wantsEnd) {
      await this.rest(restMs);
    }
  }

  /** For the work: it has failed, so there is nothing to wait for, paused or not. */
  endRest(): void {
    this.#endPause();
    this.#wake();
  }

  /**
   * For the work: one of its nodes failed. Returns when it may try again, or when the job is to end. Throws the error
   * where the job is to fail.
   */
  async onError(error: CopyError): Promise<void> {
    const action = decide(this.#policy, error);
    if (this.#isErrorNews()) {
      this.#listener.onError(this, { operation: error.operation, action });
    }
    if (action === 'report') {
      throw error;
    }
    if (action === 'stop' && !this.wantsEnd) {
      this.ioStatus = error.errno === Errno.ENOSPC ? 'nospace' : 'failed';
      if (!this.#isPaused) {
        this.#setPaused();
      }
      await this.whilePaused();
    } else {
      await this.rest(restMs);
    }
  }

  pause(): void {
    this.check('pause');
    if (this.#isPaused) {
      throw new VduseError('BUSY', 'Job is already paused');
    }
    this.#setPaused();
  }

  resume(): void {
    this.check('resume');
    if (!this.#isPaused) {
      throw new VduseError('BUSY', "Can't resume a job that was not paused");
    }
    this.#isPaused = false;
    this.ioStatus = 'ok';
    this.#work.setPaused?.(false);
    this.#setStatus(this.#isReady ? 'ready' : 'running');
    this.#wake();
  }

  setSpeed(speed: number): void {
    this.check('set-speed');
    if (speed < 0) {
      throw new VduseError('INVALID_ARGUMENT', "Parameter 'speed' expects a non-negative value");
    }
    this.speed = speed;
    this.#work.setSpeed?.(speed);
  }

  complete(): void {
    this.check('complete');
    this.#askFor('complete');
  }

  /** Forced, or not ready yet: it fails. Else it ends without taking effect. */
  cancel(options: { readonly force: boolean }): void {
    this.check('cancel');
    this.#askFor(this.#isReady && !options.force ? 'stop' : 'cancel');
    this.#finalize();
  }

  finalize(): void {
    this.check('finalize');
    if (this.#group === undefined) {
      this.#finalize();
    } else {
      this.#group.finalize();
    }
  }

  /** For the group: the job takes effect. */
  setFinalized(): void {
    this.#finalize();
  }

  /** For the group: another one of it has failed. */
  cancelWithGroup(): void {
    if (allowed['cancel'].includes(this.#status)) {
      this.#askFor('cancel');
      this.#finalize();
    }
  }

  /** Throws BUSY where the state does not allow it. */
  check(verb: string): void {
    if (!allowed[verb].includes(this.#status)) {
      throw new VduseError(
        'BUSY',
        `Job '${this.id}' in state '${this.#status}' cannot accept command verb '${verb}'`,
      );
    }
  }

  /** The job leaves the list. */
  dismissed(): void {
    this.#setStatus('null');
  }

  /** Several requests may meet the same error: it is told once until the job is resumed, or tries again. */
  #isErrorNews(): boolean {
    const now = performance.now();
    const isNews = this.ioStatus === 'ok' && now - this.#errorToldAtMs >= restMs;
    this.#errorToldAtMs = isNews ? now : this.#errorToldAtMs;
    return isNews;
  }

  #setPaused(): void {
    this.#isPaused = true;
    this.#work.setPaused?.(true);
    this.#setStatus(this.#isReady ? 'standby' : 'paused');
  }

  #endPause(): void {
    if (this.#isPaused) {
      this.#isPaused = false;
      this.ioStatus = 'ok';
      this.#setStatus(this.#isReady ? 'ready' : 'running');
    }
  }

  #askFor(end: 'complete' | 'stop' | 'cancel'): void {
    this.#endPause();
    if (this.#end !== 'cancel') {
      this.#end = end;
    }
    if (end === 'cancel') {
      this.#work.stop();
    }
    // Later: whoever asked has the answer before what comes of it.
    setImmediate(() => this.#wake());
  }

  async #run(): Promise<void> {
    try {
      await this.#work.run(this);
      this.#throwIfCancelled();
      this.#setStatus('waiting');
      if (this.#group !== undefined) {
        await Promise.race([this.#group.arrived(), this.#finalized]);
        this.#throwIfCancelled();
      }
      this.#setStatus('pending');
      if (!this.autoFinalize) {
        this.#listener.onPending(this);
      }
      if (!this.autoFinalize || this.#group?.needsFinalize === true) {
        await this.#finalized;
        this.#throwIfCancelled();
      }
      await this.#work.commit();
    } catch (error) {
      this.#error = errorMessage(error);
      this.#setStatus('aborting');
      this.#group?.failed();
    }
    try {
      await this.#work.release();
    } catch (error) {
      this.#error ??= errorMessage(error);
    }
    this.#listener.onEnd(this);
    this.#setStatus('concluded');
    this.#reportEnd();
  }

  #throwIfCancelled(): void {
    if (this.isCancelled) {
      throw new VduseError('ABORTED', 'Operation canceled');
    }
  }

  #setStatus(status: JobStatus): void {
    this.#status = status;
    this.#listener.onStatus(this);
  }
}

const restMs = 100;
