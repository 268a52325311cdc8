import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  closeSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { connect } from 'node:net';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import fc from 'fast-check';
import { SystemCallError } from '../../src/base/errors.js';
import { check, libcCalls } from '../../src/native/ffi.js';
import {
  connectUnix,
  passedFdsMax,
  receiveMessage,
  removeStaleSocket,
  sendMessage,
  socketPair,
  UnixListener,
} from '../../src/native/unix-socket.js';
import { isVduseError } from '../support/vduse-error.js';

const seed = process.env['VDUSE_SEED'];
const parameters = { numRuns: 200, ...(seed === undefined ? {} : { seed: Number(seed) }) };

function openFds(): number {
  return readdirSync('/proc/self/fd').length;
}

/** A memfd with a text in it. */
function memfd(text: string): number {
  const fd = check(libcCalls.memfdCreate('test', 1), 'memfd_create');
  writeSync(fd, text);
  return fd;
}

function contents(fd: number): string {
  const buffer = Buffer.alloc(64);
  return buffer.toString('utf8', 0, readSync(fd, buffer, 0, buffer.length, 0));
}

function closeAll(fds: readonly number[]): void {
  for (const fd of fds) {
    closeSync(fd);
  }
}

function text(message: { length: number } | undefined, buffer: Uint8Array): string {
  assert.ok(message !== undefined, 'nothing was received');
  return Buffer.from(buffer.subarray(0, message.length)).toString();
}

function hasErrno(name: keyof typeof constants.errno): (error: unknown) => boolean {
  return (error) => error instanceof SystemCallError && error.errno === constants.errno[name];
}

let fdsBefore = 0;
let directory = '';

before(() => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-unix-'));
  // The first use of sockets and timers may leave descriptors of Node's own behind: have them before counting.
  closeAll(socketPair());
});

after(() => rmSync(directory, { recursive: true }));

beforeEach(() => {
  fdsBefore = openFds();
});

afterEach(() => {
  assert.equal(openFds(), fdsBefore, 'descriptors were left open, or closed twice');
});

describe('messages', () => {
  let a = -1;
  let b = -1;
  const buffer = new Uint8Array(4096);

  beforeEach(() => {
    [a, b] = socketPair();
  });

  afterEach(() => {
    closeAll([a, b].filter((fd) => fd >= 0));
  });

  test('bytes and descriptors pass in both directions', () => {
    for (const [from, to] of [
      [a, b],
      [b, a],
    ]) {
      const fds = [memfd('first'), memfd('second')];
      assert.equal(sendMessage(from, Buffer.from('hello'), fds), 5);
      closeAll(fds);
      const message = receiveMessage(to, buffer, 8);
      assert.equal(text(message, buffer), 'hello');
      assert.deepEqual(message?.fds.map(contents), ['first', 'second']);
      closeAll(message?.fds ?? []);
    }
  });

  test('received descriptors are closed on exec, and sockets too', () => {
    const sent = memfd('x');
    sendMessage(a, Buffer.from('x'), [sent]);
    const fds = receiveMessage(b, buffer, 1)?.fds ?? [];
    for (const fd of [...fds, a, b]) {
      assert.match(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'), /^flags:\s+0?2\d{6}$/m);
    }
    closeAll([sent, ...fds]);
  });

  test('nothing there is undefined, the end is length 0, an error is thrown', () => {
    assert.equal(receiveMessage(b, buffer, 1), undefined);
    sendMessage(a, Buffer.from('last'));
    closeSync(a);
    a = -1;
    assert.equal(text(receiveMessage(b, buffer, 1), buffer), 'last');
    assert.deepEqual(receiveMessage(b, buffer, 1), { length: 0, fds: [] });
    assert.throws(() => sendMessage(b, Buffer.from('x')), hasErrno('EPIPE'));
    assert.throws(() => receiveMessage(-1, buffer, 1), hasErrno('EBADF'));
  });

  test('a peer that went away without reading is ECONNRESET', () => {
    sendMessage(a, Buffer.from('x'));
    sendMessage(b, Buffer.from('y'));
    closeSync(a);
    a = -1;
    assert.equal(text(receiveMessage(b, buffer, 1), buffer), 'x');
    assert.throws(() => receiveMessage(b, buffer, 1), hasErrno('ECONNRESET'));
  });

  test('as many descriptors as the kernel passes', () => {
    const one = memfd('many');
    sendMessage(a, Buffer.from('x'), new Array<number>(passedFdsMax).fill(one));
    const message = receiveMessage(b, buffer, passedFdsMax);
    assert.equal(message?.fds.length, passedFdsMax);
    assert.equal(new Set(message?.fds).size, passedFdsMax);
    assert.equal(contents(message?.fds[passedFdsMax - 1] ?? -1), 'many');
    closeAll([one, ...(message?.fds ?? [])]);
    assert.throws(
      () => sendMessage(a, Buffer.from('x'), new Array<number>(passedFdsMax + 1).fill(0)),
      /at most 253/,
    );
  });

  test('more descriptors than accepted: none stays open, the next message is whole', () => {
    const one = memfd('x');
    for (const [sent, accepted] of [
      [1, 0],
      [2, 1],
      [4, 3],
      [253, 252],
      [253, 0],
    ]) {
      const before = openFds();
      sendMessage(a, Buffer.from('x'), new Array<number>(sent).fill(one));
      assert.throws(
        () => receiveMessage(b, buffer, accepted),
        isVduseError('PROTOCOL'),
        `${sent} of ${accepted}`,
      );
      assert.equal(openFds(), before, `${sent} of ${accepted}`);
      sendMessage(a, Buffer.from('next'), [one]);
      const next = receiveMessage(b, buffer, 1);
      assert.equal(text(next, buffer), 'next');
      closeAll(next?.fds ?? []);
    }
    closeSync(one);
  });

  test('exactly as many as accepted arrive, odd and even counts', () => {
    const one = memfd('x');
    for (let count = 0; count <= 9; count++) {
      sendMessage(a, Buffer.from('x'), new Array<number>(count).fill(one));
      const message = receiveMessage(b, buffer, count);
      assert.equal(message?.fds.length, count);
      closeAll(message?.fds ?? []);
    }
    closeSync(one);
  });

  test('descriptors arrive with the message they were sent with', () => {
    const fds = [memfd('one'), memfd('two')];
    sendMessage(a, Buffer.from('A'), [fds[0]]);
    sendMessage(a, Buffer.from('B'));
    sendMessage(a, Buffer.from('C'), [fds[1]]);
    closeAll(fds);
    let seen = '';
    for (
      let message = receiveMessage(b, buffer, 4);
      message !== undefined;
      message = receiveMessage(b, buffer, 4)
    ) {
      seen += `${text(message, buffer)}(${message.fds.map(contents).join()})`;
      closeAll(message.fds);
    }
    // The kernel does not merge across descriptors; where bytes without any are put is its own affair.
    assert.ok(['A(one)B()C(two)', 'A(one)BC(two)'].includes(seen), seen);
  });

  test('a peer that does not read: 0 and no descriptor gone, then everything', () => {
    const big = new Uint8Array(1 << 16).fill(7);
    let queued = 0;
    for (let sent = sendMessage(a, big); sent > 0; sent = sendMessage(a, big)) {
      queued += sent;
    }
    const one = memfd('late');
    assert.equal(sendMessage(a, Buffer.from('late'), [one]), 0);
    let drained = 0;
    const sink = new Uint8Array(1 << 20);
    for (
      let message = receiveMessage(b, sink, 1);
      message !== undefined;
      message = receiveMessage(b, sink, 1)
    ) {
      assert.deepEqual(message.fds, []);
      drained += message.length;
    }
    assert.equal(drained, queued);
    assert.equal(sendMessage(a, Buffer.from('late'), [one]), 4);
    const message = receiveMessage(b, sink, 1);
    assert.equal(contents(message?.fds[0] ?? -1), 'late');
    closeAll([one, ...(message?.fds ?? [])]);
  });

  test('a message larger than the buffer comes in parts, its descriptors with the first', () => {
    const one = memfd('x');
    sendMessage(a, Buffer.from('abcdef'), [one]);
    const small = new Uint8Array(4);
    const first = receiveMessage(b, small, 1);
    assert.deepEqual([text(first, small), first?.fds.length], ['abcd', 1]);
    const second = receiveMessage(b, small, 1);
    assert.deepEqual([text(second, small), second?.fds.length], ['ef', 0]);
    closeAll([one, ...(first?.fds ?? [])]);
  });

  test('a process that may open no more: refused, nothing leaks, and it recovers', () => {
    const script = `
      const { socketPair, sendMessage, receiveMessage } = await import(process.argv[1]);
      const { openSync, closeSync, readdirSync } = await import('node:fs');
      const [a, b] = socketPair();
      const one = openSync('/dev/null', 'r');
      const before = readdirSync('/proc/self/fd').length;
      sendMessage(a, Buffer.from('x'), new Array(20).fill(one));
      sendMessage(a, Buffer.from('y'), [one]);
      const fill = [];
      try { for (;;) fill.push(openSync('/dev/null', 'r')); } catch {}
      for (const fd of fill.splice(0, 5)) closeSync(fd);
      let error = {};
      try { receiveMessage(b, Buffer.alloc(8), 64); } catch (thrown) { error = thrown; }
      for (const fd of fill) closeSync(fd);
      const next = receiveMessage(b, Buffer.alloc(8), 64);
      for (const fd of next.fds) closeSync(fd);
      const leaked = readdirSync('/proc/self/fd').length - before;
      console.log(JSON.stringify({ code: error.code, message: error.message, next: next.fds.length, leaked }));`;
    const module = new URL('../../src/native/unix-socket.js', import.meta.url).href;
    const command = 'ulimit -n 64; exec "$0" --input-type=module -e "$1" "$2"';
    const output = execFileSync('/bin/sh', ['-c', command, process.execPath, script, module], {
      encoding: 'utf8',
    });
    const result = JSON.parse(output) as Record<string, unknown>;
    assert.deepEqual(result, {
      code: 'PROTOCOL',
      message: 'a message came with too many descriptors: the process may not open that many',
      next: 1,
      leaked: 0,
    });
  });

  test('any lengths and counts arrive whole and in order', () => {
    const one = memfd('x');
    const message = fc.record({
      length: fc.integer({ min: 1, max: 3000 }),
      count: fc.integer({ min: 0, max: 12 }),
    });
    fc.assert(
      fc.property(fc.array(message, { minLength: 1, maxLength: 8 }), (messages) => {
        let expected = '';
        for (const [index, { length, count }] of messages.entries()) {
          const bytes = Buffer.alloc(length, index + 1);
          assert.equal(sendMessage(a, bytes, new Array<number>(count).fill(one)), length);
          expected += bytes.toString('latin1');
        }
        let fds = 0;
        let got = '';
        for (
          let part = receiveMessage(b, buffer, 12);
          part !== undefined;
          part = receiveMessage(b, buffer, 12)
        ) {
          got += Buffer.from(buffer.subarray(0, part.length)).toString('latin1');
          fds += part.fds.length;
          closeAll(part.fds);
        }
        assert.equal(got, expected);
        assert.equal(
          fds,
          messages.reduce((sum, { count }) => sum + count, 0),
        );
      }),
      parameters,
    );
    closeSync(one);
  });

  test('short arrays that live on the JavaScript heap survive a moving collection', () => {
    const buffers = Array.from({ length: 2000 }, () => new Uint8Array(8));
    for (const [index, small] of buffers.entries()) {
      sendMessage(a, Uint8Array.of(index & 255, index >> 8));
      assert.equal(receiveMessage(b, small, 0)?.length, 2);
    }
    assert.ok(buffers.every((small, index) => small[0] === (index & 255) && small[1] === index >> 8));
  });
});

describe('addresses', () => {
  const buffer = new Uint8Array(64);

  function roundTrip(address: string): void {
    const listener = new UnixListener(address);
    assert.equal(listener.accept(), undefined);
    const client = connectUnix(address);
    const server = listener.accept();
    assert.ok(server !== undefined);
    assert.equal(listener.accept(), undefined);
    const one = memfd('through');
    sendMessage(client, Buffer.from('ping'), [one]);
    const message = receiveMessage(server, buffer, 1);
    assert.equal(text(message, buffer), 'ping');
    assert.equal(contents(message?.fds[0] ?? -1), 'through');
    sendMessage(server, Buffer.from('pong'));
    assert.equal(text(receiveMessage(client, buffer, 0), buffer), 'pong');
    closeAll([one, client, server, ...(message?.fds ?? [])]);
    listener.close();
    assert.throws(() => connectUnix(address), hasErrno(address.startsWith('@') ? 'ECONNREFUSED' : 'ENOENT'));
  }

  test('a path, as long as the kernel takes it', () => {
    const path = join(directory, 'x'.repeat(107 - directory.length - 1));
    assert.equal(path.length, 107);
    roundTrip(path);
    assert.ok(!existsSync(path));
  });

  test('an abstract name, which the kernel shows as it was given', () => {
    const name = `@vduse-test-${process.pid}`;
    roundTrip(name);
    const listener = new UnixListener(name);
    assert.ok(readFileSync('/proc/net/unix', 'utf8').includes(` ${name}\n`));
    assert.throws(() => new UnixListener(name), hasErrno('EADDRINUSE'));
    listener.close();
  });

  test('addresses that do not fit are refused', () => {
    for (const address of [
      '',
      '@',
      'a\0b',
      '@a\0b',
      'x'.repeat(108),
      `@${'x'.repeat(108)}`,
      'ä'.repeat(54),
    ]) {
      assert.throws(() => connectUnix(address), isVduseError('INVALID_ARGUMENT'), address);
      assert.throws(() => new UnixListener(address), isVduseError('INVALID_ARGUMENT'), address);
    }
  });

  test('Node’s own sockets can talk to ours', async () => {
    const path = join(directory, 'node');
    const listener = new UnixListener(path);
    const client = connect(path);
    await once(client, 'connect');
    const server = listener.accept();
    assert.ok(server !== undefined);
    sendMessage(server, Buffer.from('hi'));
    assert.equal(String((await once(client, 'data'))[0]), 'hi');
    client.destroy();
    await once(client, 'close');
    closeSync(server);
    listener.close();
  });

  test('the socket file has its mode from the start', () => {
    const path = join(directory, 'mode');
    for (const mode of [0o600, 0o660]) {
      const listener = new UnixListener(path, { mode });
      assert.equal(statSync(path).mode & 0o777, mode & ~process.umask());
      listener.close();
    }
    const listener = new UnixListener(path);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    listener.close();
  });

  test('a socket file that a dead process left is replaced', () => {
    const path = join(directory, 'stale');
    const first = new UnixListener(path);
    closeSync(first.fd);
    assert.ok(existsSync(path));
    roundTrip(path);
  });

  test('a socket that somebody listens on stays his', () => {
    const path = join(directory, 'live');
    const first = new UnixListener(path);
    assert.throws(() => new UnixListener(path), isVduseError('BUSY'));
    assert.throws(() => removeStaleSocket(path), isVduseError('BUSY'));
    closeAll([first.accept() ?? -1, first.accept() ?? -1]);
    // A full backlog: he listens, and has no time.
    const waiting: number[] = [];
    const fill = (): void => {
      for (let count = 0; count < 64; count++) {
        waiting.push(connectUnix(path));
      }
    };
    assert.throws(fill, hasErrno('EAGAIN'));
    assert.throws(() => removeStaleSocket(path), isVduseError('BUSY'));
    closeAll(waiting);
    first.close();
    removeStaleSocket(path);
  });

  test('a socket that may not be looked at stays', { skip: process.getuid?.() !== 0 && 'needs root' }, () => {
    const path = join(directory, 'secret');
    const listener = new UnixListener(path);
    chmodSync(directory, 0o755);
    process.seteuid?.(65534);
    try {
      assert.throws(() => removeStaleSocket(path), hasErrno('EACCES'));
    } finally {
      process.seteuid?.(0);
    }
    assert.ok(existsSync(path));
    listener.close();
  });

  test('a file that is no socket stays', () => {
    const path = join(directory, 'file');
    writeFileSync(path, 'precious');
    assert.throws(() => new UnixListener(path), isVduseError('ALREADY_EXISTS'));
    assert.equal(readFileSync(path, 'latin1'), 'precious');
  });

  test('a stale socket is removed, and no socket is fine', () => {
    const path = join(directory, 'remove');
    removeStaleSocket(path);
    const listener = new UnixListener(path);
    closeSync(listener.fd);
    removeStaleSocket(path);
    assert.ok(!existsSync(path));
  });

  test('closing leaves the file of whoever listens there now', () => {
    const path = join(directory, 'moved');
    const first = new UnixListener(path);
    renameSync(path, `${path}.old`);
    const second = new UnixListener(path);
    first.close();
    assert.ok(existsSync(path));
    closeSync(connectUnix(path));
    second.close();
    assert.ok(!existsSync(path));
  });

  test('a directory that is not there is the kernel’s error, with the path', () => {
    const path = join(directory, 'none', 'socket');
    assert.throws(() => new UnixListener(path), /bind .*none\/socket.*ENOENT/);
    assert.throws(() => connectUnix(path), /connect .*none\/socket.*ENOENT/);
  });
});
