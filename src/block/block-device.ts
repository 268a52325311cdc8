/**
 * What a user of the library writes to make a block driver. A missing method is a missing ability: no write
 * makes the disk read-only, no flush means that writes are durable when they resolve, no discard or
 * writeZeroes leaves the feature out. Offsets and lengths are bytes, checked against `size` and multiples of
 * 512 (of `blockSize` where it is given); a rejected promise is an I/O error for the front-end.
 */
export interface BlockDevice {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  /** Bytes, a power of two from 512 to 4096; 512 when absent. */
  readonly blockSize?: number;
  /** Fills the whole buffer. The buffer is the driver's until the promise settles. */
  read(offset: number, buffer: Uint8Array): Promise<void>;
  write?(offset: number, buffer: Uint8Array): Promise<void>;
  flush?(): Promise<void>;
  discard?(offset: number, length: number): Promise<void>;
  writeZeroes?(offset: number, length: number): Promise<void>;
  /** Changes `size` before it resolves. */
  resize?(size: number): Promise<void>;
  close?(): Promise<void>;
}
