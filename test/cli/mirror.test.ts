/** vduse mirror with a daemon in the same process; with one of its own it is in test/programs. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createConnection, createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import type { MirrorFlags } from '../../src/cli/commands/mirror.js';
import { blockdevArgument } from '../../src/cli/support/blockdev-argument.js';
import { UsageError } from '../../src/cli/support/errors.js';
import { nextNodeName, runMirror } from '../../src/cli/support/run-mirror.js';
import { Terminal } from '../../src/cli/support/terminal.js';
import { DaemonDisks } from '../support/daemon-disk.js';
import { makeTempDir } from '../support/temp-dir.js';

const MiB = 1 << 20;
const size = 4 * MiB;
const directory = makeTempDir();
let images = 0;

describe('vduse mirror', () => {
  let disks: DaemonDisks;
  let monitor: string;
  let source: string;

  beforeEach(async () => {
    disks = new DaemonDisks();
    monitor = join(directory, `${images}.sock`);
    source = newPath();
    writeFileSync(source, new Uint8Array(size).fill(3, 0, MiB));
    await disks.daemon.addNode({ driver: 'file', nodeName: 'disk', filename: source });
    await disks.daemon.startMonitor(monitor);
  });
  afterEach(() => disks.close());

  const newPath = () => join(directory, `image-${images++}`);

  /** What is printed, and the exit status. Rejects with the error that main would tell. */
  async function mirror(node: string, target: string, more: Partial<MirrorFlags> = {}) {
    let printed = '';
    let said = '';
    const stream = { write: (text: string) => (said += text) } as unknown as NodeJS.WritableStream;
    const context = {
      terminal: new Terminal(stream),
      print: (text: string) => {
        printed += text;
      },
      exitStatus: 0,
    };
    const flags = { monitor, sync: 'full', copyMode: 'background', switch: true, ...more } as const;
    await runMirror({ node, target, flags }, context);
    return { printed, said, status: context.exitStatus };
  }

  const nodeNames = () => disks.daemon.nodes.map(({ nodeName }) => nodeName);

  it('moves exports to a file that it makes, and says where they are', async () => {
    const disk = await disks.export('disk');
    const target = newPath();
    const { printed, said } = await mirror('disk', target, { create: true });
    assert.match(
      printed,
      /^what used node 'disk' \(1 export: export-disk\) now uses node 'disk-1' \(\/.*\); 4 MiB in \d/,
    );
    assert.match(said, /^node 'disk' \(\/.*\) is free: vduse qmp .* blockdev-del node-name=disk\n$/);
    await disk.write(0, new Uint8Array(512).fill(9));
    const bytes = readFileSync(target);
    assert.deepEqual([bytes[0], bytes[512], bytes[MiB], bytes.length], [9, 3, 0, size]);
    assert.equal(readFileSync(source)[0], 3);
    assert.deepEqual(disks.daemon.jobs.jobs, []);
    // And back, to a node that is there.
    await mirror('disk-1', 'disk');
    assert.equal(readFileSync(source)[0], 9);
  });

  it('makes a copy and stays, and lets go of the copy', async () => {
    await disks.export('disk');
    const target = newPath();
    const { printed } = await mirror('disk', target, { create: true, switch: false, json: true });
    const events = printed
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, unknown>);
    const names = events.map(({ event }) => event).filter((event) => event !== 'progress');
    assert.deepEqual(names, ['started', 'ready', 'done']);
    assert.deepEqual([events.at(-1)?.['switched'], events.at(-1)?.['filename']], [false, target]);
    assert.ok(readFileSync(target).equals(readFileSync(source)));
    assert.equal(disks.daemon.exports[0].node.nodeName, 'disk');
    assert.deepEqual(nodeNames(), ['disk']);
  });

  it('takes back what it added when the job fails or can not be', async () => {
    const target = newPath();
    const failing = `json:{"driver": "fault", "rules": [{"on": "write", "effect": "error"}],
      "file": {"driver": "file", "filename": "${target}"}}`;
    writeFileSync(target, new Uint8Array(size));
    await assert.rejects(mirror('disk', failing), {
      code: 'ABORTED',
      message: /^job 'mirror-disk' has failed: .*; node 'disk' \(.*\) stays in use$/,
    });
    assert.deepEqual([nodeNames(), disks.daemon.jobs.jobs], [['disk'], []]);
    writeFileSync(target, new Uint8Array(MiB));
    await assert.rejects(mirror('disk', target), {
      message: /has 1048576 bytes, and node 'disk' has 4194304/,
    });
    const made = newPath();
    await assert.rejects(mirror('disk', made, { create: true, job: 'no/id' }), /Invalid job ID/);
    assert.equal(existsSync(made), false);
    assert.deepEqual(nodeNames(), ['disk']);
  });

  for (const command of ['blockdev-add', 'blockdev-mirror']) {
    it(`keeps the file that it made when the daemon may use it: no answer to ${command}`, async () => {
      const proxy = createServer((socket) => {
        const daemon = createConnection(monitor);
        daemon.pipe(socket);
        socket.on('data', (data) => {
          if (data.includes(`"${command}"`)) {
            // Nobody hears the answer, which is read all the same: the connection could not end otherwise.
            daemon.unpipe(socket).resume();
            daemon.write(data, () => socket.destroy());
          } else {
            daemon.write(data);
          }
        });
        socket.on('close', () => daemon.end());
      });
      const path = join(directory, `${images++}.sock`);
      proxy.listen(path);
      await once(proxy, 'listening');
      try {
        const target = newPath();
        await assert.rejects(mirror('disk', target, { create: true, monitor: path }), { code: 'ABORTED' });
        assert.ok(existsSync(target));
        while (!nodeNames().includes('disk-1')) {
          await delay(2);
        }
      } finally {
        proxy.close();
      }
    });
  }

  it('says what is wrong before it does anything', async () => {
    const target = newPath();
    await assert.rejects(mirror('other', target, { create: true }), {
      message: `there is no node 'other' at ${monitor}`,
      hint: 'It has: disk.',
    });
    await assert.rejects(mirror('disk', 'nothing'), {
      message: "there is no node 'nothing', and no such file",
    });
    await assert.rejects(mirror('disk', 'disk'), { message: "Can't mirror node into itself" });
    await assert.rejects(mirror('disk', 'memory:4M', { create: true }), UsageError);
    await assert.rejects(mirror('disk', target, { force: true }), UsageError);
    await assert.rejects(mirror('disk', 'what:x'), UsageError);
    await assert.rejects(mirror('disk', target, { monitor: join(directory, 'none') }), {
      message: /there is no .*none/,
    });
    assert.equal(existsSync(target), false);
    const { status, printed } = await mirror('disk', 'nothing', { json: true });
    assert.equal(status, 1);
    assert.equal((JSON.parse(printed) as Record<string, unknown>)['code'], 'NOT_FOUND');
  });
});

describe('the node of a target', () => {
  it('has a name of its own, which counts', () => {
    assert.equal(nextNodeName('disk0', ['disk0']), 'disk0-1');
    assert.equal(nextNodeName('disk0-1', ['disk0', 'disk0-1']), 'disk0-2');
    assert.equal(nextNodeName('disk0', ['disk0-1', 'disk0-2']), 'disk0-3');
    assert.equal(nextNodeName('#block017', []), 'nodeblock017-1');
    assert.equal(nextNodeName('x'.repeat(31), []), `${'x'.repeat(29)}-1`);
  });

  it('is described as the daemon has it, with paths that it understands anywhere', () => {
    assert.deepEqual(blockdevArgument('a.img'), {
      driver: 'file',
      filename: join(process.cwd(), 'a.img'),
      discard: 'unmap',
    });
    assert.deepEqual(
      blockdevArgument('driver=raw,offset=512,file.driver=file,file.filename=x,read-only=on'),
      {
        driver: 'raw',
        discard: 'unmap',
        offset: 512,
        'read-only': true,
        file: { driver: 'file', filename: join(process.cwd(), 'x') },
      },
    );
    assert.deepEqual(blockdevArgument('nbd://h/x')['server'], { type: 'inet', host: 'h', port: '10809' });
    assert.deepEqual(blockdevArgument('memory:1M'), { driver: 'memory', size: MiB });
  });
});
