/** What the main thread and a queue thread say to each other. */
import type { IoError, MemoryUpdate, QueueSpec, QueueStop } from '../device/queue-host.js';
import type { RingKind } from '../native/open-ring.js';

/** Handed to a queue thread when it starts. */
export interface ThreadSetup {
  /** An eventfd: the main thread signals it after each command. */
  readonly wakeFd: number;
  /** Overrides what the queues ask for. */
  readonly pollUs?: number;
  readonly cpus?: readonly number[];
  readonly ring: RingKind;
}

export type ThreadCommand =
  | { readonly kind: 'start'; readonly call: number; readonly spec: QueueSpec }
  | { readonly kind: 'stop'; readonly call: number; readonly id: number; readonly timeoutMs: number }
  | { readonly kind: 'drain'; readonly call: number; readonly id: number; readonly deadlineMs: number }
  | { readonly kind: 'memory'; readonly id: number; readonly update: MemoryUpdate }
  | { readonly kind: 'exit' };

export type ThreadReport =
  | { readonly kind: 'ready' }
  | { readonly kind: 'started'; readonly call: number }
  | { readonly kind: 'stopped'; readonly call: number; readonly result: QueueStop }
  | { readonly kind: 'failed'; readonly call: number; readonly code: string; readonly message: string }
  | { readonly kind: 'broken'; readonly id: number; readonly reason: string }
  | { readonly kind: 'memory-miss'; readonly id: number }
  /** For a block node, from one of its engines. */
  | { readonly kind: 'engine'; readonly node: number; readonly report: object }
  | { readonly kind: 'errors'; readonly id: number; readonly count: number; readonly error: IoError };
