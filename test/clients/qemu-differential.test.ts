/**
 * The same asked of the real qemu-storage-daemon and of ours. Known differences are listed in
 * docs/storage-daemon.md and left out here.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import fc from 'fast-check';
import { VduseError } from '../../src/base/errors.js';
import { openBlockNode } from '../../src/block/open.js';
import { parseCommandLine } from '../../src/cli/storage-daemon/command-line.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { Fakes } from '../daemon/fakes.js';
import { QmpClient } from '../qmp/client.js';
import { jsonPiece } from '../qmp/json-pieces.js';
import { propertyRuns } from '../support/property.js';

const PROGRAM = 'qemu-storage-daemon';
const isInstalled = spawnSync(PROGRAM, ['--version']).status === 0;
// A machine that checks everything has it; elsewhere its absence is a reason to skip.
const skip = isInstalled || process.env['CI'] === 'true' ? false : `${PROGRAM} is not installed`;

const images = { theirs: 'image-1', ours: 'image-2' } as const;
type Side = keyof typeof images;

/** An answer without what differs for good reason: versions, times, the order of members. */
function comparable(line: string): unknown {
  const message = JSON.parse(line, (key, value) => {
    if (key === 'timestamp') {
      return 0;
    }
    if (typeof value === 'string' && value.startsWith('json:')) {
      return JSON.parse(value.slice('json:'.length));
    }
    return value;
  });
  return message?.return?.qemu === undefined ? message : { ...message, return: 'a version' };
}

function throttleScript(add: (options: object) => string): string[] {
  const group = (more: object) =>
    JSON.stringify({ execute: 'object-add', arguments: { 'qom-type': 'throttle-group', id: 'g', ...more } });
  const limits = (values: object) => group({ limits: values });
  const node = add({ driver: 'throttle', 'node-name': 't', file: 'n0', 'throttle-group': 'g' });
  return [
    node,
    limits({ 'iops-total': 100, 'iops-read': 5 }),
    limits({ 'bps-total-max': 100, 'bps-write-max': 5 }),
    limits({ 'iops-total': 100, 'iops-total-max': 5 }),
    limits({ 'iops-total': 100, 'iops-total-max-length': 5 }),
    limits({ 'iops-size': 100 }),
    limits({ 'iops-total-max': 100 }),
    limits({ 'iops-total': 100, 'iops-total-max': 500, 'iops-total-max-length': 0 }),
    limits({ 'bps-read': -5 }),
    limits({ 'iops-total': 1000000000000001 }),
    limits({ 'iops-total': 100, 'iops-total-max': 1000, 'iops-total-max-length': 5000000000 }),
    limits({ 'iops-total': 100, 'iops-total-max': 1e12, 'iops-total-max-length': 5000000 }),
    group({ 'x-iops-total': 100, 'x-bps-read': 1000 }),
    node,
    JSON.stringify({ execute: 'object-del', arguments: { id: 'g' } }),
    JSON.stringify({ execute: 'blockdev-del', arguments: { 'node-name': 't' } }),
    JSON.stringify({ execute: 'object-del', arguments: { id: 'g' } }),
  ];
}

/** Nodes over nodes: what may be opened, resized, deleted and opened again. */
function graphScript(add: (options: object) => string, filename: string): string[] {
  const command = (execute: string, args: object) => JSON.stringify({ execute, arguments: args });
  const raw = (name: string, more: object) => add({ driver: 'raw', 'node-name': name, file: 'd0', ...more });
  const resize = (name: string, size: number) => command('block_resize', { 'node-name': name, size });
  const remove = (name: string) => command('blockdev-del', { 'node-name': name });
  const reopen = (...options: object[]) => command('blockdev-reopen', { options });
  const part = 1 << 20;
  return [
    raw('r0', { offset: part, size: part }),
    raw('r1', {}),
    raw('rx', { file: 'nope' }),
    raw('rx', { file: 5 }),
    raw('rx', { file: {} }),
    raw('rx', { file: { driver: 'null-co', foo: 1 } }),
    raw('rx', { file: { driver: 'null-co', 'node-name': 'r1' } }),
    raw('rx', { offset: 30 * part }),
    raw('rx', { offset: 0, size: 30 * part }),
    raw('rx', { size: 1000 }),
    raw('r1', {}),
    raw('r2', { file: { driver: 'null-co', 'node-name': 'inner', size: 2 * part }, 'read-only': true }),
    remove('d0'),
    remove('inner'),
    command('query-named-block-nodes', { flat: true }),
    resize('d0', 40 * part),
    resize('r0', 2 * part),
    remove('r0'),
    resize('r1', 40 * part),
    command('query-named-block-nodes', { flat: true }),
    reopen({ driver: 'raw', 'node-name': 'r1', file: 'd0', offset: part }),
    resize('r1', 20 * part),
    reopen({ driver: 'raw', 'node-name': 'r1', file: 'd0', offset: 50 * part }),
    reopen({ driver: 'raw', 'node-name': 'r1', file: 'n0', offset: 0 }),
    remove('n0'),
    reopen({ driver: 'raw', 'node-name': 'r1', file: 'd0' }),
    reopen({ driver: 'file', 'node-name': 'zz', filename }),
    reopen({ driver: 'file', filename }),
    reopen({ driver: 'file', 'node-name': 'd0', filename: `${filename}x` }),
    reopen({ driver: 'file', 'node-name': 'd0', filename, locking: 'off' }),
    reopen({ driver: 'file', 'node-name': 'd0', filename, 'read-only': true }),
    command('query-named-block-nodes', { flat: true }),
    resize('r1', 10 * part),
    reopen({ driver: 'file', 'node-name': 'd0', filename, 'read-only': false }),
    resize('r1', 20 * part),
    remove('r2'),
    remove('r1'),
    ...throttleScript(add),
  ];
}

describe('beside qemu-storage-daemon', { skip }, () => {
  let directory: string;
  let theirs: ChildProcess;
  let ours: StorageDaemon;
  const sockets = { theirs: '', ours: '' };

  before(async () => {
    directory = mkdtempSync(join(tmpdir(), 'vduse-differential-'));
    for (const image of Object.values(images)) {
      // Two images that are alike: each daemon locks its own.
      writeFileSync(join(directory, image), Buffer.alloc(10_000, 1));
      truncateSync(join(directory, image), 10 << 20);
    }
    sockets.theirs = join(directory, 'theirs');
    sockets.ours = join(directory, 'ours');
    theirs = spawn(
      PROGRAM,
      ['--chardev', `socket,id=qmp,path=${sockets.theirs},server=on,wait=off`, '--monitor', 'qmp'],
      { stdio: 'ignore' },
    );
    ours = new StorageDaemon({ ...new Fakes().factories, openBlockNode });
    await ours.startMonitor(sockets.ours);
    while (!existsSync(sockets.theirs)) {
      assert.equal(theirs.exitCode, null);
      await delay(10);
    }
  });

  after(async () => {
    await ours.close();
    theirs.kill('SIGKILL');
    if (theirs.exitCode === null && theirs.signalCode === null) {
      await once(theirs, 'exit');
    }
    rmSync(directory, { recursive: true });
  });

  /** Sends the bytes and returns the answers up to one that only the end can have. */
  async function dialogue(side: Side, input: string | Uint8Array): Promise<unknown[]> {
    const client = await QmpClient.open(sockets[side]);
    try {
      client.send(typeof input === 'string' ? input.replaceAll('IMAGE', images[side]) : input);
      client.send('\n{"execute":"query-version","id":"the end"}\n');
      const answers: unknown[] = [];
      for (;;) {
        const line = await client.readLine();
        assert.ok(line !== undefined, 'the connection ended');
        const answer = comparable(line.replaceAll(images[side], 'IMAGE'));
        answers.push(answer);
        if ((answer as { id?: unknown }).id === 'the end') {
          return answers;
        }
      }
    } finally {
      client.close();
    }
  }

  async function compare(input: string | Uint8Array): Promise<void> {
    const answers = { theirs: await dialogue('theirs', input), ours: await dialogue('ours', input) };
    assert.deepEqual(answers.ours, answers.theirs, Buffer.from(input).toString());
  }

  const command = (execute: string, args?: object) =>
    JSON.stringify(args === undefined ? { execute } : { execute, arguments: args });

  it('a session goes the same way', async () => {
    const filename = join(directory, 'IMAGE');
    const add = (options: object) => command('blockdev-add', options);
    const script = [
      add({ driver: 'file', 'node-name': 'd0', filename }),
      add({ driver: 'null-co', 'node-name': 'n0', size: 1048576 }),
      add({ driver: 'null-co', 'node-name': 'n1', 'read-only': true, 'read-zeroes': true }),
      add({ driver: 'null-co', 'node-name': 'n2', cache: { direct: true, 'no-flush': true } }),
      add({ driver: 'null-co', 'node-name': 'n3', discard: 'unmap', 'detect-zeroes': 'unmap' }),
      command('query-named-block-nodes'),
      command('query-named-block-nodes', { flat: true }),
      command('query-named-block-nodes', { flat: 1 }),
      add({ driver: 'null-co', 'node-name': 'd0' }),
      add({ driver: 'null-co' }),
      add({ driver: 'null-co', 'node-name': '9x' }),
      add({ driver: 'null-co', 'node-name': 'x'.repeat(32) }),
      add({ driver: 'nope', 'node-name': 'x' }),
      add({ driver: 'file', 'node-name': 'x' }),
      add({ 'node-name': 'x' }),
      add({ driver: 'file', 'node-name': 'x', filename: '/dev/null' }),
      add({ driver: 'file', 'node-name': 'x', filename, aio: 'native' }),
      add({ driver: 'file', 'node-name': 'x', filename, 'detect-zeroes': 'unmap' }),
      add({ driver: 'null-co', 'node-name': 'x', 'detect-zeroes': 'unmap' }),
      add({ driver: 'file', 'node-name': 'x', filename, 'detect-zeroes': 'zz' }),
      add({ driver: 'file', 'node-name': 'x', filename, 'read-only': 'on' }),
      add({ driver: 'file', 'node-name': 'x', filename, cache: { dirct: true } }),
      add({ driver: 'file', 'node-name': 'x', filename, cache: 1 }),
      command('blockdev-del', { 'node-name': 'zz' }),
      command('blockdev-del', { 'node-name': 'n2' }),
      command('block_resize', { 'node-name': 'd0', size: 20971520 }),
      command('block_resize', { 'node-name': 'n1', size: 1024 }),
      command('block_resize', { size: 20971520 }),
      command('block_resize', { device: 'zz', size: 20971520 }),
      command('block_resize', { device: 'd0', size: 20971520 }),
      command('block_resize', { 'node-name': 'zz', size: 20971520 }),
      command('block_resize', { 'node-name': 'd0', size: -5 }),
      command('block_resize', { 'node-name': 'd0', size: '5' }),
      command('block_resize', { 'node-name': 'd0' }),
      command('block_resize', { 'node-name': 'd0', size: 1000 }),
      command('query-named-block-nodes'),
      command('object-add', { 'qom-type': 'iothread', id: 'io0', 'poll-max-ns': 1000 }),
      command('object-add', { 'qom-type': 'iothread', id: 'io0' }),
      command('object-add', { 'qom-type': 'iothread', id: '9' }),
      command('object-add', { 'qom-type': 'iothread' }),
      command('object-add', { 'qom-type': 'nope', id: 'x' }),
      command('object-add', { 'qom-type': 'iothread', id: 'x', foo: 1 }),
      command('object-add', { 'qom-type': 'iothread', id: 'x', 'poll-max-ns': '1' }),
      command('object-add', { 'qom-type': 'secret', id: 's', data: 'x' }),
      command('object-add', { 'qom-type': 'secret', id: 't' }),
      command('object-del', { id: 'zz' }),
      command('object-del', { id: 's' }),
      command('object-del', { id: 'io0' }),
      command('query-block-exports'),
      command('block-export-del', { id: 'zz' }),
      command('block-export-del', { id: 'zz', mode: 'soft' }),
      ...[
        { 'node-name': 'zz', name: 'foo' },
        { id: '9e', name: 'foo' },
        { name: 'foo', 'num-queues': 0 },
        { name: 'foo', 'num-queues': 70000 },
        { name: 'foo', 'num-queues': -1 },
        { name: 'foo', 'queue-size': 2 },
        { name: 'foo', 'queue-size': 100 },
        { name: 'foo', 'logical-block-size': 513 },
        { name: 'foo', 'logical-block-size': 5 },
        { name: 'foo', iothread: 'zz' },
        { name: 5 },
        {},
        { name: 'a', foo: 5 },
        { type: 'huh', name: 'a' },
        { 'node-name': 'n1', name: 'foo', writable: true },
      ].map((more) =>
        command('block-export-add', { type: 'vduse-blk', id: 'v', 'node-name': 'n0', ...more }),
      ),
      ...[
        {},
        { addr: {} },
        { addr: { type: 'unix' } },
        { addr: { type: 'inet', host: 'a', port: '1' } },
        { addr: { type: 'vsock', cid: 'a', port: '1' } },
        { addr: { type: 'unix', path: '/none', x: 1 } },
        { addr: { type: 'unix', path: '/none' }, x: 1 },
        { addr: { type: 'unix', path: '/none' }, 'num-queues': 0 },
        { addr: { type: 'unix', path: '/none' }, writable: 1 },
        { addr: { type: 'unix', path: '/none' }, 'node-name': 'zz' },
        { addr: { type: 'unix', path: '/none' }, 'node-name': 'n1', writable: true },
      ].map((more) =>
        command('block-export-add', { type: 'vhost-user-blk', id: 'v', 'node-name': 'n0', ...more }),
      ),
      ...graphScript(add, filename),
      command('blockdev-del', { 'node-name': 'd0' }),
      command('blockdev-del', { 'node-name': 'n0' }),
      command('blockdev-del', { 'node-name': 'n1' }),
      command('blockdev-del', { 'node-name': 'n3' }),
      command('query-named-block-nodes'),
    ];
    // One by one, so that a difference shows its command.
    for (const line of script) {
      await compare(line);
    }
  });

  it('messages that are none get the same answers', async () => {
    const bytes = fc.array(
      fc.oneof(
        jsonPiece,
        fc.constantFrom(0xff, 0xfe, 0xc3).map((byte) => Buffer.of(byte)),
      ),
      { maxLength: 12 },
    );
    await fc.assert(
      // What is still open at the end is closed, so that the last command is one.
      fc.asyncProperty(bytes, async (pieces) => {
        await compare(Buffer.concat([...pieces, Buffer.from('\n\x01]]]}}}"\n')]));
      }),
      propertyRuns(150),
    );
  });

  it('options are refused in the same words', () => {
    const cases: string[][] = [
      ['--nonsense'],
      ['extra'],
      ['--blockdev'],
      ...[
        ...['null-co', 'null-co,node-name', 'null-co,node-name=a,read-only=maybe', ',', '=x', ''],
        ...['null-co,node-name=a,cache.direct=', 'null-co,node-name=a,cache=1', 'null-co,node-name=a,9=3'],
        ...['null-co,node-name=a,cache.direct=on,cache=1', 'null-co,node-name=a,x_y=3'],
        ...['null-co,node-name=a,foo.0=1,foo.2=1', 'null-co,node-name=a,foo.0=1,foo.a=1'],
        ...['nope,node-name=a', 'file,node-name=a', 'file,node-name=a,filename=b,aio=x'],
        ...[
          '{"driver":"null-co","node-name":"a","size":"5"}',
          '{"driver":"null-co"',
          '{"driver":"null-co"}x',
        ],
        ...['{"driver":"null-co","node-name":"a","size":5.5}', '{"driver":"null-co","driver":"file"}', '{x'],
      ].map((text) => ['--blockdev', text]),
      ...[
        ...[
          'id=e,node-name=a,name=b',
          'zz,id=e,node-name=a,name=b',
          'vduse-blk,id=e,node-name=a,name=b,foo=bar',
        ],
        ...['vduse-blk,node-name=a,name=b', 'vduse-blk,id=e,name=b', 'vduse-blk,id=e,node-name=a'],
        ...[
          'vduse-blk,id=e,node-name=a,name=b,writable=foo',
          'vduse-blk,id=e,node-name=a,name=b,num-queues=foo',
        ],
        'vduse-blk,id=e,node-name=a,name=b,num-queues=70000',
      ].map((text) => ['--export', text]),
      ...['iothread', 'nope,id=x', 'secret,id=s', 'iothread,id=a,poll-max-ns=x', 'iothread,id=a,foo=x'].map(
        (text) => ['--object', text],
      ),
      ['--monitor', 'c,mode=foo'],
      ['--monitor', ''],
      ['--chardev', 'socket,id=c,path=/s,wait=off'],
      ['--chardev', 'socket,id=c,path=/s,server=maybe'],
      ['--chardev', 'socket,id=c,host=localhost,server=on,wait=off'],
      ['--pidfile'],
    ];
    for (const args of cases) {
      const { stderr } = spawnSync(PROGRAM, args, { encoding: 'utf8', timeout: 20_000 });
      let message = '(accepted)';
      try {
        parseCommandLine(args);
      } catch (error) {
        assert.ok(error instanceof VduseError);
        message = error.message;
      }
      assert.equal(message, stderr.split('\n')[0].replace(`${PROGRAM}: `, ''), args.join(' '));
    }
  });
});
