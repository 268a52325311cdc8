/** A software IOTLB: which ranges of IO virtual addresses are mapped, to what, and what the device may do there. */
import { VduseError } from '../base/errors.js';
import { limits } from '../base/limits.js';
import type { VduseTrace } from './trace.js';

export interface IotlbMap {
  readonly start: number;
  /** Bytes. */
  readonly length: number;
  /** The file that holds the memory, and where in it the range begins. Its owner keeps it open. */
  readonly fd: number;
  readonly offset: number;
  /** 1 read, 2 write, 3 both: as the device may use the range. */
  readonly access: number;
}

export class Iotlb {
  readonly #trace: VduseTrace | undefined;
  /** By start, without overlaps. */
  #maps: IotlbMap[] = [];

  constructor(trace?: VduseTrace) {
    this.#trace = trace;
  }

  get maps(): readonly IotlbMap[] {
    return this.#maps;
  }

  /** Throws INVALID_ARGUMENT for an empty range, one that overlaps, or too many. */
  add(map: IotlbMap): void {
    const last = map.start + map.length - 1;
    const whole = Number.isSafeInteger(map.start) && Number.isSafeInteger(last) && map.length > 0;
    if (!whole || map.start < 0 || this.find(map.start, last) !== undefined) {
      throw new VduseError(
        'INVALID_ARGUMENT',
        `IOTLB range of ${map.length} bytes at ${map.start} is empty, too large or overlaps another`,
      );
    }
    if (this.#maps.length === limits.memoryRegionsMax) {
      throw new VduseError('INVALID_ARGUMENT', `the IOTLB has its ${limits.memoryRegionsMax} ranges already`);
    }
    const at = this.#maps.findIndex((other) => other.start > map.start);
    this.#maps.splice(at < 0 ? this.#maps.length : at, 0, map);
    this.#trace?.({ kind: 'map', map });
  }

  /** Removes every map that overlaps the range. */
  remove(start: number, last: number): void {
    const removed = this.#maps.filter((map) => map.start <= last && map.start + map.length - 1 >= start);
    this.#maps = this.#maps.filter((map) => !removed.includes(map));
    for (const map of removed) {
      this.#trace?.({ kind: 'unmap', map });
    }
  }

  /** The first map that overlaps the range. */
  find(start: number, last: number): IotlbMap | undefined {
    return this.#maps.find((map) => map.start <= last && map.start + map.length - 1 >= start);
  }
}
