/** Sees a mirror job through to its end, over QMP. */
import { VduseError } from '../../base/errors.js';
import { type JobView, queryJob } from './daemon-view.js';
import { isRefusal, type QmpClient } from './qmp-client.js';

/** Between two looks at the job. Events shorten it. */
const lookMs = 200;

export interface JobFollowerOptions {
  readonly id: string;
  /** The command that ends the job once it is ready. */
  readonly end: { readonly command: string; readonly arguments: Readonly<Record<string, string>> };
  readonly onProgress: (job: JobView) => void;
  readonly onReady: () => void;
  /** Aborted: the job is cancelled. */
  readonly signal: AbortSignal;
}

export class JobFollower {
  readonly #client: QmpClient;
  readonly #options: JobFollowerOptions;
  #isEndAsked = false;
  #isCancelAsked = false;
  #wake: () => void = () => undefined;

  constructor(client: QmpClient, options: JobFollowerOptions) {
    this.#client = client;
    this.#options = options;
    options.signal.addEventListener('abort', () => this.wake());
  }

  /** Something has happened: looks at the job now. */
  wake(): void {
    this.#wake();
  }

  /** Until the job is concluded, which it is until somebody dismisses it. Throws ABORTED when it is gone. */
  async follow(): Promise<JobView> {
    const { id, onProgress } = this.#options;
    for (;;) {
      const job = await queryJob(this.#client, id);
      if (job === undefined) {
        throw new VduseError('ABORTED', `job '${id}' is gone: somebody else has dismissed it`);
      }
      onProgress(job);
      if (job.status === 'concluded') {
        return job;
      }
      await this.#steer(job);
      await this.#rest();
    }
  }

  async #steer(job: JobView): Promise<void> {
    const { id, end, onReady, signal } = this.#options;
    if (signal.aborted && !this.#isCancelAsked) {
      this.#isCancelAsked = true;
      // One that is about to end refuses that, and ends.
      await this.#client.execute('job-cancel', { id }).catch(ignoreRefusal);
    } else if (job.status === 'ready' && !this.#isEndAsked && !signal.aborted) {
      this.#isEndAsked = true;
      onReady();
      // Somebody else may have asked for it before.
      await this.#client.execute(end.command, end.arguments).catch(ignoreRefusal);
    }
  }

  async #rest(): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((wake) => {
      this.#wake = wake;
      timer = setTimeout(wake, lookMs);
    });
    clearTimeout(timer);
  }
}

function ignoreRefusal(error: unknown): void {
  if (!isRefusal(error)) {
    throw error;
  }
}
