import assert from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { SystemCallError } from '../../src/base/errors.js';
import { describeErrno, Errno } from '../../src/native/errno.js';
import {
  blockDeviceGeometry,
  closeFd,
  createEventFd,
  directIoAlignment,
  drainEventFd,
  FallocateMode,
  fallocate,
  ioctl,
  OpenFlag,
  openFile,
  readFd,
  setOfdLock,
  signalEventFd,
  testOfdLock,
  writeFd,
} from '../../src/native/fd.js';
import { openFdCount } from '../support/resources.js';
import { makeTempDir } from '../support/temp-dir.js';

const directory = makeTempDir();

/** Opens the file as often as there are parameters of `use`, and closes all of them. */
function withOpens(name: string, content: Uint8Array, count: number, use: (...fds: number[]) => void): void {
  const path = join(directory, name);
  writeFileSync(path, content);
  const fds = Array.from({ length: count }, () => openFile(path, OpenFlag.O_RDWR));
  try {
    use(...fds);
  } finally {
    for (const fd of fds) {
      closeFd(fd);
    }
  }
}

describe('files', () => {
  it('are opened, written, read and closed', () => {
    const before = openFdCount();
    const path = join(directory, 'plain');
    const fd = openFile(path, OpenFlag.O_RDWR | OpenFlag.O_CREAT | OpenFlag.O_EXCL, 0o640);
    assert.equal(statSync(path).mode & 0o777, 0o640 & ~process.umask());
    assert.equal(writeFd(fd, Uint8Array.of(1, 2, 3)), 3);
    assert.deepEqual([...readFileSync(path)], [1, 2, 3]);
    const buffer = new Uint8Array(8);
    assert.equal(readFd(fd, buffer), 0);
    closeFd(fd);
    const again = openFile(path, OpenFlag.O_RDONLY);
    assert.equal(readFd(again, buffer.subarray(2)), 3);
    assert.deepEqual([...buffer], [0, 0, 1, 2, 3, 0, 0, 0]);
    assert.equal(writeFd(again, buffer), -9);
    closeFd(again);
    assert.equal(openFdCount(), before);
  });

  it('are not inherited by other programs', () => {
    const fd = openFile('/dev/null', OpenFlag.O_RDONLY);
    assert.match(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'), /flags:\s+0?2\d{6}\b/);
    closeFd(fd);
  });

  it('that cannot be opened throw an error with the path and the names', () => {
    const path = join(directory, 'missing', 'file');
    assert.throws(
      () => openFile(path, OpenFlag.O_RDONLY),
      (error) =>
        error instanceof SystemCallError &&
        error.code === 'SYSTEM_CALL' &&
        error.syscall === 'open' &&
        error.errno === Errno.ENOENT &&
        error.errnoName === 'ENOENT' &&
        error.message.includes(path),
    );
  });

  it('close again without a throw', () => {
    const fd = createEventFd();
    closeFd(fd);
    closeFd(fd);
    assert.equal(readFd(fd, new Uint8Array(8)), -9);
  });
});

describe('eventfds', () => {
  it('count signals, never block, and drain to 0', () => {
    const fd = createEventFd();
    const value = new BigUint64Array(1);
    const bytes = new Uint8Array(value.buffer);
    assert.equal(readFd(fd, bytes), -Errno.EAGAIN);
    for (let n = 0; n < 5; n++) {
      signalEventFd(fd);
    }
    assert.equal(readFd(fd, bytes), 8);
    assert.equal(value[0], 5n);
    signalEventFd(fd);
    drainEventFd(fd);
    assert.equal(readFd(fd, bytes), -Errno.EAGAIN);
    value[0] = 2n ** 64n - 2n;
    assert.equal(writeFd(fd, bytes), 8);
    signalEventFd(fd);
    closeFd(fd);
  });
});

describe('locks of open file descriptions', () => {
  const range = { start: 100, length: 2 };

  it('conflict between two opens of one process', () => {
    withOpens('lock', new Uint8Array(0), 3, (a, b, c) => {
      assert.equal(testOfdLock(a, range), 0);
      assert.equal(setOfdLock(a, 'shared', range), 0);
      assert.equal(testOfdLock(a, range), 0, 'a lock of its own is in nobody’s way');
      assert.equal(testOfdLock(b, range), 1);
      assert.equal(setOfdLock(b, 'shared', range), 0);
      assert.equal(setOfdLock(c, 'exclusive', range), -Errno.EAGAIN);
      assert.equal(setOfdLock(a, 'none', range), 0);
      assert.equal(setOfdLock(b, 'exclusive', range), 0);
      assert.equal(setOfdLock(a, 'shared', range), -Errno.EAGAIN);
    });
  });

  it('cover their range and nothing beside it', () => {
    withOpens('range', new Uint8Array(0), 2, (a, b) => {
      assert.equal(setOfdLock(a, 'exclusive', range), 0);
      assert.equal(setOfdLock(b, 'exclusive', { start: 99, length: 1 }), 0);
      assert.equal(setOfdLock(b, 'exclusive', { start: 102, length: 1 }), 0);
      assert.equal(setOfdLock(b, 'exclusive', { start: 101, length: 1 }), -Errno.EAGAIN);
      const far = { start: 2 ** 40, length: 2 ** 33 };
      assert.equal(setOfdLock(a, 'exclusive', far), 0);
      assert.equal(testOfdLock(b, { start: 2 ** 40 + 2 ** 33 - 1, length: 1 }), 1);
      assert.equal(testOfdLock(b, { start: 2 ** 40 + 2 ** 33, length: 1 }), 0);
    });
  });

  it('end with the descriptor', () => {
    withOpens('end', new Uint8Array(0), 1, (a) => {
      const b = openFile(join(directory, 'end'), OpenFlag.O_RDWR);
      assert.equal(setOfdLock(b, 'exclusive', range), 0);
      assert.equal(testOfdLock(a, range), 1);
      closeFd(b);
      assert.equal(testOfdLock(a, range), 0);
    });
  });

  it('are answered with an errno where the descriptor is none', () => {
    assert.equal(setOfdLock(1_000_000, 'shared', range), -9);
    assert.equal(testOfdLock(1_000_000, range), -9);
  });
});

describe('what an image’s block driver asks of a file', () => {
  it('punches holes, and says so where it cannot', () => {
    withOpens('punch', new Uint8Array(16384).fill(5), 1, (fd) => {
      const mode = FallocateMode.PUNCH_HOLE | FallocateMode.KEEP_SIZE;
      const result = fallocate(fd, mode, 4096, 4096);
      if (result !== -Errno.EOPNOTSUPP) {
        assert.equal(result, 0);
        const content = readFileSync(join(directory, 'punch'));
        assert.deepEqual([content[4095], content[4096], content[8191], content[8192]], [5, 0, 0, 5]);
      }
      assert.equal(fallocate(fd, mode, 0, 0), -Errno.EINVAL);
    });
    assert.equal(fallocate(1_000_000, 0, 0, 1), -9);
  });

  it('tells the alignment of O_DIRECT where the file system does', () => {
    withOpens('direct', new Uint8Array(8192), 1, (fd) => {
      const alignment = directIoAlignment(fd);
      if (alignment !== undefined) {
        for (const bytes of [alignment.memory, alignment.offset]) {
          assert.ok(bytes >= 1 && bytes <= 65536 && (bytes & (bytes - 1)) === 0, `${bytes} bytes`);
        }
      }
    });
    assert.equal(directIoAlignment(1_000_000), undefined);
    const pipe = createEventFd();
    assert.equal(directIoAlignment(pipe), undefined);
    closeFd(pipe);
  });

  it('names the ioctl that a file that is no block device refuses', () => {
    withOpens('no-device', new Uint8Array(512), 1, (fd) => {
      assert.throws(
        () => blockDeviceGeometry(fd),
        (error) =>
          error instanceof SystemCallError &&
          error.syscall === 'ioctl' &&
          error.errnoName === 'ENOTTY' &&
          error.message.includes('BLKGETSIZE64'),
      );
      assert.equal(ioctl(fd, 0x1268, new Uint8Array(4)), -25);
      assert.equal(ioctl(1_000_000, 0x1268, null), -9);
    });
  });
});

describe('errnos', () => {
  it('have the numbers of this machine', () => {
    for (const [name, value] of Object.entries(Errno)) {
      assert.equal(describeErrno(value).name, name);
    }
  });

  it('have a name and a sentence, known or not', () => {
    assert.deepEqual(describeErrno(2), { name: 'ENOENT', text: 'no such file or directory' });
    assert.deepEqual(describeErrno(9999), { name: 'errno 9999', text: 'errno 9999' });
  });
});
