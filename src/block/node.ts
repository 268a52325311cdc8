/**
 * A block node: one opened image or device of the block graph, as the control side sees it. The data side
 * is the engine that queue threads build from `engine`, which is plain data so that it crosses threads.
 */
import type { Logger } from '../base/log.js';
import type { TlsCredentials } from '../base/tls-credentials.js';
import type { NbdServerAddress } from './drivers/nbd-client/nbd-address.js';
import type { EngineSpec } from './engine.js';

/** What a front-end may be offered. A missing ability becomes a missing feature bit. */
export interface BlockFeatures {
  /** Writes may sit in a volatile cache until a flush. */
  readonly flush: boolean;
  readonly discard: boolean;
  readonly writeZeroes: boolean;
  /** Whether write-zeroes may free the blocks it zeroes. */
  readonly writeZeroesMayUnmap: boolean;
}

/** Units are bytes; every value is a power of two, or 0 where the node has nothing to say. */
export interface BlockLimits {
  /** Offsets and lengths of requests must be multiples of this. */
  readonly requestAlignment: number;
  readonly physicalBlockSize: number;
  readonly optimalIoSize: number;
  readonly discardAlignment: number;
}

export interface BlockNode {
  readonly nodeName: string;
  /** The block driver's QEMU name, such as `file` or `null-co`. */
  readonly driver: string;
  readonly filename: string | undefined;
  readonly readOnly: boolean;
  readonly cacheDirect: boolean;
  readonly cacheNoFlush: boolean;
  readonly detectZeroes: DetectZeroes;
  readonly features: BlockFeatures;
  readonly limits: BlockLimits;
  /** Bytes, a multiple of 512. */
  readonly size: number;
  readonly engine: EngineSpec;
  /** The node that it works on: a raw node's file, a filter's disk. Absent: it has none. */
  readonly child?: BlockNode | undefined;
  /** Whether nobody else may change the child's size. Absent: everybody may. */
  readonly pinsChildSize?: boolean;
  /** Tells of changes that come from outside, such as an image that somebody else has resized. Once, after opening. */
  watch?(listener: BlockNodeListener): void;
  /** Changes the size in bytes. Throws NOT_SUPPORTED where the driver can't, IMAGE_READ_ONLY on a read-only node. */
  resize(size: number): Promise<void>;
  /**
   * Opens the node again with other options, while nothing is in flight. When it throws, this one goes on. Absent: it
   * can't.
   */
  reopen?(options: BlockNodeOptions, children: ChildOpener): Promise<ReopenedNode>;
  /** Releases locks and descriptors. The caller has ended every engine built from the node before. */
  close(): Promise<void>;
}

/** A node that was opened again, until it is decided which of the two goes on: one of the functions is called, once. */
export interface ReopenedNode {
  readonly node: BlockNode;
  /** Ends the node as it was before. */
  commit(): Promise<void>;
  /** Ends the new one. */
  abort(): Promise<void>;
}

export interface BlockNodeListener {
  /** `size` of the node has another value. */
  onResize(): void;
}

/** Opens what a node names as its child, for it alone to close. */
export interface ChildOpener {
  /** `role` is the option's name, such as `file`. Throws NOT_FOUND for a name that no node has. */
  open(role: string, child: NodeReference): Promise<BlockNode>;
  /** The buffer of the throttle group of that name; undefined where there is none. */
  throttleGroup?(id: string): SharedArrayBuffer | undefined;
}

export type DetectZeroes = 'off' | 'on' | 'unmap';
export type DiscardMode = 'unmap' | 'ignore';
export type AioMode = 'native' | 'io_uring' | 'threads';
export type LockingMode = 'auto' | 'on' | 'off';

interface CommonNodeOptions {
  readonly nodeName: string;
  readonly readOnly?: boolean;
  readonly discard?: DiscardMode;
  readonly detectZeroes?: DetectZeroes;
  readonly cache?: { readonly direct?: boolean; readonly noFlush?: boolean };
}

export interface FileNodeOptions extends CommonNodeOptions {
  readonly driver: 'file' | 'host_device';
  readonly filename: string;
  /** Opens read-only when writing is not permitted, instead of failing. */
  readonly autoReadOnly?: boolean;
  readonly aio?: AioMode;
  readonly locking?: LockingMode;
}

export interface NullNodeOptions extends CommonNodeOptions {
  readonly driver: 'null-co';
  /** Bytes. QEMU's default is 1 GiB. */
  readonly size?: number;
  /** Reads fill the buffer with zeroes; without it they leave the buffer as it is. */
  readonly readZeroes?: boolean;
}

export interface MemoryNodeOptions extends CommonNodeOptions {
  readonly driver: 'memory';
  readonly size: number;
}

export interface NbdNodeOptions extends CommonNodeOptions {
  readonly driver: 'nbd';
  readonly server: NbdServerAddress;
  /** The default export, whose name is empty, when absent. */
  readonly exportName?: string;
  /** Id of the tls-creds object; without it nothing is encrypted. */
  readonly tlsCreds?: string;
  /** The name that the server's certificate must have; the server's host when absent. */
  readonly tlsHostname?: string;
  /** Seconds that requests wait for a server that went away, before they fail. 0, the default: none. */
  readonly reconnectDelay?: number;
  /** Seconds to try to connect when the node is opened. 0, the default: once. */
  readonly openTimeout?: number;
  /** Opens read-only what the server serves read-only, instead of failing. */
  readonly autoReadOnly?: boolean;
}

/** A part of a disk, or all of it: no format, only where it begins and ends. */
export interface RawNodeOptions extends CommonNodeOptions {
  readonly driver: 'raw';
  /** Bytes of the child before the first of this node. 0 when absent. */
  readonly offset?: number;
  /** Bytes; up to the child's end when absent. */
  readonly size?: number;
  readonly file: NodeReference;
}

/** A disk whose requests are held to the limits of a throttle group. */
export interface ThrottleNodeOptions extends CommonNodeOptions {
  readonly driver: 'throttle';
  /** The id of a throttle-group object. */
  readonly throttleGroup: string;
  readonly file: NodeReference;
}

export interface RbdNodeOptions extends CommonNodeOptions {
  readonly driver: 'rbd';
  readonly pool: string;
  readonly namespace?: string;
  readonly image: string;
  readonly snapshot?: string;
  /** Path of a ceph.conf; those at the usual places when absent. */
  readonly conf?: string;
  /** Ceph's name of the user without `client.`; `admin` when absent. */
  readonly user?: string;
  /** Monitors, instead of the configuration's. */
  readonly servers?: readonly { readonly host: string; readonly port: string }[];
  readonly authClientRequired?: readonly ('cephx' | 'none')[];
  /** Id of the secret object that holds the user's key. */
  readonly keySecret?: string;
  /** Opens read-only what can't be opened for writing (a snapshot), instead of failing. */
  readonly autoReadOnly?: boolean;
  /** Seconds; see docs/rbd.md. */
  readonly mountTimeout?: number;
  readonly monitorTimeout?: number;
  readonly osdTimeout?: number;
}

export interface HttpNodeOptions extends CommonNodeOptions {
  readonly driver: 'http' | 'https';
  readonly url: string;
  /** Bytes to read beyond what a request asks for, for the requests to come. */
  readonly readahead?: number;
  /** Seconds that a connection, or an answer on it, may take. */
  readonly timeout?: number;
  readonly username?: string;
  /** Id of the secret object that holds the password. */
  readonly passwordSecret?: string;
  readonly cookie?: string;
  /** Id of the secret object that holds the cookies. */
  readonly cookieSecret?: string;
  /** False: the server's certificate is not checked. */
  readonly sslVerify?: boolean;
  /** Opens read-only, which is the only way, instead of failing. */
  readonly autoReadOnly?: boolean;
}

/** What block drivers may want of whoever opens their nodes. */
export interface BlockServices {
  /** The bytes of a secret object. Throws NOT_FOUND. */
  secret(id: string): Uint8Array;
  /** What a tls-creds object holds. Throws NOT_FOUND. Absent: there are none. */
  tlsCredentials?(id: string): TlsCredentials;
  readonly logger: Logger;
}

/** When the filter `fault` strikes, and how. */
export interface FaultRuleOptions {
  readonly on?: 'any' | 'read' | 'write' | 'flush' | 'discard' | 'write-zeroes';
  /** `late-error`: done, and an error all the same. `disconnect`: all requests wait from then on, for `delayMs`. */
  readonly effect: 'error' | 'delay' | 'late-error' | 'disconnect';
  /** Positive; EIO when absent. */
  readonly errno?: number;
  readonly delayMs?: number;
  /** One in so many requests of the kind, by the seed; each when absent. */
  readonly oneIn?: number;
  /** Requests of the kind that pass first, on each queue. */
  readonly after?: number;
  /** How often the rule strikes, on each queue; always when absent. */
  readonly times?: number;
}

/** A disk that fails as it is told to, for tests. */
export interface FaultNodeOptions extends CommonNodeOptions {
  readonly driver: 'fault';
  readonly file: NodeReference;
  readonly seed?: number;
  readonly rules?: readonly FaultRuleOptions[];
}

export type BlockNodeOptions =
  | RbdNodeOptions
  | HttpNodeOptions
  | FileNodeOptions
  | NullNodeOptions
  | MemoryNodeOptions
  | NbdNodeOptions
  | RawNodeOptions
  | ThrottleNodeOptions
  | FaultNodeOptions;

type Unnamed<T> = T extends unknown ? Omit<T, 'nodeName'> & { readonly nodeName?: string } : never;

/** Options of a node that may go without a name of its own. */
export type UnnamedNodeOptions = Unnamed<BlockNodeOptions>;

/** A child: the name of a node that is there, or the options of one to open. */
export type NodeReference = string | UnnamedNodeOptions;
