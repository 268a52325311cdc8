/** The device's side on a thread of its own: it answers each chain with its input, every byte plus one. */
import { parentPort, workerData } from 'node:worker_threads';
import { GuestMemory, type MemoryRegion } from '../../src/memory/guest-memory.js';
import { signalEventFd, viewBytes } from '../../src/native/fd.js';
import { type EventSource, Reactor } from '../../src/reactor/reactor.js';
import { SplitVirtqueue, type SplitVirtqueueConfig } from '../../src/virtqueue/split-virtqueue.js';

export interface DeviceWork {
  readonly regions: readonly MemoryRegion[];
  readonly config: SplitVirtqueueConfig;
  readonly kickFd: number;
  readonly callFd: number;
  readonly stopFd: number;
}

const { regions, config, kickFd, callFd, stopFd } = workerData as DeviceWork;
const tokenKick = 1;
const tokenStop = 2;

class EchoDevice implements EventSource {
  readonly #queue = new SplitVirtqueue(config, new GuestMemory(regions));
  readonly #chain = this.#queue.createChain();
  readonly #heads = new Uint16Array(7);

  poll(): number {
    const count = this.#queue.popAvailable(this.#heads);
    if (count < 0) {
      throw new Error('the available ring is broken');
    }
    for (let n = 0; n < count; n++) {
      this.#answer(this.#heads[n]);
    }
    return count;
  }

  #answer(head: number): void {
    const chain = this.#chain;
    if (this.#queue.readChain(head, chain) !== 0 || chain.count !== 2) {
      throw new Error(`chain ${head} is not what the driver gave`);
    }
    const input = viewBytes(chain.hostAddress[0], chain.length[0]);
    viewBytes(chain.hostAddress[1], chain.length[1]).set(input.map((byte) => byte + 1));
    this.#queue.addUsed(head, chain.length[1]);
  }

  publish(): void {
    if (this.#queue.publishUsed()) {
      signalEventFd(callFd);
    }
  }

  prepareToSleep(): boolean {
    return this.#queue.enableNotifications();
  }

  onCompletion(token: number, _result: number, flags: number): void {
    if (token === tokenStop) {
      reactor.stop();
      return;
    }
    this.#queue.disableNotifications();
    if (!Reactor.isArmed(flags)) {
      reactor.armPoll(kickFd, source, tokenKick);
    }
  }
}

const reactor = new Reactor({ entries: 8 });
const source = reactor.add(new EchoDevice());
reactor.armPoll(kickFd, source, tokenKick);
reactor.armPoll(stopFd, source, tokenStop);
parentPort?.postMessage('ready');
reactor.run();
reactor.close();
