/** Storage that does not answer: what changes the graph gives up in time, nothing is lost, and the old graph stays in use. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { openLocalNode } from '../../src/block/drivers/local-node.js';
import type { BlockNode, BlockNodeOptions, ChildOpener } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { QmpClient } from '../qmp/client.js';
import { DaemonDisks } from '../support/daemon-disk.js';
import { MemoryDisk } from '../support/memory-disk.js';
import { makeTempDir } from '../support/temp-dir.js';

const size = 1 << 20;
const drainTimeoutMs = 150;

/** Disks of the node names `stuck…` whose requests wait while the gate is closed. */
class Gate {
  readonly #disks: MemoryDisk[] = [];
  #open: () => void = () => undefined;

  close(): void {
    const closed = new Promise<void>((open) => {
      this.#open = open;
    });
    for (const disk of this.#disks) {
      disk.calls.length = 0;
      disk.gate = closed;
    }
  }

  open(): void {
    this.#open();
    for (const disk of this.#disks) {
      disk.gate = undefined;
    }
  }

  /** Until something waits. */
  async hasCall(): Promise<void> {
    while (this.#disks.every(({ calls }) => calls.length === 0)) {
      await delay(1);
    }
  }

  readonly openNode = (options: BlockNodeOptions, children: ChildOpener): Promise<BlockNode> => {
    const { nodeName } = options;
    if (!nodeName.startsWith('stuck')) {
      return openBlockNode(options, children);
    }
    const device = new MemoryDisk({ size });
    this.#disks.push(device);
    return Promise.resolve(openLocalNode({ nodeName, driver: 'stuck', device, readOnly: false }));
  };
}

async function withDisks(run: (disks: DaemonDisks, gate: Gate) => Promise<void>): Promise<void> {
  const gate = new Gate();
  const disks = new DaemonDisks({ open: gate.openNode, drainTimeoutMs });
  try {
    await run(disks, gate);
  } finally {
    gate.open();
    await disks.close();
  }
}

const memory = (nodeName: string) => ({ driver: 'memory', nodeName, size }) as const;
const block = (value: number) => new Uint8Array(4096).fill(value);
const timeout = { code: 'TIMEOUT', message: /^requests on block node 'stuck' did not end in 0\.15 s/ };

async function read(disk: { read(offset: number, buffer: Uint8Array): Promise<void> }): Promise<number> {
  const buffer = block(0);
  await disk.read(0, buffer);
  return buffer[0];
}

describe('storage that does not answer', () => {
  test('keeps jobs from starting, and nothing is lost', () =>
    withDisks(async (disks, gate) => {
      const { daemon } = disks;
      await daemon.addNode(memory('stuck'));
      await daemon.addNode(memory('target'));
      const disk = await disks.export('stuck', { queueCount: 2 });
      gate.close();
      const written = disk.write(0, block(1));
      await gate.hasCall();
      const nodes = { device: 'stuck', target: 'target', sync: 'full' } as const;
      await assert.rejects(daemon.startBackups([{ ...nodes, jobId: 'b' }]), timeout);
      await assert.rejects(daemon.startMirror({ ...nodes, jobId: 'm' }), timeout);
      assert.deepEqual(daemon.jobs.jobs, []);
      gate.open();
      await written;
      assert.equal(await read(disk), 1);
      const [job] = await daemon.startBackups([{ ...nodes, jobId: 'b' }]);
      await job.ended;
      assert.equal(job.error, undefined);
    }));

  test('behind a queue thread keeps the graph as it is, and its requests go on', () =>
    withDisks(async (disks, gate) => {
      const { daemon } = disks;
      const path = join(makeTempDir(), 'nbd');
      await daemon.addNode(memory('stuck'));
      await daemon.startNbdServer({ address: { type: 'unix', path } });
      await daemon.addExport({ type: 'nbd', id: 'n', nodeName: 'stuck', name: '', writable: true });
      await daemon.addNode({ driver: 'nbd', nodeName: 'remote', server: { type: 'unix', path } });
      await daemon.addNode({ driver: 'raw', nodeName: 'disk', file: 'remote' });
      const disk = await disks.export('disk', { queueCount: 2 });
      gate.close();
      const written = disk.write(0, block(1));
      await gate.hasCall();
      const again = [{ driver: 'raw', nodeName: 'disk', file: 'remote', offset: 4096 } as const];
      await assert.rejects(daemon.reopenNodes(again), { code: 'TIMEOUT' });
      const later = disk.write(4096, block(2));
      gate.open();
      await Promise.all([written, later]);
      assert.equal(await read(disk), 1);
      await daemon.reopenNodes(again);
      assert.equal(await read(disk), 2);
    }));

  test('as the target of a mirror leaves the disk where it was', () =>
    withDisks(async (disks, gate) => {
      const { daemon } = disks;
      await daemon.addNode(memory('source'));
      await daemon.addNode(memory('stuck'));
      const disk = await disks.export('source');
      const job = await daemon.startMirror({
        jobId: 'm',
        device: 'source',
        target: 'stuck',
        sync: 'full',
        autoDismiss: false,
        autoFinalize: false,
      });
      for (; !job.isReady; await delay(1)) {}
      job.complete();
      for (; job.status !== 'pending'; await delay(1)) {}
      gate.close();
      await disk.write(0, block(3));
      job.finalize();
      for (; job.error === undefined; await delay(1)) {}
      assert.match(job.error, /the last parts of node 'source' were not on node 'stuck' in 0\.15 s/);
      await disk.write(4096, block(4));
      assert.equal(await read(disk), 3);
      assert.equal(daemon.exports[0].node.nodeName, 'source');
      gate.open();
      await job.ended;
      daemon.jobs.dismiss('m');
      await daemon.deleteNode('stuck');
    }));

  test('as the target of a job that is cancelled lets it end', () =>
    withDisks(async (disks, gate) => {
      const { daemon } = disks;
      await daemon.addNode(memory('source'));
      await daemon.addNode(memory('stuck'));
      const disk = await disks.export('source');
      await disk.write(0, block(5));
      gate.close();
      const nodes = { device: 'source', target: 'stuck', sync: 'full', autoDismiss: false } as const;
      const mirror = await daemon.startMirror({ ...nodes, jobId: 'm' });
      await delay(20);
      mirror.cancel({ force: true });
      for (; mirror.error === undefined; await delay(1)) {}
      await disk.write(0, block(6));
      gate.open();
      await mirror.ended;
      gate.close();
      const [backup] = await daemon.startBackups([{ ...nodes, jobId: 'b' }]);
      const written = disk.write(0, block(7));
      await delay(20);
      backup.cancel({ force: true });
      // The disk does not wait for the job's end.
      await written;
      for (; backup.error === undefined; await delay(1)) {}
      gate.open();
      await backup.ended;
      assert.equal(await read(disk), 7);
    }));
});

describe('a backup that can not go on', () => {
  test('holds its disk up for a while, and then fails: its target does not answer', () =>
    withDisks(async (disks, gate) => {
      const { daemon } = disks;
      await daemon.addNode(memory('source'));
      await daemon.addNode(memory('stuck'));
      const disk = await disks.export('source');
      gate.close();
      const nodes = { device: 'source', target: 'stuck', sync: 'none', autoDismiss: false } as const;
      const [job] = await daemon.startBackups([{ ...nodes, jobId: 'b' }]);
      await disk.write(0, block(1));
      for (; job.error === undefined; await delay(1)) {}
      assert.match(job.error, /^users of node 'source' waited 0\.15 s for a part to be copied to 'stuck'/);
      assert.equal(await read(disk), 1);
      gate.open();
      await job.ended;
    }));

  test('the same where an error has stopped it', async () => {
    const disks = new DaemonDisks({ drainTimeoutMs });
    try {
      const { daemon } = disks;
      await daemon.addNode(memory('source'));
      await daemon.addNode(memory('good'));
      const rules = [{ on: 'any', effect: 'error' }] as const;
      await daemon.addNode({ driver: 'fault', nodeName: 'bad', file: 'good', rules });
      const disk = await disks.export('source', { queueCount: 2 });
      const nodes = { device: 'source', target: 'bad', sync: 'none', autoDismiss: false } as const;
      const [job] = await daemon.startBackups([{ ...nodes, jobId: 'b', onTargetError: 'stop' }]);
      const written = disk.write(0, block(1));
      for (; job.status !== 'paused'; await delay(1)) {}
      await written;
      await job.ended;
      assert.match(job.error ?? '', /they go on without the backup$/);
      assert.equal(await read(disk), 1);
    } finally {
      await disks.close();
    }
  });
});

describe('requests of exports that fail', () => {
  test('are told as events, at most one a second for reads and one for writes', async () => {
    const disks = new DaemonDisks();
    const { daemon } = disks;
    const path = join(makeTempDir(), 'qmp');
    try {
      await daemon.startMonitor(path);
      const client = await QmpClient.open(path);
      await daemon.addNode(memory('good'));
      const rules = [
        { on: 'write', effect: 'error', errno: 28 },
        { on: 'read', effect: 'error', after: 10 },
      ] as const;
      await daemon.addNode({ driver: 'fault', nodeName: 'bad', file: 'good', rules });
      const disk = await disks.export('bad');
      const beganAt = performance.now();
      for (let n = 0; n < 20; n++) {
        await assert.rejects(disk.write(0, block(1)));
      }
      const event = await client.read();
      assert.deepEqual(
        [event['event'], event['data']],
        [
          'BLOCK_IO_ERROR',
          {
            device: 'export-bad',
            'node-name': 'bad',
            operation: 'write',
            action: 'report',
            nospace: true,
            reason: 'no space left on device',
          },
        ],
      );
      let more = 0;
      while (!(await client.isSilent())) {
        await client.read();
        more++;
      }
      assert.ok(more <= (performance.now() - beganAt) / 1000, `${more} further events`);
      client.close();
    } finally {
      await disks.close();
    }
  });
});
