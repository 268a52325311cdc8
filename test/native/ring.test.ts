/** What every ring has to do, with io_uring itself as the first to do it. */
import assert from 'node:assert/strict';
import { readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, beforeEach, describe, it, type TestContext } from 'node:test';
import fc from 'fast-check';
import { Errno } from '../../src/native/errno.js';
import {
  closeFd,
  createEventFd,
  drainEventFd,
  duplicateFd,
  FallocateMode,
  OpenFlag,
  openFile,
  signalEventFd,
} from '../../src/native/fd.js';
import { addressOf } from '../../src/native/ffi.js';
import { openRing, type RingKind, ringKinds } from '../../src/native/open-ring.js';
import {
  type CompletionHandler,
  CqeFlag,
  FsyncFlag,
  pollIn,
  pollMultishot,
  type Ring,
  RingOp,
  RwFlag,
  SqeFlag,
} from '../../src/native/ring.js';
import { TestGuest } from '../support/guest.js';
import { propertyRuns } from '../support/property.js';
import { openFdCount } from '../support/resources.js';
import { makeTempDir } from '../support/temp-dir.js';

interface Completion {
  readonly source: number;
  readonly token: number;
  readonly result: number;
  readonly flags: number;
}

class Collector implements CompletionHandler {
  readonly all: Completion[] = [];

  onRingCompletion(source: number, token: number, result: number, flags: number): void {
    this.all.push({ source, token, result, flags });
  }

  get tokens(): number[] {
    return this.all.map(({ token }) => token).sort((a, b) => a - b);
  }

  resultOf(token: number): number | undefined {
    return this.all.find((completion) => completion.token === token)?.result;
  }
}

/** Submits and reaps until `count` completions came in all; fails after some seconds. */
function collect(ring: Ring, collector: Collector, count: number): void {
  const deadline = performance.now() + 5000;
  while (collector.all.length < count) {
    assert.ok(performance.now() < deadline, `${collector.all.length} of ${count} completions came`);
    assert.equal(ring.submitAndWait(100), 0);
    ring.reap(collector);
  }
}

const directory = makeTempDir();
const memory = new TestGuest(1 << 20);
after(() => memory.close());

for (const kind of ringKinds) {
  describe(kind, () => suite(kind));
}

function suite(kind: RingKind): void {
  let ring: Ring;
  let collector: Collector;
  beforeEach(() => {
    ring = openRing(kind, 8);
    collector = new Collector();
  });
  afterEach(() => ring.close());

  /** Opens a file of the test's directory; the caller's test closes it. */
  function withFile(name: string, content: Uint8Array, use: (fd: number, path: string) => void): void {
    const path = join(directory, name);
    writeFileSync(path, content);
    const fd = openFile(path, OpenFlag.O_RDWR);
    try {
      use(fd, path);
    } finally {
      closeFd(fd);
    }
  }

  function withEventFd(use: (fd: number) => void): void {
    const fd = createEventFd();
    try {
      use(fd);
    } finally {
      closeFd(fd);
    }
  }

  function prepareNop(token: number): void {
    ring.prepare(RingOp.NOP, -1, 0, 0, 0, 0, 0, 1, token);
  }

  describe('files with O_DIRECT', () => {
    const block = 4096;
    const blocks = 200;
    const content = Uint8Array.from({ length: blocks * block }, (_, n) => n / block);

    /** As `withFile`, without the page cache; a skipped test where the file system has no such thing. */
    function withDirectFile(t: TestContext, use: (fd: number, path: string) => void): void {
      const path = join(directory, 'direct');
      writeFileSync(path, content);
      let fd: number;
      try {
        fd = openFile(path, OpenFlag.O_RDWR | OpenFlag.O_DIRECT);
      } catch (error) {
        t.skip(`${directory} takes no O_DIRECT: ${(error as Error).message}`);
        return;
      }
      try {
        use(fd, path);
      } finally {
        closeFd(fd);
      }
    }

    it('reads and writes many blocks, each once', (t) =>
      withDirectFile(t, (fd, path) => {
        memory.bytes.fill(0xee);
        for (let n = 0; n < blocks; n++) {
          ring.prepare(RingOp.READ, fd, memory.hostAddress + n * block, block, n * block, 0, 0, 7, n);
        }
        collect(ring, collector, blocks);
        assert.deepEqual(
          collector.tokens,
          Array.from({ length: blocks }, (_, n) => n),
        );
        assert.ok(collector.all.every(({ source, result }) => source === 7 && result === block));
        assert.deepEqual(memory.bytes.subarray(0, content.length), content);

        memory.bytes.fill(0x5a);
        collector.all.length = 0;
        const [from, last] = [memory.hostAddress, (blocks - 1) * block];
        memory.view.setBigUint64(8 * block, BigInt(from), true);
        memory.view.setBigUint64(8 * block + 8, BigInt(block), true);
        ring.prepare(RingOp.WRITE, fd, from, block, 0, RwFlag.DSYNC, 0, 7, 0xffff_fffe);
        ring.prepare(RingOp.WRITEV, fd, from + 8 * block, 1, last, 0, 0, 7, 2);
        collect(ring, collector, 2);
        assert.equal(collector.resultOf(0xffff_fffe), block);
        assert.equal(collector.resultOf(2), block);
        const written = readFileSync(path);
        assert.ok(written.subarray(0, block).every((byte) => byte === 0x5a));
        assert.ok(written.subarray(last).every((byte) => byte === 0x5a));
        assert.deepEqual(written.subarray(block, last), Buffer.from(content.subarray(block, last)));
      }));

    it('tells what the file refuses, and goes on behind it', (t) =>
      withDirectFile(t, (fd, path) => {
        const wrong = openFile(path, OpenFlag.O_RDONLY | OpenFlag.O_DIRECT);
        ring.prepare(RingOp.READ, fd, memory.hostAddress, block, block, 0, 0, 1, 1);
        ring.prepare(RingOp.READ, fd, memory.hostAddress + 1, 77, 5, 0, 0, 1, 2);
        ring.prepare(RingOp.WRITE, wrong, memory.hostAddress, block, 0, 0, 0, 1, 3);
        ring.prepare(RingOp.READ, fd, memory.hostAddress + block, block, 2 * block, 0, 0, 1, 4);
        collect(ring, collector, 4);
        closeFd(wrong);
        const results = [1, 2, 3, 4].map((token) => collector.resultOf(token));
        assert.deepEqual(results, [block, -Errno.EINVAL, -Errno.EBADF, block]);
      }));

    it('ends with transfers in flight, and leaves nothing open', (t) =>
      withDirectFile(t, (fd) => {
        const fds = openFdCount();
        const other = openRing(kind, 8);
        other.prepare(RingOp.READ, fd, memory.hostAddress, block, 0, 0, 0, 1, 1);
        other.submit();
        other.close();
        assert.equal(openFdCount(), fds);
      }));
  });

  describe('files', () => {
    it('does to a file what a model in memory does', () => {
      const fileBytes = 8192;
      fc.assert(
        fc.property(
          fc.array(
            fc.record({
              write: fc.boolean(),
              vectored: fc.boolean(),
              offset: fc.nat(fileBytes - 1),
              length: fc.integer({ min: 1, max: 3000 }),
              fill: fc.nat(255),
              flags: fc.constantFrom(0, SqeFlag.ASYNC),
              durable: fc.boolean(),
            }),
            { minLength: 1, maxLength: 12 },
          ),
          (operations) => {
            withFile('model', new Uint8Array(fileBytes), (fd, path) => {
              const model = new Uint8Array(fileBytes);
              for (const [token, operation] of operations.entries()) {
                const length = Math.min(operation.length, fileBytes - operation.offset);
                const buffer = memory.bytes.subarray(4096, 4096 + length);
                const address = memory.hostAddress + 4096;
                const half = Math.floor(length / 2);
                // Two iovecs: base and length, 64 bits each.
                for (const [n, value] of [address, half, address + half, length - half].entries()) {
                  memory.view.setBigUint64(n * 8, BigInt(value), true);
                }
                buffer.fill(operation.write ? operation.fill : 0xee);
                const scalar = operation.write ? RingOp.WRITE : RingOp.READ;
                const vector = operation.write ? RingOp.WRITEV : RingOp.READV;
                ring.prepare(
                  operation.vectored ? vector : scalar,
                  fd,
                  operation.vectored ? memory.hostAddress : address,
                  operation.vectored ? 2 : length,
                  operation.offset,
                  operation.write && operation.durable ? RwFlag.DSYNC : 0,
                  operation.flags,
                  2,
                  token,
                );
                const own = new Collector();
                collect(ring, own, 1);
                assert.deepEqual(
                  own.all.map(({ flags: _flags, ...completion }) => completion),
                  [{ source: 2, token, result: length }],
                );
                const part = model.subarray(operation.offset, operation.offset + length);
                if (operation.write) {
                  part.fill(operation.fill);
                }
                assert.deepEqual(buffer, part);
              }
              assert.deepEqual(new Uint8Array(readFileSync(path)), model);
            });
          },
        ),
        propertyRuns(40),
      );
    });

    it('reaches offsets beyond 4 GiB', () => {
      withFile('large', new Uint8Array(0), (fd, path) => {
        const offset = 5 * 2 ** 30 + 4097;
        memory.bytes.fill(0x5a, 0, 10);
        ring.prepare(RingOp.WRITE, fd, memory.hostAddress, 10, offset, 0, 0, 1, 1);
        collect(ring, collector, 1);
        assert.equal(statSync(path).size, offset + 10);
        ring.prepare(RingOp.READ, fd, memory.hostAddress + 100, 20, offset - 5, 0, 0, 1, 2);
        collect(ring, collector, 2);
        assert.equal(collector.resultOf(2), 15);
        assert.deepEqual([...memory.bytes.subarray(100, 115)], [0, 0, 0, 0, 0, ...Array(10).fill(0x5a)]);
      });
    });

    it('says how much of a read there was, and 0 at the end', () => {
      withFile('short', new Uint8Array(100).fill(1), (fd) => {
        ring.prepare(RingOp.READ, fd, memory.hostAddress, 80, 50, 0, 0, 1, 1);
        ring.prepare(RingOp.READ, fd, memory.hostAddress, 80, 100, 0, 0, 1, 2);
        collect(ring, collector, 2);
        assert.deepEqual([collector.resultOf(1), collector.resultOf(2)], [50, 0]);
      });
    });

    it('flushes', () => {
      withFile('flush', new Uint8Array(10), (fd) => {
        ring.prepare(RingOp.FSYNC, fd, 0, 0, 0, FsyncFlag.DATASYNC, 0, 1, 1);
        ring.prepare(RingOp.FSYNC, fd, 0, 0, 0, 0, 0, 1, 2);
        collect(ring, collector, 2);
        assert.deepEqual([collector.resultOf(1), collector.resultOf(2)], [0, 0]);
      });
    });

    it('punches holes and zeroes ranges, of more than 4 GiB too', () => {
      withFile('holes', new Uint8Array(64 << 10).fill(7), (fd, path) => {
        ring.prepareFallocate(fd, FallocateMode.KEEP_SIZE | FallocateMode.PUNCH_HOLE, 4096, 8192, 1, 1);
        collect(ring, collector, 1);
        if (collector.resultOf(1) === -Errno.EOPNOTSUPP) {
          return;
        }
        assert.equal(collector.resultOf(1), 0);
        const content = readFileSync(path);
        assert.equal(content.length, 64 << 10);
        assert.deepEqual([content[4095], content[4096], content[12287], content[12288]], [7, 0, 0, 7]);
        truncateSync(path, 6 * 2 ** 30);
        memory.bytes.fill(9, 0, 8);
        const last = 6 * 2 ** 30 - 8;
        ring.prepare(RingOp.WRITE, fd, memory.hostAddress, 8, last, 0, 0, 1, 2);
        collect(ring, collector, 2);
        ring.prepareFallocate(
          fd,
          FallocateMode.KEEP_SIZE | FallocateMode.PUNCH_HOLE,
          8192,
          6 * 2 ** 30 - 8192,
          1,
          3,
        );
        collect(ring, collector, 3);
        assert.equal(collector.resultOf(3), 0);
        ring.prepare(RingOp.READ, fd, memory.hostAddress, 8, last, 0, 0, 1, 4);
        collect(ring, collector, 4);
        assert.deepEqual([...memory.bytes.subarray(0, 8)], Array(8).fill(0));
        assert.equal(statSync(path).size, 6 * 2 ** 30);
      });
    });

    it('answers errors as negative errnos', () => {
      withFile('errors', new Uint8Array(10), (fd, path) => {
        const readOnly = openFile(path, OpenFlag.O_RDONLY);
        ring.prepare(RingOp.WRITE, readOnly, memory.hostAddress, 1, 0, 0, 0, 1, 1);
        ring.prepare(RingOp.READ, fd, 4096, 1, 0, 0, 0, 1, 2);
        ring.prepare(RingOp.READ, 1_000_000, memory.hostAddress, 1, 0, 0, 0, 1, 3);
        collect(ring, collector, 3);
        closeFd(readOnly);
        assert.deepEqual(
          [1, 2, 3].map((token) => collector.resultOf(token)),
          [-9, -Errno.EFAULT, -9],
        );
      });
    });
  });

  describe('polls, cancellation and time', () => {
    it('completes a multishot poll once for each signal of an eventfd that nobody reads', () => {
      withEventFd((fd) => {
        ring.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, 3, 9);
        assert.equal(ring.submit(), 0);
        assert.equal(ring.reap(collector), 0);
        for (let n = 1; n <= 5; n++) {
          signalEventFd(fd);
          collect(ring, collector, n);
          const { source, token, result, flags } = collector.all[n - 1];
          assert.deepEqual(
            [source, token, result & pollIn, flags & CqeFlag.MORE],
            [3, 9, pollIn, CqeFlag.MORE],
          );
        }
        assert.equal(ring.submitAndWait(20), 0);
        assert.equal(ring.reap(collector), 0);
      });
    });

    it('sees a signal that came before the poll was armed', () => {
      withEventFd((fd) => {
        signalEventFd(fd);
        ring.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, 3, 9);
        collect(ring, collector, 1);
        drainEventFd(fd);
        assert.equal(ring.submitAndWait(20), 0);
        assert.equal(ring.reap(collector), 0);
        signalEventFd(fd);
        collect(ring, collector, 2);
      });
    });

    it('cancels by source and token, and nothing else', () => {
      withEventFd((fd) => {
        const source = 2 ** 21 - 1;
        ring.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, source, 0xffff_ffff);
        ring.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, source - 1, 0xffff_ffff);
        ring.prepareCancel({ source, token: 0xffff_ffff }, 5, 1);
        collect(ring, collector, 2);
        assert.equal(collector.resultOf(1), 0);
        assert.deepEqual(
          collector.all
            .filter((completion) => completion.token === 0xffff_ffff)
            .map((c) => [c.source, c.result]),
          [[source, -Errno.ECANCELED]],
        );
        ring.prepareCancel({ source: 4, token: 4 }, 5, 2);
        collect(ring, collector, 3);
        assert.equal(collector.resultOf(2), -Errno.ENOENT);
        signalEventFd(fd);
        collect(ring, collector, 4);
        assert.equal(collector.all[3].source, source - 1);
      });
    });

    it('closes with polls and cancellations in flight, and holds nothing then', () => {
      const fds = openFdCount();
      withEventFd((fd) => {
        const other = openRing(kind, 8);
        other.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, 1, 1);
        other.prepare(RingOp.POLL_ADD, fd, 0, 0, 0, pollIn, 0, 1, 2);
        other.submit();
        other.prepareCancel({ source: 1, token: 1 }, 1, 3);
        other.close();
        signalEventFd(fd);
      });
      assert.equal(openFdCount(), fds);
    });

    it('polls once where it was asked to, and holds nothing of it then', () => {
      withEventFd((fd) => {
        const fds = openFdCount();
        ring.prepare(RingOp.POLL_ADD, fd, 0, 0, 0, pollIn, 0, 3, 9);
        signalEventFd(fd);
        collect(ring, collector, 1);
        assert.deepEqual(
          [collector.all[0].result & pollIn, collector.all[0].flags & CqeFlag.MORE],
          [pollIn, 0],
        );
        signalEventFd(fd);
        assert.equal(ring.submitAndWait(20), 0);
        assert.equal(ring.reap(collector), 0);
        assert.equal(openFdCount(), fds);
      });
    });

    it('tells of nothing that happens to a poll after its cancellation', () => {
      withEventFd((fd) => {
        ring.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, 3, 9);
        ring.submit();
        ring.prepareCancel({ source: 3, token: 9 }, 3, 1);
        collect(ring, collector, 2);
        signalEventFd(fd);
        assert.equal(ring.submitAndWait(20), 0);
        assert.equal(ring.reap(collector), 0);
      });
    });

    it('goes on watching a descriptor whose number was closed and given to another file', () => {
      const first = createEventFd();
      const keeper = duplicateFd(first);
      ring.prepare(RingOp.POLL_ADD, first, 0, pollMultishot, 0, pollIn, 0, 3, 1);
      ring.submit();
      closeFd(first);
      withEventFd((second) => {
        ring.prepare(RingOp.POLL_ADD, second, 0, pollMultishot, 0, pollIn, 0, 3, 2);
        ring.submit();
        signalEventFd(second);
        collect(ring, collector, 1);
        signalEventFd(keeper);
        collect(ring, collector, 2);
        assert.deepEqual(
          collector.all.map(({ token }) => token),
          [2, 1],
        );
        closeFd(keeper);
      });
    });

    it('is readable for an event loop when a poll fires, until it was reaped', () => {
      const other = openRing(kind, 8);
      withEventFd((fd) => {
        other.prepare(RingOp.POLL_ADD, fd, 0, pollMultishot, 0, pollIn, 0, 3, 9);
        other.submit();
        ring.prepare(RingOp.POLL_ADD, other.fd, 0, 0, 0, pollIn, 0, 1, 1);
        assert.equal(ring.submitAndWait(20), 0);
        assert.equal(ring.reap(collector), 0);
        signalEventFd(fd);
        collect(ring, collector, 1);
        assert.equal(other.reap(collector), 1);
        ring.prepare(RingOp.POLL_ADD, other.fd, 0, 0, 0, pollIn, 0, 1, 2);
        assert.equal(ring.submitAndWait(20), 0);
        assert.equal(ring.reap(collector), 0);
      });
      other.close();
    });

    it('waits as long as it was told when nothing happens, and no longer when something did', () => {
      const waited = (timeoutMs: number) => {
        const start = performance.now();
        assert.equal(ring.submitAndWait(timeoutMs), 0);
        return performance.now() - start;
      };
      assert.ok(waited(60) >= 55);
      assert.ok(waited(0.5) < 400);
      assert.ok(waited(0) < 400);
      prepareNop(1);
      assert.ok(waited(5000) < 2000);
      assert.equal(ring.reap(collector), 1);
      // The time of the last wait must not stay: this one has whole seconds and a rest.
      withEventFd((fd) => {
        signalEventFd(fd);
        ring.prepare(RingOp.POLL_ADD, fd, 0, 0, 0, pollIn, 0, 3, 9);
        assert.ok(waited(3500) < 2000);
      });
      ring.reap(collector);
      assert.ok(waited(30) >= 25);
    });
  });

  describe('the queues', () => {
    it('ends a timeout when its time is over, or with its cancellation', () => {
      const fds = openFdCount();
      const timespec = new BigUint64Array(new BigUint64Array([0n, 30_000_000n]).buffer);
      const hour = new BigUint64Array(new BigUint64Array([3600n, 0n]).buffer);
      const since = performance.now();
      ring.prepare(RingOp.TIMEOUT, -1, addressOf(timespec), 1, 0, 0, 0, 7, 1);
      ring.prepare(RingOp.TIMEOUT, -1, addressOf(hour), 1, 0, 0, 0, 7, 2);
      collect(ring, collector, 1);
      assert.ok(performance.now() - since >= 29);
      assert.equal(collector.resultOf(1), -Errno.ETIME);
      ring.prepareCancel({ source: 7, token: 2 }, 7, 3);
      collect(ring, collector, 3);
      assert.equal(collector.resultOf(2), -Errno.ECANCELED);
      assert.equal(collector.resultOf(3), 0);
      assert.equal(openFdCount(), fds);
    });

    it('submits by itself when the submission queue is full', () => {
      const count = ring.entries * 3 + 1;
      for (let token = 0; token < count; token++) {
        assert.ok(ring.pending <= ring.entries);
        prepareNop(token);
      }
      collect(ring, collector, count);
      assert.equal(ring.pending, 0);
      assert.deepEqual(
        collector.tokens,
        Array.from({ length: count }, (_, n) => n),
      );
    });

    it('loses no completion when the completion queue overflows', () => {
      const count = ring.entries * 4 * 5 + 3;
      for (let token = 0; token < count; token++) {
        prepareNop(token);
      }
      assert.equal(ring.submit(), 0);
      assert.equal(ring.hasCompletions(), true);
      const deadline = performance.now() + 5000;
      while (collector.all.length < count && performance.now() < deadline) {
        assert.ok(ring.reap(collector) <= ring.entries * 4);
      }
      assert.deepEqual(
        collector.tokens,
        Array.from({ length: count }, (_, n) => n),
      );
      assert.equal(ring.hasCompletions(), false);
    });

    it('goes on behind an entry that the kernel refuses', () => {
      prepareNop(1);
      ring.prepare(250, -1, 0, 0, 0, 0, 0, 1, 2);
      prepareNop(3);
      prepareNop(4);
      collect(ring, collector, 4);
      assert.equal(collector.resultOf(2), -Errno.EINVAL);
      assert.deepEqual(collector.tokens, [1, 2, 3, 4]);
      assert.equal(ring.pending, 0);
    });

    it('keeps order and numbers through many turns of the rings', () => {
      for (let token = 0; token < 5000; token++) {
        prepareNop(token);
        if (token % 7 === 0) {
          ring.submit();
          ring.reap(collector);
        }
      }
      collect(ring, collector, 5000);
      assert.equal(
        collector.all.every(({ token, source }, n) => token === n && source === 1),
        true,
      );
    });

    it('lets a handler prepare and submit what comes next', () => {
      let left = 500;
      const handler = {
        onRingCompletion(): void {
          if (left-- > 0) {
            prepareNop(left);
            prepareNop(left);
            left--;
            ring.submit();
          }
        },
      };
      prepareNop(0);
      for (let turn = 0; turn < 2000 && (turn === 0 || ring.hasCompletions()); turn++) {
        ring.submit();
        ring.reap(handler);
      }
      assert.ok(left <= 0);
    });

    it('needs no system call to see that there is nothing', () => {
      assert.equal(ring.hasCompletions(), false);
      assert.equal(ring.reap(collector), 0);
      assert.equal(ring.submit(), 0);
      prepareNop(1);
      assert.equal(ring.pending, 1);
      assert.equal(ring.hasCompletions(), false);
    });
  });
}
