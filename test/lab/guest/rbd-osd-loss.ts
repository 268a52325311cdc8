/** A container's disk on an RBD image, and an OSD of the host's cluster that is killed under load. */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { type CheckContext, type Figures, runChecks } from './checks.js';
import { DaemonDisk, lookMs, runContainedLoad } from './contained-load.js';
import { loadModules } from './disks.js';
import { askHost } from './host-deeds.js';
import { reachHostLoopback } from './host-network.js';
import { sh } from './shell.js';

function variable(name: string): string {
  const value = process.env[name];
  assert(value !== undefined, `${name} is not set`);
  return value;
}

const host = variable('VDUSE_LAB_CEPH_HOST');
const port = variable('VDUSE_LAB_CEPH_PORT');
const key = variable('VDUSE_LAB_CEPH_KEY');

/** When the OSD dies: in the midst of the writing. */
const killAtRequest = 400;

async function osdLoss(context: CheckContext): Promise<Figures> {
  // A configuration of our own, not what the host has in /etc/ceph.
  writeFileSync('/tmp/ceph.conf', `[global]\nmon host = [v2:${host}:${port}]\n`);
  writeFileSync('/tmp/ceph.key', key);
  const disk = await DaemonDisk.start(context, 'remote', [
    ...['--object', 'secret,id=key,file=/tmp/ceph.key,format=base64'],
    '--blockdev',
    'driver=rbd,node-name=remote,pool=rbd,image=disk,conf=/tmp/ceph.conf,key-secret=key,cache.direct=on',
  ]);
  let atKill: number | undefined;
  const { reads, writes } = await runContainedLoad(context, disk, async (load) => {
    for (const before = disk.requests; load.running; await sleep(lookMs)) {
      if (atKill === undefined && disk.requests - before >= killAtRequest) {
        atKill = disk.requests;
        askHost('kill-osd');
      }
    }
  });
  const afterKill = disk.requests - (atKill ?? disk.requests);
  assert.ok(afterKill > writes, `only ${afterKill} requests came after the OSD was killed`);
  const sum = await sh(`dd if=${disk.path} bs=1M iflag=direct status=none | sha256sum`);
  askHost('image-is', sum.split(' ')[0]);
  await disk.end();
  return { reads, writes, 'requests after the kill': afterKill };
}

await reachHostLoopback(host);
await loadModules('ext4');
await runChecks([
  {
    name: 'one of three OSDs is killed under fio --verify: no error, nothing lost',
    noIoErrors: true,
    run: osdLoss,
  },
]);
