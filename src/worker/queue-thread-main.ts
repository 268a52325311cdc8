/**
 * The program of a queue thread. It sleeps inside its ring, in the kernel, so nothing here may wait for this thread's
 * event loop: commands are taken from the port by hand when the wake eventfd says so, and logging is the
 * main thread's business.
 */
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads';
import { errorMessage, VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import { setReportSender } from '../block/engine-reports.js';
import { setThreadAffinity } from '../native/affinity.js';
import { type EventSource, Reactor } from '../reactor/reactor.js';
import type { ThreadCommand, ThreadReport, ThreadSetup } from './messages.js';
import { QueueRunner } from './queue-runner.js';

const tokenWake = 0;
/** Turns between looks at the clock while the thread never sleeps. */
const turnsPerTick = 256;

class CommandSource implements EventSource {
  readonly #reactor: Reactor;
  readonly #runner: QueueRunner;
  readonly #port: MessagePort;
  readonly #wakeFd: number;
  readonly #source: number;
  #turns = 0;

  constructor(context: { reactor: Reactor; runner: QueueRunner; port: MessagePort; wakeFd: number }) {
    this.#reactor = context.reactor;
    this.#runner = context.runner;
    this.#port = context.port;
    this.#wakeFd = context.wakeFd;
    this.#source = context.reactor.add(this);
    this.#reactor.armPoll(this.#wakeFd, this.#source, tokenWake);
  }

  poll(): number {
    if (++this.#turns >= turnsPerTick) {
      this.#turns = 0;
      this.#runner.tick();
    }
    return 0;
  }

  publish(): void {}

  /** Commands need no look here: the wake eventfd is signalled after each, and that is a completion. */
  prepareToSleep(): boolean {
    if (!this.#runner.isWaiting) {
      this.#reactor.sleepMs = limits.sleepMsMax;
      return false;
    }
    this.#runner.tick();
    this.#reactor.sleepMs = Math.min(limits.sleepMsMax, this.#runner.msToNextTick());
    return false;
  }

  onCompletion(_token: number, _result: number, flags: number): void {
    if (!Reactor.isArmed(flags)) {
      this.#reactor.armPoll(this.#wakeFd, this.#source, tokenWake);
    }
    this.takeCommands();
  }

  takeCommands(): void {
    for (;;) {
      const received = receiveMessageOnPort(this.#port) as { message: ThreadCommand } | undefined;
      if (received === undefined) {
        return;
      }
      this.#execute(received.message);
    }
  }

  #execute(command: ThreadCommand): void {
    switch (command.kind) {
      case 'start':
        this.#start(command);
        break;
      case 'stop':
        this.#runner.stop(command.id, command.timeoutMs, (result) =>
          this.#report({ kind: 'stopped', call: command.call, result }),
        );
        break;
      case 'drain': {
        // The time goes on while the command waits for this thread.
        const timeoutMs = command.deadlineMs - performance.timeOrigin - performance.now();
        this.#runner.drain(command.id, timeoutMs, (result) =>
          this.#report({ kind: 'stopped', call: command.call, result }),
        );
        break;
      }
      case 'memory':
        this.#runner.updateMemory(command.id, command.update);
        break;
      case 'exit':
        this.#reactor.stop();
        break;
    }
  }

  #start(command: Extract<ThreadCommand, { kind: 'start' }>): void {
    const { spec, call } = command;
    try {
      this.#runner.start(spec, {
        onBroken: (reason) => this.#report({ kind: 'broken', id: spec.id, reason }),
        onMemoryMiss: () => this.#report({ kind: 'memory-miss', id: spec.id }),
        onErrors: (count, error) => this.#report({ kind: 'errors', id: spec.id, count, error }),
      });
      this.#report({ kind: 'started', call });
    } catch (error) {
      const code = error instanceof VduseError ? error.code : 'SYSTEM_CALL';
      this.#report({ kind: 'failed', call, code, message: errorMessage(error) });
    }
  }

  #report(report: ThreadReport): void {
    this.#port.postMessage(report);
  }
}

function main(port: MessagePort, setup: ThreadSetup): void {
  if (setup.cpus !== undefined) {
    setThreadAffinity(setup.cpus);
  }
  const reactor = new Reactor({ ...setup, observesDelay: true });
  const runner = new QueueRunner(reactor);
  setReportSender((node, report) =>
    port.postMessage({ kind: 'engine', node, report } satisfies ThreadReport),
  );
  const source = new CommandSource({ reactor, runner, port, wakeFd: setup.wakeFd });
  port.postMessage({ kind: 'ready' } satisfies ThreadReport);
  // Commands that were posted before the wake eventfd was watched.
  source.takeCommands();
  try {
    reactor.run();
  } finally {
    // Also after a fault: the kernel ends what is in flight with the ring.
    runner.close();
    reactor.close();
    port.close();
  }
}

if (parentPort !== null) {
  main(parentPort, workerData as ThreadSetup);
}
