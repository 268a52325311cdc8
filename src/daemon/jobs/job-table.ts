/** The jobs of a daemon by id. */
import { VduseError } from '../../base/errors.js';
import { identifierHint, isIdentifier } from '../identifier.js';
import { Job, type JobListener, type JobOptions, type JobWork } from './job.js';

/** How long the daemon's end waits for jobs. */
const closeMs = 10_000;

export class JobTable {
  readonly #jobs = new Map<string, Job>();
  readonly #listener: JobListener;

  constructor(listener: JobListener) {
    this.#listener = listener;
  }

  get jobs(): Job[] {
    return [...this.#jobs.values()];
  }

  /** As QEMU lists them. */
  get newestFirst(): Job[] {
    return this.jobs.reverse();
  }

  /** Throws INVALID_ARGUMENT or ALREADY_EXISTS. */
  checkId(id: string): void {
    if (!isIdentifier(id)) {
      throw new VduseError('INVALID_ARGUMENT', `Invalid job ID '${id}'`, { hint: identifierHint });
    }
    if (this.#jobs.has(id)) {
      throw new VduseError('ALREADY_EXISTS', `Job ID '${id}' already in use`);
    }
  }

  start(options: JobOptions, work: JobWork): Job {
    const job = this.add(options, work);
    job.start();
    return job;
  }

  /** A job that is to be started. */
  add(options: JobOptions, work: JobWork): Job {
    this.checkId(options.id);
    const job = new Job(options, work, {
      ...this.#listener,
      onStatus: (changed) => {
        this.#listener.onStatus(changed);
        if (changed.status === 'concluded' && changed.autoDismiss) {
          this.#remove(changed);
        }
      },
    });
    this.#jobs.set(job.id, job);
    job.announce();
    return job;
  }

  /** Throws NOT_FOUND. */
  find(id: string): Job {
    const job = this.#jobs.get(id);
    if (job === undefined) {
      throw new VduseError('NOT_FOUND', 'Job not found');
    }
    return job;
  }

  dismiss(id: string): void {
    const job = this.find(id);
    job.check('dismiss');
    this.#remove(job);
  }

  /** Cancels all jobs, and waits for their ends, but not for ever. */
  async close(): Promise<void> {
    for (const job of this.jobs) {
      if (!['aborting', 'concluded', 'null'].includes(job.status)) {
        job.cancel({ force: true });
      }
    }
    let timer: NodeJS.Timeout | undefined;
    const over = new Promise<void>((report) => {
      timer = setTimeout(report, closeMs);
    });
    await Promise.race([Promise.all(this.jobs.map(({ ended }) => ended)), over]);
    clearTimeout(timer);
  }

  #remove(job: Job): void {
    this.#jobs.delete(job.id);
    job.dismissed();
  }
}
