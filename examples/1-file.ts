// A disk image becomes /dev/vdX for as long as this program runs.
//
//     node 1-file.js disk.img
import { exportDisk } from 'vduse';

const disk = await exportDisk(process.argv[2] ?? 'disk.img');
console.log(`${disk.path}: ${disk.size} bytes. Ctrl-C takes it away.`);

process.once('SIGINT', () => disk.close());
process.once('SIGTERM', () => disk.close());
