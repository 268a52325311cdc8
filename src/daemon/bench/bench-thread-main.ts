/** The program of a thread that measures: its jobs on one reactor. It sleeps in its ring, as a queue thread does. */
import { parentPort, workerData } from 'node:worker_threads';
import { Reactor } from '../../reactor/reactor.js';
import { LoadCounters } from './load-counters.js';
import { Control, LoadGenerator, type LoadSpec } from './load-generator.js';

export interface BenchThreadSetup {
  readonly jobs: readonly LoadSpec[];
  /** The number of the first one among those of all threads. */
  readonly firstJob: number;
  readonly counters: SharedArrayBuffer;
  readonly control: SharedArrayBuffer;
}

if (parentPort !== null) {
  const { jobs, firstJob, counters, control } = workerData as BenchThreadSetup;
  const state = new Int32Array(control);
  const reactor = new Reactor();
  let running = jobs.length;
  const generators = jobs.map(
    (job, n) =>
      new LoadGenerator(job, {
        reactor,
        counters: new LoadCounters(counters, firstJob + n),
        control: state,
        onDone: () => {
          running--;
          if (running === 0) {
            reactor.stop();
          }
        },
      }),
  );
  parentPort.postMessage('ready');
  // All threads begin together.
  Atomics.wait(state, Control.STARTED, 0);
  for (const generator of generators) {
    generator.start();
  }
  reactor.run();
  parentPort.postMessage('done');
  for (const generator of generators) {
    generator.close();
  }
  reactor.close();
  parentPort.close();
}
