// A disk without the kernel and without privileges: the software driver plays VDUSE, and NBD is the way in for
// programs that exist. With a path to an image as argument it serves that, otherwise a disk in memory.
//
//     node 5-software-disk.js disk.img &
//     qemu-img info 'nbd+unix:///?socket=/tmp/vduse-example.sock'
import { openSoftwareDisk } from 'vduse';

const image = process.argv[2];
const source = image ?? { driver: 'memory' as const, nodeName: 'scratch', size: 64 * 1024 * 1024 };
const { disk, serveNbd, close } = await openSoftwareDisk(source);

// From this process: promises. The bytes go through the driver's queue, the IOMMU and the device.
await disk.write(0, Buffer.from('hello, virtio'.padEnd(512, '.')));
const sector = Buffer.alloc(512);
await disk.read(0, sector);
console.log(sector.toString('utf8', 0, 13));

const path = '/tmp/vduse-example.sock';
await serveNbd({ address: { type: 'unix', path } });
console.log(`nbd+unix:///?socket=${path}`);

process.once('SIGINT', close);
process.once('SIGTERM', close);
