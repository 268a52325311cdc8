// A block driver of 15 lines: a disk in a Map, a sector an entry. A method that is left out is an ability
// that the disk does not have: without write it would be read-only, without discard fstrim would say so.
//
//     node 3-block-driver.js
import { defineBlockDriver, exportDisk } from 'vduse';

const sectorMap = defineBlockDriver({
  name: 'sector-map',
  open(size: number) {
    const sectors = new Map<number, Uint8Array>();
    const each = (offset: number, length: number, visit: (sector: number, at: number) => void): void => {
      for (let at = 0; at < length; at += 512) visit((offset + at) / 512, at);
    };
    return {
      size,
      read: async (offset, buffer) =>
        each(offset, buffer.length, (n, at) => buffer.set(sectors.get(n) ?? new Uint8Array(512), at)),
      write: async (offset, data) =>
        each(offset, data.length, (n, at) => sectors.set(n, data.slice(at, at + 512))),
      discard: async (offset, length) => each(offset, length, (n) => sectors.delete(n)),
    };
  },
});

const disk = await exportDisk(sectorMap(16 * 1024 * 1024), { name: 'sector-map' });
console.log(disk.path);

process.once('SIGINT', () => disk.close());
process.once('SIGTERM', () => disk.close());
