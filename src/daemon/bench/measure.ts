/** Runs the jobs of a measurement: on threads of their own, or where the engine has to live on the main thread, there. */
import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { VduseError } from '../../base/errors.js';
import { type EngineSpec, needsMainThread, sharedByQueues } from '../../block/engine.js';
import { acquireEventLoopReactor, releaseEventLoopReactor } from '../../reactor/event-loop-reactor.js';
import type { BenchThreadSetup } from './bench-thread-main.js';
import { type DirectionFigures, LoadCounters } from './load-counters.js';
import { Control, cancelAfterMs, controlBytes, LoadGenerator, type LoadSpec } from './load-generator.js';

export interface MeasureOptions {
  readonly engine: EngineSpec;
  readonly jobs: readonly Omit<LoadSpec, 'engine'>[];
  readonly signal: AbortSignal;
  /** Told now and then, while it runs. */
  readonly onLook: (ios: number, bytes: number) => void;
}

export interface Measurement {
  readonly seconds: number;
  readonly read: DirectionFigures;
  readonly write: DirectionFigures;
  readonly errors: number;
  /** Of the first error; 0 when there was none. */
  readonly firstErrno: number;
  /** Of all threads of the process, while it was counted. */
  readonly cpu: { readonly userUs: number; readonly systemUs: number };
}

const lookMs = 500;
/** A request that does not even end when it is cancelled. */
const patienceMs = 2 * cancelAfterMs;

/** Throws TIMEOUT when requests do not end, and what keeps a thread from running. */
export async function measure(options: MeasureOptions): Promise<Measurement> {
  const { engine, signal } = options;
  const jobs = options.jobs.map((job) => ({ ...job, engine }));
  const memory = {
    counters: new SharedArrayBuffer(LoadCounters.bytesFor(jobs.length)),
    control: new SharedArrayBuffer(controlBytes),
  };
  const state = new Int32Array(memory.control);
  const counters = jobs.map((_, n) => new LoadCounters(memory.counters, n));
  const stop = (): void => void Atomics.store(state, Control.STOPPED, 1);
  signal.addEventListener('abort', stop);
  const run = needsMainThread(engine)
    ? () => runHere(jobs, counters, state)
    : await prepareThreads(jobs, memory, sharedByQueues(engine) !== undefined);
  const ios = (): number => counters.reduce((sum, one) => sum + one.ios, 0);
  const bytes = (): number => counters.reduce((sum, one) => sum + one.bytes, 0);
  const looks = setInterval(() => options.onLook(ios(), bytes()), lookMs);
  const { rampMs, runtimeMs } = jobs[0];
  const begin = new Beginning(rampMs);
  try {
    const { done, ended } = run();
    await Promise.race([done, tooLate(rampMs + runtimeMs + patienceMs, signal)]);
    const clocks = begin.end();
    await ended;
    return {
      ...clocks,
      read: LoadCounters.figures(counters, false),
      write: LoadCounters.figures(counters, true),
      errors: counters.reduce((sum, one) => sum + one.errors, 0),
      firstErrno: counters.find((one) => one.errors > 0)?.firstErrno ?? 0,
    };
  } finally {
    begin.close();
    clearInterval(looks);
    signal.removeEventListener('abort', stop);
  }
}

/** The clocks as they were when the counting began. */
class Beginning {
  #startedMs = performance.now();
  #cpu = process.cpuUsage();
  readonly #timer: NodeJS.Timeout;

  constructor(rampMs: number) {
    this.#timer = setTimeout(() => {
      this.#startedMs = performance.now();
      this.#cpu = process.cpuUsage();
    }, rampMs);
  }

  end(): Pick<Measurement, 'seconds' | 'cpu'> {
    const { user, system } = process.cpuUsage(this.#cpu);
    return {
      seconds: (performance.now() - this.#startedMs) / 1000,
      cpu: { userUs: user, systemUs: system },
    };
  }

  close(): void {
    clearTimeout(this.#timer);
  }
}

interface Run {
  /** All requests have ended. */
  readonly done: Promise<unknown>;
  /** All that they took is given back. */
  readonly ended: Promise<unknown>;
}

/** Starts a thread a job, or one for all where they share something. Returns what makes them begin. */
async function prepareThreads(
  jobs: readonly LoadSpec[],
  memory: Pick<BenchThreadSetup, 'counters' | 'control'>,
  together: boolean,
): Promise<() => Run> {
  const shares = together ? [jobs] : jobs.map((job) => [job]);
  const workers = shares.map(
    (share, n) =>
      new Worker(new URL('./bench-thread-main.js', import.meta.url), {
        workerData: { ...memory, jobs: share, firstJob: n } satisfies BenchThreadSetup,
      }),
  );
  const ended = Promise.all(workers.map((worker) => once(worker, 'exit')));
  const told = () => Promise.all(workers.map((worker) => once(worker, 'message')));
  try {
    await told();
  } catch (error) {
    await Promise.allSettled([ended, ...workers.map((worker) => worker.terminate())]);
    throw error;
  }
  return () => {
    const done = told();
    const state = new Int32Array(memory.control);
    Atomics.store(state, Control.STARTED, 1);
    Atomics.notify(state, Control.STARTED);
    return { done, ended };
  };
}

function runHere(jobs: readonly LoadSpec[], counters: readonly LoadCounters[], control: Int32Array): Run {
  const reactor = acquireEventLoopReactor();
  const generators: LoadGenerator[] = [];
  const done = Promise.all(
    jobs.map(
      (job, n) =>
        new Promise<void>((onDone) => {
          const generator = new LoadGenerator(job, { reactor, counters: counters[n], control, onDone });
          generators.push(generator);
          generator.start();
        }),
    ),
  );
  reactor.wake();
  const ended = done.finally(() => {
    for (const generator of generators) {
      generator.close();
    }
    releaseEventLoopReactor();
  });
  return { done, ended };
}

/** Until the end of patience: of all time, or since somebody asked for the end. */
async function tooLate(ms: number, signal: AbortSignal): Promise<never> {
  const asked = once(signal, 'abort').then(() => delay(patienceMs, undefined, { ref: false }));
  await Promise.race([delay(ms, undefined, { ref: false }), asked]);
  throw new VduseError('TIMEOUT', 'requests that are in flight do not end', {
    hint: 'The storage behind the node hangs.',
  });
}
