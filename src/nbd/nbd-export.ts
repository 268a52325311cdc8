/**
 * What an NBD server serves. A missing method is a missing ability: the server does not offer the command to its
 * clients. The server checks every request before it calls (range, alignment, flags, read-only, length 0), so an
 * export stays naive.
 *
 * Memory has one owner at a time. A read lends its bytes to the server until `release`; a write lends the server a
 * place for the payload until `submit` or `cancel`. Each of these is called exactly once, whatever becomes of the
 * client.
 *
 * A method answers with a value or with a promise. What fails throws, or rejects, with an error whose `errno` is a
 * number (SystemCallError's, Node's own); any other error counts as EIO.
 */

/** What is known at once need not be a promise. */
export type Answer<T> = T | PromiseLike<T>;

export interface NbdBlockSizes {
  /** Bytes: a power of two from 1 to 65536. Offsets and lengths are multiples of it. */
  readonly minimum: number;
  /** Bytes: a power of two, at least 512 and the minimum. */
  readonly preferred: number;
  /** Bytes of the longest read or write: a multiple of the minimum, up to 32 MiB. */
  readonly maximum: number;
}

export interface NbdWriteOptions {
  /** Answer when the data is on stable storage. Only ever set for an export that does it (`fua`). */
  readonly fua: boolean;
}

export interface NbdWriteZeroesOptions extends NbdWriteOptions {
  /** The range may become a hole; otherwise it must stay allocated. */
  readonly mayUnmap: boolean;
  /** Fail with ENOTSUP, and change nothing, unless this is faster than writing. Only set with `fastZero`. */
  readonly fastZero: boolean;
}

/** A stretch that reads as zeroes, which nobody need fill or send. */
export interface NbdZeroes {
  /** Bytes. */
  readonly zeroes: number;
}

export interface NbdReadResult {
  /** In the export's order and without gaps; together exactly as long as what was asked for. */
  readonly parts: readonly (Uint8Array | NbdZeroes)[];
  /** The server looks at the parts no more. */
  release(): void;
}

/** A write whose payload is still on its way. */
export interface NbdPreparedWrite {
  /** Exactly as long as the write. May be shared memory: the server writes each byte once and reads none. */
  readonly buffer: Uint8Array;
  /** The payload is complete: carry the write out. The buffer is the export's again. */
  submit(): Answer<void>;
  /** The payload will not come. The buffer is the export's again. */
  cancel(): void;
}

/** A stretch of NBD_CMD_BLOCK_STATUS, for base:allocation. */
export interface NbdExtent {
  /** Bytes, a multiple of the minimum block size. */
  readonly length: number;
  /** Not allocated: a write to it may find no space. */
  readonly hole: boolean;
  /** Reads as zeroes. */
  readonly zero: boolean;
}

export interface NbdExport {
  /** Bytes, a multiple of the minimum block size. A client goes by the size it saw when it connected. */
  readonly size: number;
  readonly blockSizes: NbdBlockSizes;
  /** Writes honour `fua`. An export with `flush` and without this gets a flush after each such write instead. */
  readonly fua: boolean;
  /** A flush on one connection covers what was completed on all ("NBD_FLAG_CAN_MULTI_CONN"). */
  readonly multiConn: boolean;
  /** `writeZeroes` knows `fastZero`. */
  readonly fastZero?: boolean;

  read(offset: number, length: number): Answer<NbdReadResult>;
  /**
   * Lends memory for a write's payload, and then carries the write out. A promise holds back this client's
   * further requests until it settles: an export that is short of memory answers late.
   */
  prepareWrite?(offset: number, length: number, options: NbdWriteOptions): Answer<NbdPreparedWrite>;
  /** Everything that was completed before is on stable storage. */
  flush?(): Answer<void>;
  /** The range's content is needed no more. */
  trim?(offset: number, length: number, options: NbdWriteOptions): Answer<void>;
  writeZeroes?(offset: number, length: number, options: NbdWriteZeroesOptions): Answer<void>;
  /** The range will be read soon. */
  cache?(offset: number, length: number): Answer<void>;
  /** At least one extent from `offset` on; those beyond the range, and beyond what the protocol takes, are cut off. */
  blockStatus?(offset: number, length: number): Answer<readonly NbdExtent[]>;
}
