/** A thread that answers each kick: it counts what came and signals back. Ends at the stop eventfd. */
import { parentPort, workerData } from 'node:worker_threads';
import { signalEventFd } from '../../src/native/fd.js';
import { Reactor } from '../../src/reactor/reactor.js';

export interface EchoWork {
  readonly kickFd: number;
  readonly stopFd: number;
  readonly replyFd: number;
  readonly pollUs: number;
  /** Kicks answered. */
  readonly answered: Int32Array;
}

const { kickFd, stopFd, replyFd, pollUs, answered } = workerData as EchoWork;
const tokenKick = 1;
const tokenStop = 2;

const reactor = new Reactor({ entries: 8, pollUs });
const source = reactor.add({
  poll: () => 0,
  publish: () => {},
  prepareToSleep: () => false,
  onCompletion(token, _result, flags) {
    if (token === tokenStop) {
      reactor.stop();
      return;
    }
    Atomics.add(answered, 0, 1);
    Atomics.notify(answered, 0);
    signalEventFd(replyFd);
    if (!Reactor.isArmed(flags)) {
      reactor.armPoll(kickFd, source, tokenKick);
    }
  },
});
reactor.armPoll(kickFd, source, tokenKick);
reactor.armPoll(stopFd, source, tokenStop);
parentPort?.postMessage('ready');
reactor.run();
reactor.close();
