import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { createCommands } from '../../src/daemon/commands/commands.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { QmpClient } from '../qmp/client.js';
import { Fakes } from './fakes.js';

let directory: string;
let fakes: Fakes;
let daemon: StorageDaemon;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-monitors-'));
  fakes = new Fakes();
  daemon = new StorageDaemon(fakes.factories);
});

afterEach(async () => {
  await daemon.close();
  rmSync(directory, { recursive: true });
});

describe('monitors of a daemon', () => {
  it('greet nobody before they are served', async () => {
    const path = join(directory, 'qmp.sock');
    await daemon.addChardev({ id: 'm', address: { type: 'unix', path }, server: true, wait: false });
    await assert.rejects(daemon.addMonitor({ chardev: 'n' }), { message: 'chardev "n" not found' });
    await daemon.addMonitor({ chardev: 'm' });
    await assert.rejects(daemon.addMonitor({ chardev: 'm' }), { message: "Device 'm' is in use" });
    const client = await QmpClient.connect(path);
    assert.ok(await client.isSilent());
    daemon.serveMonitors();
    assert.ok('QMP' in (await client.read()));
    client.close();
  });

  it('go on past a character device that waited for its client', async () => {
    const path = join(directory, 'qmp.sock');
    const added = daemon.addChardev({ id: 'm', address: { type: 'unix', path }, server: true, wait: true });
    let isAdded = false;
    void added.then(() => {
      isAdded = true;
    });
    while (!existsSync(path)) {
      await delay(5);
    }
    await delay(50);
    assert.equal(isAdded, false);
    const client = await QmpClient.connect(path);
    await added;
    await daemon.addMonitor({ chardev: 'm' });
    daemon.serveMonitors();
    assert.ok('QMP' in (await client.read()));
    client.close();
  });

  it('add and remove character devices by QMP, and wait for clients without holding up others', async () => {
    const commands = createCommands(daemon);
    const path = join(directory, 'added.sock');
    const backend = (more: object) => ({
      type: 'socket',
      data: { addr: { type: 'unix', data: { path } }, ...more },
    });
    const labels = async (): Promise<unknown> => await commands.execute('query-chardev', {});
    await daemon.startMonitor(join(directory, 'qmp.sock'));
    await commands.execute('chardev-add', { id: 'c', backend: backend({}) });
    assert.deepEqual(await labels(), [
      {
        label: 'qmp',
        filename: `disconnected:unix:${join(directory, 'qmp.sock')},server=on`,
        'frontend-open': true,
      },
      { label: 'c', filename: `disconnected:unix:${path},server=on`, 'frontend-open': false },
    ]);
    await assert.rejects(commands.execute('chardev-remove', { id: 'qmp' }), {
      message: "Chardev 'qmp' is busy",
    });
    await commands.execute('chardev-remove', { id: 'c' });
    assert.equal(existsSync(path), false);
    let isAdded = false;
    const added = commands.execute('chardev-add', { id: 'c', backend: backend({ wait: true }) }).then(() => {
      isAdded = true;
    });
    while (!existsSync(path)) {
      await delay(5);
    }
    await commands.execute('chardev-add', { id: 'n', backend: { type: 'null', data: {} } });
    assert.equal(isAdded, false);
    // Nobody will come any more.
    await commands.execute('chardev-remove', { id: 'c' });
    await added;
    await daemon.addMonitor({ chardev: 'n' });
    await assert.rejects(daemon.addMonitor({ chardev: 'n' }), { message: "Device 'n' is in use" });
  });

  it("are several, and all of them hear of an export's end", async () => {
    await daemon.addNode({ driver: 'null-co', nodeName: 'a' });
    await daemon.addExport({ type: 'vduse-blk', id: 'e', nodeName: 'a', name: 'e' });
    await daemon.startMonitor(join(directory, 'one'), { id: 'one' });
    await daemon.startMonitor(join(directory, 'two'), { id: 'two' });
    const one = await QmpClient.open(join(directory, 'one'));
    const two = await QmpClient.open(join(directory, 'two'));
    fakes.export('e').end();
    assert.deepEqual((await one.read())['data'], { id: 'e' });
    assert.deepEqual((await two.read())['data'], { id: 'e' });
    one.close();
    two.close();
  });
});
