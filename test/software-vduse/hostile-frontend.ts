/** A driver that breaks the rules on queue 0 of its device, and can still use queue 1: raw rings in its own memory. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { closeFd, createEventFd, viewBytes } from '../../src/native/fd.js';
import { createMemoryFile, mapFile, unmap } from '../../src/native/memory.js';
import type { VhostDevice } from '../../src/software-vduse/vhost-vdpa.js';

export const ringSize = 16;
/** The regions of the map, by IO virtual address: B follows A at once, in another part of the file. */
export const regionA = { start: 0x10000, length: 0x10000, offset: 0x1000, access: 3 };
/** Ends within a page: what lies behind it in that page is mapped, and not the device's. */
export const regionB = { start: 0x20000, length: 0x1388, offset: 0x12000, access: 3 };
export const readOnly = { start: 0x40000, length: 0x1000, offset: 0x15000, access: 1 };
export const writeOnly = { start: 0x50000, length: 0x1000, offset: 0x17000, access: 2 };
const regions = [regionA, regionB, readOnly, writeOnly];
const fileBytes = 0x19000;
const canary = 0xc7;
const queueBytes = 0x3000;
export const headerAddress = regionA.start + 0x8000;
export const dataAddress = regionA.start + 0xa000;
export const statusAddress = regionA.start + 0x9000;
const statusNone = 0xee;

export const F = { NEXT: 1, WRITE: 2, INDIRECT: 4 } as const;

export interface Descriptor {
  readonly address: number | bigint;
  readonly length: number;
  readonly flags: number;
  readonly next?: number;
}

export interface Attack {
  /** Descriptors of the table from 0 on. */
  readonly descriptors: readonly Descriptor[];
  /** What is made available, and by how much the index moves: the number of heads when absent. */
  readonly heads?: readonly number[];
  readonly advance?: number;
  readonly type?: number;
  readonly sector?: bigint;
  /** An indirect table, put at `dataAddress`. */
  readonly table?: readonly Descriptor[];
}

export class HostileFrontend {
  readonly #device: VhostDevice;
  readonly #fd: number;
  readonly #address: number;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #callFds = [createEventFd(), createEventFd()];
  #goodIndex = 0;

  constructor(device: VhostDevice) {
    this.#device = device;
    this.#fd = createMemoryFile('vduse-hostile', fileBytes);
    this.#address = mapFile({ fd: this.#fd, length: fileBytes, offset: 0, readable: true, writable: true });
    this.#bytes = viewBytes(this.#address, fileBytes);
    this.#view = new DataView(this.#bytes.buffer, this.#bytes.byteOffset, fileBytes);
  }

  close(): void {
    unmap(this.#address, fileBytes);
    for (const fd of [this.#fd, ...this.#callFds]) {
      closeFd(fd);
    }
  }

  /** From a reset to DRIVER_OK. `rings` moves queue 0's. */
  async start(
    queue: Partial<{
      size: number;
      descriptorAddress: number;
      driverAddress: number;
      deviceAddress: number;
    }> = {},
  ): Promise<void> {
    const device = this.#device;
    await device.reset();
    this.#bytes.fill(canary);
    for (const { offset, length } of regions) {
      this.#bytes.fill(0, offset, offset + length);
    }
    this.#goodIndex = 0;
    await device.setStatus(1);
    await device.setStatus(3);
    // VERSION_1, ACCESS_PLATFORM, INDIRECT_DESC, FLUSH, DISCARD, WRITE_ZEROES.
    device.setDriverFeatures((0x3n << 32n) | (1n << 28n) | (1n << 9n) | (1n << 13n) | (1n << 14n));
    await device.setStatus(0xb);
    await device.setMemory(regions.map((region) => ({ ...region, fd: this.#fd })));
    for (const index of [0, 1]) {
      const base = regionA.start + index * queueBytes;
      device.setQueue(index, {
        size: ringSize,
        descriptorAddress: base,
        driverAddress: base + 0x1000,
        deviceAddress: base + 0x2000,
        callFd: this.#callFds[index],
        ...(index === 0 ? queue : {}),
      });
    }
    await device.setStatus(0xf);
  }

  #at(address: number): number {
    const region = regions.find(({ start, length }) => address >= start && address < start + length);
    assert(region !== undefined);
    return region.offset + address - region.start;
  }

  byteAt(address: number): number {
    return this.#bytes[this.#at(address)];
  }

  #writeDescriptors(address: number, descriptors: readonly Descriptor[]): void {
    descriptors.forEach((descriptor, n) => {
      const at = this.#at(address) + 16 * n;
      this.#view.setBigUint64(at, BigInt(descriptor.address) & 0xffff_ffff_ffff_ffffn, true);
      this.#view.setUint32(at + 8, descriptor.length, true);
      this.#view.setUint16(at + 12, descriptor.flags, true);
      this.#view.setUint16(at + 14, descriptor.next ?? n + 1, true);
    });
  }

  #offer(queue: number, heads: readonly number[], advance: number): void {
    const avail = this.#at(regionA.start + queue * queueBytes + 0x1000);
    const index = this.#view.getUint16(avail + 2, true);
    heads.forEach((head, n) => {
      this.#view.setUint16(avail + 4 + 2 * ((index + n) % ringSize), head, true);
    });
    const words = new Uint16Array(this.#bytes.buffer, this.#bytes.byteOffset + avail, 2);
    Atomics.store(words, 1, index + advance);
    this.#device.kick(queue);
  }

  usedIndex(queue: number): number {
    const used = this.#at(regionA.start + queue * queueBytes + 0x2000);
    return this.#view.getUint16(used + 2, true);
  }

  attack(attack: Attack): void {
    const header = this.#at(headerAddress);
    this.#view.setUint32(header, attack.type ?? 0, true);
    this.#view.setBigUint64(header + 8, attack.sector ?? 0n, true);
    this.#bytes[this.#at(statusAddress)] = statusNone;
    this.#bytes[this.#at(regionB.start + regionB.length - 1)] = statusNone;
    this.#writeDescriptors(regionA.start, attack.descriptors);
    if (attack.table !== undefined) {
      this.#writeDescriptors(dataAddress, attack.table);
    }
    const heads = attack.heads ?? [0];
    this.#offer(0, heads, attack.advance ?? heads.length);
  }

  /** What a chain's status byte says: undefined where it was not written. */
  status(address = statusAddress): number | undefined {
    const status = this.byteAt(address);
    return status === statusNone ? undefined : status;
  }

  /** Queue 1 serves a request of its own: GET_ID. */
  async useOtherQueue(): Promise<string> {
    const base = regionA.start + queueBytes;
    const at = base + 0x800;
    this.#view.setUint32(this.#at(at), 8, true);
    this.#writeDescriptors(base, [
      { address: at, length: 16, flags: F.NEXT },
      { address: at + 16, length: 20, flags: F.NEXT | F.WRITE },
      { address: at + 40, length: 1, flags: F.WRITE },
    ]);
    this.#goodIndex++;
    this.#offer(1, [0], 1);
    for (let n = 0; n < 500; n++) {
      if (this.usedIndex(1) === this.#goodIndex) {
        const id = this.#bytes.subarray(this.#at(at + 16), this.#at(at + 16) + 20);
        return new TextDecoder().decode(id).split('\0')[0];
      }
      await sleep(n < 10 ? 1 : 10);
    }
    assert.fail('queue 1 does not answer');
  }

  /** Nothing outside what was mapped has changed, nor what the device may only read. */
  checkBorders(): void {
    // One look: inside of the map the device may write meanwhile.
    const found = Buffer.from(this.#bytes);
    const expected = Buffer.from(found);
    let at = 0;
    for (const { offset, length } of [...regions, { offset: fileBytes, length: 0 }]) {
      expected.fill(canary, at, offset);
      at = offset + length;
    }
    expected.fill(0, readOnly.offset, readOnly.offset + readOnly.length);
    assert(expected.equals(found), 'bytes outside of the map were written');
  }
}
