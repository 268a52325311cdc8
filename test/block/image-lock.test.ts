/** Image locks, among ourselves and against QEMU's own tools, in both directions. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BlockNode, FileNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { openFdCount } from '../support/resources.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';
import { haveTool } from '../support/tools.js';

const directory = makeTempDir();
let files = 0;

function image(): string {
  return makeSparseFile(join(directory, `locked-${files++}.img`), 1 << 20);
}

function open(filename: string, options: Partial<FileNodeOptions> = {}): Promise<BlockNode> {
  return openBlockNode({ driver: 'file', nodeName: 'n', filename, ...options });
}

async function refused(
  filename: string,
  options: Partial<FileNodeOptions>,
  permission: string,
): Promise<void> {
  const before = openFdCount();
  await assert.rejects(open(filename, options), (error: Error & { code?: string; hint?: string }) => {
    assert.equal(error.code, 'IMAGE_LOCKED');
    assert.match(error.message, new RegExp(`another opener holds its "${permission}" lock$`));
    assert.match(error.hint ?? '', /QEMU.*fuser -v .*locked-/);
    return true;
  });
  assert.equal(openFdCount(), before);
}

describe('among ourselves', () => {
  test('one writer and nobody else', async () => {
    const path = image();
    const writer = await open(path);
    await refused(path, {}, 'write');
    await refused(path, { readOnly: true }, 'write');
    await writer.close();
    await (await open(path)).close();
  });

  test('readers share, and keep writers out', async () => {
    const path = image();
    const readers = [await open(path, { readOnly: true }), await open(path, { readOnly: true })];
    await refused(path, {}, 'write');
    await readers[0].close();
    await refused(path, {}, 'write');
    await readers[1].close();
    await (await open(path)).close();
  });

  test('locking=off asks nobody and tells nobody; locking=on asks like auto', async () => {
    const path = image();
    const first = await open(path, { locking: 'off' });
    const second = await open(path, { locking: 'on' });
    const third = await open(path, { locking: 'off' });
    await refused(path, { locking: 'on' }, 'write');
    for (const node of [first, second, third]) {
      await node.close();
    }
  });
});

/** qemu-io that has an image open for writing until it is told to quit. */
async function holdWithQemu(path: string): Promise<ChildProcess> {
  const child = spawn('qemu-io', ['-f', 'raw', path], { stdio: ['pipe', 'pipe', 'inherit'] });
  child.stdin.write('length\n');
  let output = '';
  for await (const chunk of child.stdout) {
    output += String(chunk);
    if (output.includes('1 MiB')) {
      break;
    }
  }
  return child;
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    await once(child, 'exit');
  }
}

function qemu(command: string, ...args: string[]): { status: number | null; text: string } {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  return { status, text: stdout + stderr };
}

/** qemu-nbd -r, which unlike qemu-io holds something back: the image may not change its size. */
async function holdWithNbd(path: string): Promise<ChildProcess> {
  const socket = `${path}.sock`;
  const child = spawn('qemu-nbd', ['-r', '-t', '-f', 'raw', '-k', socket, path], { stdio: 'ignore' });
  // The socket is there before the image is open; the greeting comes after.
  for (const deadline = Date.now() + 10_000; ; await sleep(5)) {
    if (child.exitCode !== null || Date.now() > deadline) {
      child.kill();
      assert.fail('qemu-nbd does not start');
    }
    const connection = connect(socket);
    const greeted = await Promise.race([
      once(connection, 'data').then(() => true),
      once(connection, 'close').then(() => false),
    ]).catch(() => false);
    connection.destroy();
    if (greeted) {
      return child;
    }
  }
}

describe('against QEMU', () => {
  test('our writer keeps its writers out, and readers that hold something back', async (t) => {
    if (!haveTool(t, 'qemu-io', 'qemu-utils')) {
      return;
    }
    const path = image();
    const writer = await open(path);
    const write = qemu('qemu-io', '-f', 'raw', '-c', 'write -P 1 0 512', path);
    assert.notEqual(write.status, 0);
    assert.match(write.text, /Failed to get "write" lock|Failed to get shared "write" lock/);
    const serve = qemu('qemu-nbd', '-r', '-f', 'raw', '-k', `${path}.sock`, path);
    assert.notEqual(serve.status, 0);
    assert.match(serve.text, /Failed to get shared "resize" lock/);
    // As beside a writer of QEMU's own: a reader that grants everything does get in.
    assert.equal(qemu('qemu-img', 'info', '-f', 'raw', path).status, 0);
    await writer.close();
    assert.ok(readFileSync(path).every((byte) => byte === 0));
    assert.equal(qemu('qemu-io', '-f', 'raw', '-c', 'write -P 1 0 512', path).status, 0);
    assert.equal(readFileSync(path)[511], 1);
  });

  test('our reader lets its readers in and keeps its writers out', async (t) => {
    if (!haveTool(t, 'qemu-io', 'qemu-utils')) {
      return;
    }
    const path = image();
    const reader = await open(path, { readOnly: true });
    assert.equal(qemu('qemu-io', '-f', 'raw', '-r', '-c', 'read 0 512', path).status, 0);
    const { status, text } = qemu('qemu-io', '-f', 'raw', '-c', 'write -P 1 0 512', path);
    assert.notEqual(status, 0);
    assert.match(text, /Failed to get "write" lock|Failed to get shared "write" lock/);
    await reader.close();
    assert.ok(readFileSync(path).every((byte) => byte === 0));
  });

  test('its writer keeps us out until it ends', async (t) => {
    if (!haveTool(t, 'qemu-io', 'qemu-utils')) {
      return;
    }
    const path = image();
    const holder = await holdWithQemu(path);
    try {
      await refused(path, {}, 'write');
      await refused(path, { readOnly: true }, 'write');
      await (await open(path, { locking: 'off', readOnly: true })).close();
    } finally {
      holder.stdin?.end('quit\n');
      await ended(holder);
    }
    await (await open(path)).close();
  });

  test('its reader lets our readers in and keeps our writers out', async (t) => {
    if (!haveTool(t, 'qemu-nbd', 'qemu-utils')) {
      return;
    }
    const path = image();
    const holder = await holdWithNbd(path);
    try {
      await (await open(path, { readOnly: true })).close();
      await refused(path, {}, 'resize');
    } finally {
      holder.kill();
      await ended(holder);
    }
    await (await open(path)).close();
  });
});
