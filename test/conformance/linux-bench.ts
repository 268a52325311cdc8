/** The suite's driver in the kernel: Linux's module, used by virtio_vdpa and virtio_blk. Needs root and the modules. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { bindVdpaDriver, vdpaBusDevice } from '../../src/native/vdpa-bus.js';
import { linuxVduse } from '../../src/native/vduse-kernel.js';
import type { Bench, MapChange, Platform } from './bench.js';

const shortTimeoutMs = 1000;

async function blockDevice(name: string): Promise<string> {
  for (let n = 0; n < 100; n++) {
    const path = vdpaBusDevice(name)?.blockDevice;
    if (path !== undefined) {
      return basename(path);
    }
    await sleep(20);
  }
  assert.fail(`no disk '${name}'`);
}

/** Runs a driver's side that waits for the device in the kernel: a process of its own. Returns what it printed. */
async function runOnVhost(name: string, script: URL, args: readonly string[]): Promise<unknown> {
  if (vdpaBusDevice(name)?.driver !== 'vhost_vdpa') {
    await bindVdpaDriver(name, 'vhost_vdpa');
  }
  const path = vdpaBusDevice(name)?.vhostDevice;
  assert(path !== undefined, `no vhost device '${name}'`);
  const { stdout } = await promisify(execFile)(process.execPath, [fileURLToPath(script), path, ...args]);
  return JSON.parse(stdout);
}

/** vhost_vdpa has the question, virtio_vdpa never asks. */
async function queueState(name: string, index: number): Promise<number | undefined> {
  const found = await runOnVhost(name, new URL('./vhost-queue-state-main.js', import.meta.url), [
    String(index),
  ]);
  return (found as { base?: number }).base;
}

async function changeMaps(name: string, changes: readonly MapChange[]): Promise<string[]> {
  const script = new URL('./vhost-maps-main.js', import.meta.url);
  return (await runOnVhost(name, script, [JSON.stringify(changes)])) as string[];
}

export function linuxBench(platform: Platform, newestApi: number): Bench {
  return {
    platform,
    newestApi,
    open: ({ shortTimeout, bounceBytes }) => ({
      kernel: linuxVduse,
      shortTimeoutMs,
      prepare: (name) => {
        if (shortTimeout) {
          writeFileSync(`/sys/class/vduse/${name}/msg_timeout`, String(shortTimeoutMs / 1000));
        }
        if (bounceBytes !== undefined) {
          writeFileSync(`/sys/class/vduse/${name}/bounce_size`, String(bounceBytes));
        }
      },
      diskId: async (name) => {
        const path = `/sys/block/${await blockDevice(name)}/serial`;
        // An array of 20 bytes, with whatever is behind the first NUL.
        return (await readFile(path, 'latin1')).split('\0')[0].trim();
      },
      queueState,
      changeMaps,
    }),
  };
}
