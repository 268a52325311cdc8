import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { descriptorHolders, socketOwner } from '../../src/native/descriptor-holders.js';
import { makeTempDir } from '../support/temp-dir.js';

describe('who has what open', () => {
  it('is told of this process', async () => {
    const path = join(makeTempDir(), 'socket');
    const other = join(makeTempDir(), 'other socket');
    const servers = [createServer().listen(path), createServer().listen(other)];
    try {
      const owner = socketOwner(path);
      assert.equal(owner?.pid, process.pid);
      assert.ok(owner.otherSockets.includes(other));
      assert.ok(!owner.otherSockets.includes(path));
      assert.equal(socketOwner(`${path}-`), undefined);
    } finally {
      await Promise.all(servers.map((server) => new Promise((closed) => server.close(closed))));
    }
    assert.equal(socketOwner(path), undefined);
  });

  it('is read from procfs, whatever is in it', () => {
    const root = makeTempDir();
    const proc = join(root, 'proc');
    for (const pid of [7, 8]) {
      mkdirSync(join(proc, `${pid}/fd`), { recursive: true });
      writeFileSync(join(proc, `${pid}/comm`), `p${pid}\n`);
    }
    mkdirSync(join(proc, 'net'));
    mkdirSync(join(proc, '9'));
    symlinkSync('/home', join(proc, '8/cwd'));
    symlinkSync('socket:[1]', join(proc, '8/fd/3'));
    symlinkSync('socket:[2]', join(proc, '8/fd/4'));
    symlinkSync('socket:[3]', join(proc, '8/fd/5'));
    symlinkSync('/dev/vduse/x', join(proc, '7/fd/0'));
    const head = 'Num       RefCount Protocol Flags    Type St Inode Path';
    const line = (flags: string, inode: number, path: string) =>
      `0000000000000000: 00000002 00000000 ${flags} 0001 01 ${inode} ${path}`;
    const lines = [
      head,
      line('00010000', 1, '/run/a'),
      line('00000000', 2, '/run/b'),
      line('00010000', 3, 'c'),
    ];
    writeFileSync(join(proc, 'net/unix'), `${lines.join('\n')}\nrubbish\n\n`);
    assert.deepEqual(socketOwner('/run/a', root), { pid: 8, command: 'p8', otherSockets: ['/home/c'] });
    assert.equal(socketOwner('/run/b', root), undefined, 'it does not listen');
    assert.deepEqual(descriptorHolders((link) => link.endsWith('/vduse/x'), root).processes, [
      { pid: 7, command: 'p7' },
    ]);
  });
});
