/** Queue hosts whose starts and stops the test decides: what a device does with several of them. */
import type {
  MemoryUpdate,
  NamedThread,
  QueueHost,
  QueueHosts,
  QueueListener,
  QueueSpec,
  QueueStop,
} from '../../src/device/queue-host.js';

export class ControlledHost implements QueueHost {
  readonly name: string;
  /** Queues that run, by id. */
  readonly running = new Map<number, { spec: QueueSpec; listener: QueueListener }>();
  readonly updates: { id: number; update: MemoryUpdate }[] = [];
  /** Called before a start is over. */
  onStart: (spec: QueueSpec) => Promise<void> = () => Promise.resolve();
  onStop: (id: number, timeoutMs: number) => Promise<QueueStop> = () =>
    Promise.resolve({ drained: true, availIndex: 0 });

  constructor(name: string) {
    this.name = name;
  }

  async start(spec: QueueSpec, listener: QueueListener): Promise<void> {
    await this.onStart(spec);
    this.running.set(spec.id, { spec, listener });
  }

  updateMemory(id: number, update: MemoryUpdate): void {
    this.updates.push({ id, update });
  }

  drain(id: number, timeoutMs: number): Promise<QueueStop> {
    return this.stop(id, timeoutMs);
  }

  async stop(id: number, timeoutMs: number): Promise<QueueStop> {
    const result = await this.onStop(id, timeoutMs);
    this.running.delete(id);
    return result;
  }
}

export class ControlledHosts implements QueueHosts {
  readonly hosts: ControlledHost[] = [];
  readonly main = new ControlledHost('main');
  /** The threads that devices asked for. */
  readonly asked: (readonly NamedThread[] | undefined)[] = [];

  async assign(queueCount: number, threads?: readonly NamedThread[]): Promise<QueueHost[]> {
    this.asked.push(threads);
    const made = Array.from({ length: queueCount }, (_, n) => new ControlledHost(`host-${n}`));
    this.hosts.push(...made);
    return made;
  }

  local(): QueueHost {
    return this.main;
  }
}
