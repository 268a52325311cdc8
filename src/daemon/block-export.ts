/** An export: one way out for a block node. Its type-specific options are its creator's business. */
import type { BlockNode } from '../block/node.js';

export interface BlockExport {
  readonly id: string;
  /** QEMU's name of the export type, such as `vduse-blk`. */
  readonly type: string;
  readonly node: BlockNode;
  readonly writable: boolean;
  readonly shuttingDown: boolean;
  /** Settles when the export has ended, whatever ended it. Never rejects. */
  readonly closed: Promise<void>;
  /** Tells the front-end that the node's size is another one. */
  resized(): void;
  /**
   * Ends the export. Not hard: throws BUSY while a front-end uses it, as QEMU does. Hard: requests in
   * flight end, the front-end loses its device.
   */
  close(options: { readonly hard: boolean }): Promise<void>;
}

export interface VduseBlkExportOptions {
  readonly id: string;
  readonly node: BlockNode;
  readonly writable: boolean;
  /** The VDUSE device name: /dev/vduse/NAME. */
  readonly name: string;
  readonly queueCount?: number;
  readonly queueSize?: number;
  readonly logicalBlockSize?: number;
  readonly serial?: string;
  /** Adds the device to the vDPA bus, as `vdpa dev add` does, and binds that driver; absent: the user does. */
  readonly attach?: 'virtio' | 'vhost';
  /** The thread of each queue, by thread name; the default spreads queues over the process's pool. */
  readonly threads?: readonly string[];
}
