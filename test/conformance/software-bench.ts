/** The suite's driver in software. */
import assert from 'node:assert/strict';
import { SoftwareVduse } from '../../src/software-vduse/software-vduse.js';
import { VirtioVdpa } from '../../src/software-vduse/virtio-vdpa.js';
import type { Bench } from './bench.js';

const shortTimeoutMs = 200;

export function softwareBench(apiVersion: 0 | 1): Bench {
  return {
    platform: `software-${apiVersion}`,
    newestApi: apiVersion,
    open: ({ shortTimeout, bounceBytes }) => {
      const bus = new VirtioVdpa();
      const kernel = new SoftwareVduse({
        apiVersion,
        busDriver: bus,
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
      };
    },
  };
}
