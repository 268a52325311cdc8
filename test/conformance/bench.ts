/**
 * What the conformance suite needs of a VDUSE driver beside its ABI: something that uses the devices. One
 * suite runs on Linux's module and on the one that plays it.
 */
import type { VduseKernel } from '../../src/native/vduse-kernel.js';

/** `software-0` and `software-1` speak that API version at the most, as Linux 6.12 and 7.2 do. */
export type Platform = 'linux-6.12' | 'linux-7.2' | 'software-0' | 'software-1';

export interface SessionOptions {
  /** How long messages may wait; the driver's own default when absent. */
  readonly shortTimeout?: boolean;
  /** Bytes of the bounce regions; the driver's own default when absent. */
  readonly bounceBytes?: number;
  /** The case changes direct maps: `changeMaps`. */
  readonly directMaps?: boolean;
}

/** A change of 64 KiB of the map at an IO virtual address, as vhost-vdpa makes it. */
export interface MapChange {
  readonly kind: 'map' | 'unmap';
  readonly iova: number;
}

export const changedBytes = 64 << 10;

/** A driver for the time of one case. */
export interface Session {
  readonly kernel: VduseKernel;
  /** Milliseconds of the short time limit. */
  readonly shortTimeoutMs: number;
  /** After CREATE_DEV: sets what the session's options ask for, where it is the device's. */
  prepare(name: string): void;
  /** Has the driver ask the disk for its serial number: one request of 20 bytes. */
  diskId(name: string): Promise<string>;
  /** Has the driver ask where a queue stands; undefined where the device refused. May take another bus driver. */
  queueState(name: string, index: number): Promise<number | undefined>;
  /** Has the driver change the map, from none on; tells of each change whether it was `done` or `refused`. */
  changeMaps(name: string, changes: readonly MapChange[]): Promise<string[]>;
}

export interface Bench {
  readonly platform: Platform;
  readonly newestApi: number;
  open(options: SessionOptions): Session;
}
