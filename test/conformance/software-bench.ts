/** The suite's driver in software. */
import assert from 'node:assert/strict';
import { closeFd } from '../../src/native/fd.js';
import { createMemoryFile } from '../../src/native/memory.js';
import { SoftwareVduse } from '../../src/software-vduse/software-vduse.js';
import { VhostVdpa } from '../../src/software-vduse/vhost-vdpa.js';
import { VirtioVdpa } from '../../src/software-vduse/virtio-vdpa.js';
import { type Bench, changedBytes, type MapChange } from './bench.js';

const shortTimeoutMs = 200;

async function changeMaps(vhost: VhostVdpa, name: string, changes: readonly MapChange[]): Promise<string[]> {
  const device = vhost.device(name);
  assert(device !== undefined, `no device '${name}'`);
  const fd = createMemoryFile('guest', changedBytes);
  const starts = new Set<number>();
  const outcomes: string[] = [];
  for (const { kind, iova } of changes) {
    if (kind === 'map') {
      starts.add(iova);
    } else {
      starts.delete(iova);
    }
    const maps = [...starts].map((start) => ({ start, length: changedBytes, fd, offset: 0, access: 3 }));
    const done = device.setMemory(maps).then(
      () => 'done',
      () => 'refused',
    );
    outcomes.push(await done);
  }
  closeFd(fd);
  return outcomes;
}

export function softwareBench(apiVersion: 0 | 1): Bench {
  return {
    platform: `software-${apiVersion}`,
    newestApi: apiVersion,
    open: ({ shortTimeout, bounceBytes, directMaps }) => {
      const bus = new VirtioVdpa();
      const vhost = new VhostVdpa();
      const kernel = new SoftwareVduse({
        apiVersion,
        busDriver: directMaps ? vhost : bus,
        ...(shortTimeout ? { messageTimeoutMs: shortTimeoutMs } : {}),
        ...(bounceBytes === undefined ? {} : { bounceBytes }),
      });
      const disk = (name: string) => {
        const found = bus.disk(name);
        assert(found !== undefined, `no disk '${name}'`);
        return found;
      };
      return {
        kernel,
        shortTimeoutMs,
        prepare: () => {},
        diskId: async (name) => disk(name).getId(),
        queueState: async (name, index) => disk(name).queueState(index),
        changeMaps: (name, changes) => changeMaps(vhost, name, changes),
      };
    },
  };
}
