/**
 * What a queue uses: synchronous and batched. An engine belongs to one queue and lives on its thread; the
 * request table is shared by the two, so that a request crosses the seam as one small integer.
 */

import type { CopyChannelSpec } from './copy-channel.js';
import type { DirtyBitmapSpec } from './dirty-bitmap.js';
import type { ConnectTarget } from './drivers/nbd-client/connector.js';
import type { ExportTerms } from './drivers/nbd-client/export-terms.js';
import type { FaultRule } from './filters/fault-engine.js';

export const BlockOp = {
  READ: 0,
  WRITE: 1,
  FLUSH: 2,
  DISCARD: 3,
  WRITE_ZEROES: 4,
  /** Asks what is allocated: an ExtentList comes in the payload. Only where `canTellStatus` is true of the spec. */
  STATUS: 5,
} as const;
export type BlockOp = (typeof BlockOp)[keyof typeof BlockOp];

/** Whether a request may change what a disk holds. */
export function isChange(op: number): boolean {
  return op === BlockOp.WRITE || op === BlockOp.DISCARD || op === BlockOp.WRITE_ZEROES;
}

/** Request flags. */
export const BlockFlag = {
  /** The write is durable before it completes: the front-end did not negotiate FLUSH. */
  FUA: 1,
  /** WRITE_ZEROES may free the blocks. */
  MAY_UNMAP: 2,
} as const;

/** Where completions go. `result` is 0 or a negative errno. Called from submit() or from the reactor. */
export interface BlockCompletionSink {
  onBlockComplete(slot: number, result: number): void;
}

export interface BlockEngine {
  /** Starts the slot's request. The caller has checked range, alignment and read-only. */
  submit(slot: number): void;
  /** Lets go on at once what only waits for its time. Absent: nothing does. */
  expedite?(): void;
  /** Asks for the end of what is in flight; completions still come. */
  cancel(): void;
  /** Gives up what is in flight: completions still come, but no data of theirs reaches guest memory from here. */
  abandon(): void;
  /** Releases the engine's own resources. Nothing is in flight any more. */
  close(): void;
}

export interface FileEngineSpec {
  readonly kind: 'file';
  readonly fd: number;
  /** Alignment that O_DIRECT wants of memory addresses, bytes; 1 without O_DIRECT. */
  readonly memoryAlignment: number;
  /** Flushes are not needed (cache.no-flush). */
  readonly noFlush: boolean;
  /** Discards do nothing (discard=ignore). */
  readonly ignoreDiscard: boolean;
  /** Requests go to the kernel's worker threads at once instead of being tried inline (aio=threads). */
  readonly forceAsync: boolean;
}

export interface NullEngineSpec {
  readonly kind: 'null';
  readonly readZeroes: boolean;
}

/** A block driver written by a user: its functions live on the main thread, and so do its queues. */
export interface LocalEngineSpec {
  readonly kind: 'local';
  /** The driver's number in the main thread's table (local-engine.ts). */
  readonly key: number;
}

/** A Ceph RBD image. The handles are the process's: an engine may be built on any of its threads. */
export interface RbdEngineSpec {
  readonly kind: 'rbd';
  /** rbd_image_t. */
  readonly image: number;
  /** librbd signals it for each completion of the image. */
  readonly notifyFd: number;
  /** Address of what the image's engines share (rbd-shared.ts). */
  readonly shared: number;
  /** Flushes are not needed (cache.no-flush). */
  readonly noFlush: boolean;
  /** Discards do nothing (discard=ignore). */
  readonly ignoreDiscard: boolean;
}

/** A connection to an NBD server, one for each engine where the server allows that. */
export interface NbdEngineSpec extends ExportTerms {
  readonly kind: 'nbd';
  /** The node's number in the process. */
  readonly key: number;
  readonly target: ConnectTarget;
  /** What is written on one connection is seen and flushed on all (NBD_FLAG_CAN_MULTI_CONN). */
  readonly multipleConnections: boolean;
  /** The server tells what is allocated (base:allocation). */
  readonly tellsAllocation: boolean;
  /** How long requests wait for a server that went away. */
  readonly reconnectDelayMs: number;
  readonly noFlush: boolean;
  readonly ignoreDiscard: boolean;
  /** ParkedConnections' buffer. */
  readonly parked: SharedArrayBuffer;
}

/** A part of another engine's disk. */
export interface RawEngineSpec {
  readonly kind: 'raw';
  /** Where the part begins. Bytes. */
  readonly offset: number;
  /** Discards do nothing (discard=ignore). */
  readonly ignoreDiscard: boolean;
  readonly child: EngineSpec;
}

/** Tells a mirror job what is written. */
export interface MirrorEngineSpec {
  readonly kind: 'mirror';
  readonly bitmap: DirtyBitmapSpec;
  readonly child: EngineSpec;
  /** Writes are done here too before they complete (copy-mode=write-blocking). */
  readonly target?: EngineSpec;
}

/** Holds back what would change a part that a backup job has not copied yet. */
export interface BackupEngineSpec {
  readonly kind: 'backup';
  readonly bitmap: DirtyBitmapSpec;
  readonly channel: CopyChannelSpec;
  readonly child: EngineSpec;
}

export interface ThrottleEngineSpec {
  readonly kind: 'throttle';
  /** ThrottleGroup's buffer. */
  readonly group: SharedArrayBuffer;
  readonly child: EngineSpec;
}

/** Fails by rules, for tests. */
export interface FaultEngineSpec {
  readonly kind: 'fault';
  readonly seed: number;
  readonly rules: readonly FaultRule[];
  readonly child: EngineSpec;
}

export type EngineSpec =
  | RbdEngineSpec
  | FileEngineSpec
  | NullEngineSpec
  | LocalEngineSpec
  | NbdEngineSpec
  | RawEngineSpec
  | MirrorEngineSpec
  | BackupEngineSpec
  | ThrottleEngineSpec
  | FaultEngineSpec;

/** Whether the engine, or one below it, lives on the main thread. */
export function needsMainThread(spec: EngineSpec): boolean {
  return (
    spec.kind === 'local' ||
    ('child' in spec && needsMainThread(spec.child)) ||
    (spec.kind === 'mirror' && spec.target !== undefined && needsMainThread(spec.target))
  );
}

/** Whether the engine takes BlockOp.STATUS. */
export function canTellStatus(spec: EngineSpec): boolean {
  return spec.kind === 'nbd' ? spec.tellsAllocation : 'child' in spec && canTellStatus(spec.child);
}

/**
 * What all queues of a node share that must therefore run on one thread, as an object to tell it by; undefined where
 * they may run anywhere.
 */
export function sharedByQueues(spec: EngineSpec): object | undefined {
  if (spec.kind === 'nbd') {
    return spec.multipleConnections ? undefined : spec.parked;
  }
  return 'child' in spec ? sharedByQueues(spec.child) : undefined;
}
