/** What the file engine asks of the kernel, and what it makes of the answers. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { limits } from '../../src/base/limits.js';
import { BlockFlag, BlockOp, type FileEngineSpec } from '../../src/block/engine.js';
import { Errno } from '../../src/native/errno.js';
import { closeFd, OpenFlag, openFile } from '../../src/native/fd.js';
import { RingOp } from '../../src/native/ring.js';
import { EngineBench, type RingEntry } from '../support/engine-bench.js';
import { needsIoUring } from '../support/needs-io-uring.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeTempDir } from '../support/temp-dir.js';

const directory = makeTempDir();
let files = 0;

interface Bench {
  readonly bench: EngineBench;
  readonly path: string;
}

function withFile(use: (bench: Bench) => void, spec: Partial<FileEngineSpec> = {}, size = 1 << 20): void {
  const path = makeSparseFile(join(directory, `file-${files++}`), size);
  const fd = openFile(path, OpenFlag.O_RDWR);
  const bench = new EngineBench({ fd, ...spec });
  try {
    use({ bench, path });
  } finally {
    bench.close();
    closeFd(fd);
  }
}

const ops = (entries: readonly RingEntry[]): number[] => entries.map(({ op }) => op);
/** fallocate's modes (linux/falloc.h). */
const KEEP_SIZE = 1;
const PUNCH = 2 | KEEP_SIZE;
const ZERO_RANGE = 0x10 | KEEP_SIZE;
const RWF_DSYNC = 2;
const IOSQE_ASYNC = 16;

describe('transfers', () => {
  test('one segment is a read or write, several are a vector, neighbours in memory are one', () =>
    withFile(({ bench, path }) => {
      bench.memory.fill(1, 0, 512).fill(2, 512, 1024).fill(3, 4096, 4608);
      const segments = [
        { at: 0, length: 512 },
        { at: 512, length: 512 },
      ];
      assert.equal(bench.run({ op: BlockOp.WRITE, offset: 4096, segments }), 0);
      const apart = [...segments, { at: 4096, length: 512 }];
      assert.equal(bench.run({ op: BlockOp.WRITE, offset: 8192, segments: apart }), 0);
      assert.equal(bench.run({ op: BlockOp.READ, offset: 4096, segments: [{ at: 8192, length: 8192 }] }), 0);
      assert.equal(
        bench.run({
          op: BlockOp.READ,
          offset: 8192,
          segments: apart.map((s) => ({ ...s, at: s.at + 65536 })),
        }),
        0,
      );
      assert.deepEqual(ops(bench.takeEntries()), [RingOp.WRITE, RingOp.WRITEV, RingOp.READ, RingOp.READV]);
      const file = readFileSync(path);
      assert.ok(file.subarray(4096, 5120).equals(bench.memory.subarray(0, 1024)));
      assert.ok(file.subarray(4096, 12288).equals(bench.memory.subarray(8192, 16384)));
      assert.equal(bench.memory[65536 + 4096], 3);
    }));

  test('a short transfer goes on where it stopped, in the middle of a segment or at its end', () => {
    for (const first of [1, 511, 512, 513, 1024, 1535]) {
      withFile(({ bench, path }) => {
        bench.memory.set(Uint8Array.from({ length: 8192 }, (_, at) => at * 13));
        writeFileSync(path, bench.memory.subarray(0, 8192));
        const segments = [
          { at: 16384, length: 512 },
          { at: 20480, length: 512 },
          { at: 24576, length: 512 },
        ];
        // The kernel reads the whole; the first answer only tells of a part, so that the rest is read again.
        let answers = 0;
        bench.inject = () => (answers++ === 0 ? first : undefined);
        assert.equal(bench.run({ op: BlockOp.READ, offset: 1024, segments }), 0);
        const [, second] = bench.takeEntries();
        assert.equal(second.offset, 1024 + first);
        const read = Buffer.concat(segments.map(({ at, length }) => bench.memory.subarray(at, at + length)));
        const expected = Buffer.from(bench.memory.subarray(1024, 1024 + 1536));
        assert.ok(read.subarray(first).equals(expected.subarray(first)));
        assert.ok(read.subarray(0, first).every((byte) => byte === 0));
      });
    }
  });

  test('the end of the file is an error, not zeroes and not success', () =>
    withFile(({ bench }) => {
      bench.memory.fill(7, 0, 8192);
      assert.equal(
        bench.run({ op: BlockOp.READ, offset: 1 << 20, segments: [{ at: 0, length: 512 }] }),
        -Errno.EIO,
      );
      const across = { op: BlockOp.READ, offset: (1 << 20) - 512, segments: [{ at: 0, length: 1024 }] };
      assert.equal(bench.run(across), -Errno.EIO);
      assert.ok(bench.memory.subarray(512, 8192).every((byte) => byte === 7));
    }));

  test('EAGAIN and EINTR are tried again, a bounded number of times', () =>
    withFile(({ bench }) => {
      const read = { op: BlockOp.READ, offset: 0, segments: [{ at: 0, length: 512 }] };
      let refusals = 5;
      bench.inject = () => (refusals-- > 0 ? (refusals % 2 === 0 ? -Errno.EAGAIN : -Errno.EINTR) : undefined);
      assert.equal(bench.run(read), 0);
      assert.equal(bench.takeEntries().length, 6);
      bench.inject = () => -Errno.EAGAIN;
      assert.equal(bench.run(read), -Errno.EAGAIN);
      assert.equal(bench.takeEntries().length, limits.resubmissionsMax + 1);
      bench.inject = () => 1;
      assert.equal(bench.run(read), -Errno.EIO);
      assert.ok(bench.takeEntries().length <= limits.resubmissionsMax + 1);
    }));

  test('other errors end the request at once', () =>
    withFile(({ bench }) => {
      for (const errno of [Errno.EIO, Errno.ENOSPC, Errno.ECANCELED, Errno.EPERM]) {
        bench.inject = () => -errno;
        assert.equal(bench.run({ op: BlockOp.WRITE, segments: [{ at: 0, length: 512 }] }), -errno);
        assert.equal(bench.takeEntries().length, 1);
      }
    }));

  test('aio=threads sends reads, writes and flushes to the kernel threads at once', () =>
    withFile(
      ({ bench }) => {
        bench.run({ op: BlockOp.WRITE, segments: [{ at: 0, length: 512 }] });
        bench.run({ op: BlockOp.READ, segments: [{ at: 0, length: 512 }] });
        bench.run({ op: BlockOp.FLUSH });
        assert.ok(bench.takeEntries().every(({ sqeFlags }) => sqeFlags === IOSQE_ASYNC));
      },
      { forceAsync: true },
    ));
});

describe('durability', () => {
  const write = { op: BlockOp.WRITE, segments: [{ at: 0, length: 512 }] };

  test('a write with FUA carries RWF_DSYNC, also the rest of a short one; other writes do not', () =>
    withFile(({ bench }) => {
      bench.run(write);
      assert.deepEqual(
        bench.takeEntries().map(({ opFlags }) => opFlags),
        [0],
      );
      let answers = 0;
      bench.inject = () => (answers++ === 0 ? 100 : undefined);
      assert.equal(bench.run({ ...write, flags: BlockFlag.FUA }), 0);
      assert.deepEqual(
        bench.takeEntries().map(({ opFlags }) => opFlags),
        [RWF_DSYNC, RWF_DSYNC],
      );
      bench.run({ op: BlockOp.READ, segments: [{ at: 0, length: 512 }], flags: BlockFlag.FUA });
      assert.equal(bench.takeEntries()[0].opFlags, 0);
    }));

  test('write-zeroes with FUA ends with an fdatasync, whose error is the result', () =>
    withFile(({ bench }) => {
      const zeroes = { op: BlockOp.WRITE_ZEROES, length: 4096, flags: BlockFlag.FUA };
      assert.equal(bench.run(zeroes), 0);
      assert.deepEqual(ops(bench.takeEntries()), [RingOp.FALLOCATE, RingOp.FSYNC]);
      bench.inject = ({ op }) => (op === RingOp.FSYNC ? -Errno.EIO : undefined);
      assert.equal(bench.run(zeroes), -Errno.EIO);
    }));

  test('a flush is one fdatasync', () =>
    withFile(({ bench }) => {
      assert.equal(bench.run({ op: BlockOp.FLUSH }), 0);
      const [flush, ...rest] = bench.takeEntries();
      assert.deepEqual([flush.op, flush.opFlags, rest.length], [RingOp.FSYNC, 1, 0]);
    }));

  test('cache.no-flush: nothing is ever synchronised', () =>
    withFile(
      ({ bench }) => {
        assert.equal(bench.run({ op: BlockOp.FLUSH }), 0);
        assert.equal(bench.run({ ...write, flags: BlockFlag.FUA }), 0);
        assert.equal(bench.run({ op: BlockOp.WRITE_ZEROES, length: 4096, flags: BlockFlag.FUA }), 0);
        const entries = bench.takeEntries();
        assert.deepEqual(ops(entries), [RingOp.WRITE, RingOp.FALLOCATE]);
        assert.equal(entries[0].opFlags, 0);
      },
      { noFlush: true },
    ));
});

describe('discards and write-zeroes', () => {
  const modes = (entries: readonly RingEntry[]): (number | string)[] =>
    entries.map(({ op, length }) =>
      op === RingOp.FALLOCATE ? length : op === RingOp.WRITE ? 'write' : `op ${op}`,
    );
  const filled = (use: (bench: Bench) => void, spec: Partial<FileEngineSpec> = {}): void =>
    withFile((one) => {
      writeFileSync(one.path, new Uint8Array(4 << 20).fill(9));
      use(one);
    }, spec);
  /** Answers what a file system without these modes would. */
  const refuse =
    (errno: number, ...refused: number[]) =>
    ({ op, length }: RingEntry): number | undefined =>
      op === RingOp.FALLOCATE && refused.includes(length) ? -errno : undefined;
  const zeroes = { op: BlockOp.WRITE_ZEROES, offset: 4096, length: 3 << 20 };
  const unmapping = { ...zeroes, flags: BlockFlag.MAY_UNMAP };
  const isZeroed = (path: string): boolean => {
    const file = readFileSync(path);
    const inside = file.subarray(4096, 4096 + (3 << 20));
    const around = [file.subarray(0, 4096), file.subarray(4096 + (3 << 20))];
    return inside.every((byte) => byte === 0) && around.every((part) => part.every((byte) => byte === 9));
  };

  test('the file system does all: a discard and unmapping zeroes punch, others zero in place', () =>
    filled(({ bench, path }) => {
      assert.equal(bench.run(zeroes), 0);
      assert.deepEqual(modes(bench.takeEntries()), [ZERO_RANGE]);
      assert.ok(isZeroed(path));
      assert.equal(bench.run(unmapping), 0);
      assert.equal(bench.run({ op: BlockOp.DISCARD, offset: 0, length: 4096 }), 0);
      assert.deepEqual(modes(bench.takeEntries()), [PUNCH, PUNCH]);
      assert.equal(readFileSync(path).length, 4 << 20);
    }));

  for (const errno of [Errno.EOPNOTSUPP, Errno.ENOSYS]) {
    test(`no zeroing in place (errno ${errno}): punched and given blocks again, asked once`, () =>
      filled(({ bench, path }) => {
        bench.inject = refuse(errno, ZERO_RANGE);
        assert.equal(bench.run(zeroes), 0);
        assert.deepEqual(modes(bench.takeEntries()), [ZERO_RANGE, PUNCH, KEEP_SIZE]);
        assert.ok(isZeroed(path));
        assert.equal(bench.run(zeroes), 0);
        assert.deepEqual(modes(bench.takeEntries()), [PUNCH, KEEP_SIZE]);
      }));

    test(`nothing of it (errno ${errno}): zeroes are written, a discard does nothing, asked once`, () =>
      filled(({ bench, path }) => {
        bench.inject = refuse(errno, ZERO_RANGE, PUNCH, KEEP_SIZE, 0);
        assert.equal(bench.run(zeroes), 0);
        assert.deepEqual(modes(bench.takeEntries()), [ZERO_RANGE, PUNCH, 'write', 'write', 'write']);
        assert.ok(isZeroed(path));
        assert.equal(bench.run(unmapping), 0);
        assert.deepEqual(modes(bench.takeEntries()), ['write', 'write', 'write']);
        assert.equal(bench.run({ op: BlockOp.DISCARD, length: 4096 }), 0);
        assert.deepEqual(bench.takeEntries(), []);
      }));
  }

  test('a discard that is refused is no error, and not asked for again', () =>
    filled(({ bench, path }) => {
      bench.inject = refuse(Errno.EOPNOTSUPP, PUNCH);
      assert.equal(bench.run({ op: BlockOp.DISCARD, length: 4096 }), 0);
      assert.equal(bench.run({ op: BlockOp.DISCARD, length: 4096 }), 0);
      assert.deepEqual(modes(bench.takeEntries()), [PUNCH]);
      assert.equal(readFileSync(path)[0], 9);
    }));

  test('errors that are none of support are the result', () =>
    filled(({ bench }) => {
      for (const errno of [Errno.EIO, Errno.ENOSPC]) {
        bench.inject = refuse(errno, PUNCH, ZERO_RANGE);
        assert.equal(bench.run({ op: BlockOp.DISCARD, length: 4096 }), -errno);
        assert.equal(bench.run(zeroes), -errno);
        assert.equal(bench.run(unmapping), -errno);
      }
      bench.inject = ({ op, length }) =>
        length === ZERO_RANGE
          ? -Errno.EOPNOTSUPP
          : op === RingOp.FALLOCATE && length !== PUNCH
            ? -Errno.ENOSPC
            : undefined;
      assert.equal(bench.run(zeroes), -Errno.ENOSPC);
    }));

  test('written zeroes: a short write goes on, an error ends it', () =>
    filled(({ bench, path }) => {
      let writes = 0;
      bench.inject = ({ op }) => {
        if (op === RingOp.FALLOCATE) {
          return -Errno.EOPNOTSUPP;
        }
        return op === RingOp.WRITE && writes++ === 1 ? 0 : undefined;
      };
      assert.equal(bench.run(zeroes), -Errno.EIO);
      assert.equal(bench.run(zeroes), 0);
      assert.ok(isZeroed(path));
    }));

  test('discard=ignore: a discard does nothing, unmapping zeroes keep their blocks', () =>
    filled(
      ({ bench, path }) => {
        assert.equal(bench.run({ op: BlockOp.DISCARD, length: 1 << 20 }), 0);
        assert.deepEqual(bench.takeEntries(), []);
        assert.equal(bench.run(unmapping), 0);
        assert.deepEqual(modes(bench.takeEntries()), [ZERO_RANGE]);
        assert.ok(isZeroed(path));
      },
      { ignoreDiscard: true },
    ));

  test('zeroes whose blocks come again do not bring back a file that was cut meanwhile', () =>
    filled(({ bench, path }) => {
      truncateSync(path, 4096);
      bench.inject = refuse(Errno.EOPNOTSUPP, ZERO_RANGE);
      assert.equal(bench.run(zeroes), 0);
      assert.equal(readFileSync(path).length, 4096);
    }));
});

describe('buffers that O_DIRECT would refuse', () => {
  // The file is not open with O_DIRECT, so that this runs on every file system; the engine does not care.
  const spec = { memoryAlignment: 512 };

  test('aligned ones are used in place, each address and length counts', () =>
    withFile(({ bench }) => {
      const direct = (segments: { at: number; length: number }[]): boolean => {
        assert.equal(bench.run({ op: BlockOp.READ, segments }), 0);
        const [{ address, op }] = bench.takeEntries();
        return op === RingOp.READV || address === bench.memoryAddress + segments[0].at;
      };
      assert.ok(direct([{ at: 512, length: 512 }]));
      assert.ok(
        direct([
          { at: 512, length: 1024 },
          { at: 4096, length: 512 },
        ]),
      );
      assert.ok(!direct([{ at: 1, length: 512 }]));
      assert.ok(!direct([{ at: 256, length: 1024 }]));
      assert.ok(
        !direct([
          { at: 512, length: 256 },
          { at: 1024, length: 256 },
        ]),
      );
    }, spec));

  test('others go through one aligned buffer, in both directions and after a short transfer', () =>
    withFile(({ bench, path }) => {
      const segments = [
        { at: 3, length: 700 },
        { at: 4099, length: 836 },
      ];
      bench.memory.set(Uint8Array.from({ length: 8192 }, (_, at) => at * 31 + 5));
      assert.equal(bench.run({ op: BlockOp.WRITE, offset: 512, segments }), 0);
      const [entry] = bench.takeEntries();
      assert.deepEqual([entry.op, entry.length, entry.address % 4096], [RingOp.WRITE, 1536, 0]);
      const data = Buffer.concat(segments.map(({ at, length }) => bench.memory.subarray(at, at + length)));
      assert.ok(readFileSync(path).subarray(512, 2048).equals(data));

      bench.memory.fill(0xee);
      let answers = 0;
      bench.inject = () => (answers++ === 0 ? 512 : undefined);
      assert.equal(bench.run({ op: BlockOp.READ, offset: 512, segments }), 0);
      const read = Buffer.concat(segments.map(({ at, length }) => bench.memory.subarray(at, at + length)));
      assert.ok(read.subarray(512).equals(data.subarray(512)));
      assert.deepEqual(
        [bench.memory[2], bench.memory[703], bench.memory[4098], bench.memory[4935]],
        [0xee, 0xee, 0xee, 0xee],
      );
    }, spec));

  test('a read that fails leaves the memory of the front-end alone', () =>
    withFile(({ bench }) => {
      bench.memory.fill(0xee);
      bench.inject = () => -Errno.EIO;
      assert.equal(bench.run({ op: BlockOp.READ, segments: [{ at: 1, length: 512 }] }), -Errno.EIO);
      assert.ok(bench.memory.subarray(0, 1024).every((byte) => byte === 0xee));
    }, spec));

  test('a read that was given up leaves it alone too, and its buffer is released', () =>
    withFile(({ bench }) => {
      bench.memory.fill(0xee);
      const slot = bench.submit({ op: BlockOp.READ, segments: [{ at: 1, length: 512 }] });
      bench.engine.abandon();
      assert.equal(bench.wait(slot), 0);
      assert.ok(bench.memory.subarray(0, 1024).every((byte) => byte === 0xee));
    }, spec));
});

test('cancel asks for the end of what is in flight, and of nothing else', needsIoUring, () => {
  const fifo = join(directory, 'fifo');
  execFileSync('mkfifo', [fifo]);
  // Both ends in one: a read waits until the request is cancelled.
  const fd = openFile(fifo, OpenFlag.O_RDWR);
  const bench = new EngineBench({ fd });
  const slots = [0, 1].map((n) =>
    bench.submit({ op: BlockOp.READ, segments: [{ at: n * 512, length: 512 }] }),
  );
  bench.reactor.ring.submitAndWait(5);
  bench.takeEntries();
  bench.engine.cancel();
  const cancels = bench.takeEntries();
  assert.deepEqual(ops(cancels), [RingOp.ASYNC_CANCEL, RingOp.ASYNC_CANCEL]);
  for (const slot of slots) {
    assert.equal(bench.wait(slot), -Errno.ECANCELED);
  }
  bench.engine.cancel();
  assert.deepEqual(bench.takeEntries(), []);
  bench.close();
  closeFd(fd);
});
