// A disk in memory, grown while it is in use. Blocks that were never written take no memory.
//
//     node 2-memory.js
import { exportDisk } from 'vduse';

const mebibyte = 1024 * 1024;
const disk = await exportDisk(
  { driver: 'memory', nodeName: 'scratch', size: 64 * mebibyte },
  { name: 'scratch', queues: 2, serial: 'scratch-0001' },
);
console.log(`${disk.path}: ${disk.size / mebibyte} MiB`);

await disk.resize(128 * mebibyte);
console.log(`${disk.path}: ${disk.size / mebibyte} MiB`);

process.once('SIGINT', () => disk.close());
process.once('SIGTERM', async () => {
  await disk.close();
  const { reads, writes } = disk.statistics;
  console.log(`${reads} reads, ${writes} writes`);
});
