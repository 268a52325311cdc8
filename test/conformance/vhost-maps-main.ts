/** Changes the map of a vhost-vdpa device: its driver's side waits for the device in the kernel, so it is a process of its own. */
import { SharedMemory, VhostVdpaDevice } from '../lab/guest/vhost-vdpa.js';
import { changedBytes as length, type MapChange } from './bench.js';

const [path, changes] = process.argv.slice(2);
const device = new VhostVdpaDevice(path);
const done: string[] = [];
for (const { kind, iova } of JSON.parse(changes) as MapChange[]) {
  try {
    if (kind === 'map') {
      device.map({ iova, address: new SharedMemory(length).address, length });
    } else {
      device.unmap({ iova, length });
    }
    done.push('done');
  } catch {
    done.push('refused');
  }
}
process.stdout.write(JSON.stringify(done));
