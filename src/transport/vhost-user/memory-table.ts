/** The front-end's memory, mapped into this process. All maps of a session are made and ended here. */
import { fstatSync } from 'node:fs';
import { VduseError } from '../../base/errors.js';
import { MemoryAccess, type MemoryRegion } from '../../memory/guest-memory.js';
import { mapFile, pageSize, unmap } from '../../native/memory.js';
import { type GuardedMemory, guardMemory } from '../../native/sigbus-guard.js';
import { memorySlotsMax } from './protocol.js';
import type { RegionDescription } from './request.js';

interface MappedRegion {
  readonly description: RegionDescription;
  /** What was mapped: the region with what its file's pages have before and behind it. */
  readonly mapAddress: number;
  readonly mapLength: number;
  readonly guard: GuardedMemory;
  readonly region: MemoryRegion;
}

function describe({ guestAddress, length }: RegionDescription): string {
  return `memory region of ${length} bytes at 0x${guestAddress.toString(16)}`;
}

function overlaps(a: { start: number; length: number }, b: { start: number; length: number }): boolean {
  return a.start < b.start + b.length && b.start < a.start + a.length;
}

/** Pages of the file: huge ones can only be mapped whole. */
function pageBytesOf(blockSize: number): number {
  const isPowerOfTwo = blockSize > 0 && Number.isInteger(Math.log2(blockSize));
  return isPowerOfTwo ? Math.max(pageSize, blockSize) : pageSize;
}

/** The file is the front-end's, which can cut it under us. When it throws, the map is gone. */
function guardMap(address: number, length: number): GuardedMemory {
  try {
    return guardMemory({ address, length });
  } catch (error) {
    unmap(address, length);
    throw error;
  }
}

function mapRegion(description: RegionDescription, fd: number): MappedRegion {
  const { guestAddress, length, userAddress, fileOffset } = description;
  const file = fstatSync(fd);
  const ends = [guestAddress, userAddress, fileOffset].map((start) => start + length);
  if (length === 0 || !ends.every(Number.isSafeInteger)) {
    throw new VduseError('PROTOCOL', `${describe(description)}: it is empty, or goes beyond 2^53`);
  }
  if (!file.isFile() || fileOffset + length > file.size) {
    throw new VduseError(
      'PROTOCOL',
      `${describe(description)}: its descriptor is no file of ${fileOffset + length} bytes`,
    );
  }
  const pageBytes = pageBytesOf(file.blksize);
  const before = fileOffset % pageBytes;
  const mapLength = Math.ceil((before + length) / pageBytes) * pageBytes;
  const mapAddress = mapFile({
    fd,
    length: mapLength,
    offset: fileOffset - before,
    readable: true,
    writable: true,
  });
  const region = {
    start: guestAddress,
    length,
    hostAddress: mapAddress + before,
    access: MemoryAccess.READ_WRITE,
  };
  return { description, mapAddress, mapLength, guard: guardMap(mapAddress, mapLength), region };
}

export class MemoryTable {
  readonly #mapped: MappedRegion[] = [];

  get regions(): readonly MemoryRegion[] {
    return this.#mapped.map(({ region }) => region);
  }

  get isEmpty(): boolean {
    return this.#mapped.length === 0;
  }

  /** What is wrong with a region whose file has become shorter under us; undefined as long as nobody has met it. */
  get damage(): string | undefined {
    const found = this.#mapped.find(({ guard }) => guard.damaged);
    return found && `${describe(found.description)}: its file was cut short while it was in use`;
  }

  /** Maps a region. The descriptor stays the caller's. Throws PROTOCOL, or SYSTEM_CALL where it can't be mapped. */
  add(description: RegionDescription, fd: number): void {
    if (this.#mapped.length === memorySlotsMax) {
      throw new VduseError('PROTOCOL', `${describe(description)}: all ${memorySlotsMax} slots are taken`);
    }
    const { guestAddress, userAddress, length } = description;
    const taken = this.#mapped.find(
      ({ description: other }) =>
        overlaps({ start: guestAddress, length }, { start: other.guestAddress, length: other.length }) ||
        overlaps({ start: userAddress, length }, { start: other.userAddress, length: other.length }),
    );
    if (taken !== undefined) {
      throw new VduseError(
        'PROTOCOL',
        `${describe(description)}: it overlaps the ${describe(taken.description)}`,
      );
    }
    this.#mapped.push(mapRegion(description, fd));
  }

  /** Unmaps a region, "identified by its guest address, user address and size". Nothing may touch it any more. */
  remove(description: RegionDescription): void {
    const { guestAddress, userAddress, length } = description;
    const index = this.#mapped.findIndex(
      ({ description: other }) =>
        other.guestAddress === guestAddress && other.userAddress === userAddress && other.length === length,
    );
    if (index < 0) {
      throw new VduseError('PROTOCOL', `${describe(description)}: there is none`);
    }
    this.#unmap(index);
  }

  /** Unmaps it all. Nothing may touch it any more. */
  close(): void {
    while (this.#mapped.length > 0) {
      this.#unmap(this.#mapped.length - 1);
    }
  }

  /** The guest's name for an address of the front-end's. Throws PROTOCOL where that is in no region. */
  guestAddressOf(userAddress: number): number {
    const found = this.#mapped.find(
      ({ description: { userAddress: start, length } }) =>
        userAddress >= start && userAddress < start + length,
    );
    if (found === undefined) {
      throw new VduseError(
        'PROTOCOL',
        `ring address 0x${userAddress.toString(16)}: it lies in no memory region`,
      );
    }
    return found.description.guestAddress + (userAddress - found.description.userAddress);
  }

  #unmap(index: number): void {
    const [{ guard, mapAddress, mapLength }] = this.#mapped.splice(index, 1);
    guard.release();
    unmap(mapAddress, mapLength);
  }
}
