/** Containers' disks on storage that is elsewhere, and parts of it that die under load. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';

import { CephCluster, missingCephProgram } from '../support/ceph-cluster.js';
import { HostDeeds } from './host-deeds.js';
import { runScenario } from './run-scenario.js';

test('disks on an NBD server', async (context) => {
  const script = new URL('guest/nbd-server-restarts.js', import.meta.url);
  await runScenario(context, { script, smp: 2 });
});

/** Of the host's loopback interface; the machine reaches it by the same address (guest/host-network.ts). */
const clusterAddress = '127.99.0.1';
const network = ['-netdev', 'user,id=net', '-device', 'virtio-net-pci,netdev=net,romfile='];

const missing = missingCephProgram();
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;

test('a disk on an RBD image with three copies', { skip }, async (context) => {
  const cluster = await CephCluster.start({
    osds: 3,
    address: clusterAddress,
    // A dead OSD refuses connections, which its peers notice at once; a busy machine makes living ones slow.
    settings: ['osd heartbeat grace = 30'],
  });
  try {
    await cluster.rbd('create', '--size', '96M', 'disk');
    let seenByGuest = '';
    const deeds = new HostDeeds({
      'kill-osd': () => process.kill(cluster.osdPid(1), 'SIGKILL'),
      'image-is': (sum) => {
        seenByGuest = sum;
      },
    });
    const { host, port } = cluster.monitor;
    await runScenario(context, {
      script: new URL('guest/rbd-osd-loss.js', import.meta.url),
      smp: 2,
      qemuArguments: network,
      env: {
        VDUSE_LAB_CEPH_HOST: host,
        VDUSE_LAB_CEPH_PORT: `${port}`,
        VDUSE_LAB_CEPH_KEY: await cluster.key('client.admin'),
      },
      onOutput: deeds.onOutput,
    });
    assert.deepEqual(deeds.failures, []);
    assert.match(await cluster.ceph('osd', 'stat'), /3 osds: 2 up/);
    const image = join(cluster.folder, 'disk.img');
    await cluster.rbd('export', '--no-progress', 'disk', image);
    const check = spawnSync('e2fsck', ['-fn', image], { encoding: 'utf8' });
    assert.equal(check.status, 0, check.stdout + check.stderr);
    const sum = createHash('sha256').update(readFileSync(image)).digest('hex');
    assert.equal(sum, seenByGuest, 'the cluster has other bytes than the machine');
  } finally {
    await cluster.stop();
  }
});
