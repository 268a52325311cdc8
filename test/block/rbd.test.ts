/** The parts of the rbd block driver that need no cluster; test/clients/ceph.test.ts has one. */
import assert from 'node:assert/strict';
import { readSync } from 'node:fs';
import { describe, test } from 'node:test';
import { VduseError } from '../../src/base/errors.js';
import { connectError, imageName, rbdError } from '../../src/block/drivers/rbd/rbd-errors.js';
import { closeRbdShared, createRbdShared, RbdShared } from '../../src/block/drivers/rbd/rbd-shared.js';
import type { RbdNodeOptions } from '../../src/block/node.js';
import { blockdevOptions, toBlockNodeOptions } from '../../src/daemon/options/blockdev-options.js';
import { Errno } from '../../src/native/errno.js';
import { loadCephLibrary } from '../../src/native/librbd.js';
import { checkOptions } from '../../src/qmp/qapi.js';

const options: RbdNodeOptions = {
  driver: 'rbd',
  nodeName: 'node',
  pool: 'pool',
  namespace: 'ns',
  image: 'image',
  snapshot: 'snap',
  user: 'me',
  keySecret: 'key0',
};

function withShared(run: (shared: RbdShared) => void): void {
  const address = createRbdShared();
  try {
    run(new RbdShared(address));
  } finally {
    closeRbdShared(address);
  }
}

describe('what the engines of an RBD image share', () => {
  test('each engine has a place and an eventfd of its own, and the next takes those of one that went', () => {
    withShared((shared) => {
      const engines = [shared.claim(256), shared.claim(32_768), shared.claim(4)];
      assert.deepEqual(engines, [0, 1, 2]);
      const fd = shared.eventFd(1);
      assert.equal(new Set(engines.map((engine) => shared.eventFd(engine))).size, 3);
      shared.release(1);
      assert.equal(shared.claim(16), 1);
      assert.equal(shared.eventFd(1), fd);
    });
  });

  test('slots that are handed over come once, at the engine they are for', () => {
    withShared((shared) => {
      const first = shared.claim(64);
      const second = shared.claim(32_768);
      for (const slot of [0, 31, 32, 63]) {
        shared.handOver(first, slot);
      }
      shared.handOver(second, 32_767);
      assert.equal(shared.takeHandedOver(first, 0) >>> 0, 0x8000_0001);
      assert.equal(shared.takeHandedOver(first, 1) >>> 0, 0x8000_0001);
      assert.equal(shared.takeHandedOver(first, 0), 0);
      assert.equal(shared.takeHandedOver(second, 1023) >>> 0, 0x8000_0000);
      const count = new BigUint64Array(1);
      readSync(shared.eventFd(first), count);
      assert.equal(count[0], 4n);
    });
  });

  test('two views of the memory see one size', () => {
    const address = createRbdShared();
    new RbdShared(address).imageBytes = 2 ** 50;
    assert.equal(new RbdShared(address).imageBytes, 2 ** 50);
    closeRbdShared(address);
  });
});

describe('errors of RBD images', () => {
  test('name the image, not the key', () => {
    assert.equal(imageName(options), 'pool/ns/image@snap');
    for (const [errno, code] of [
      [Errno.ETIMEDOUT, 'TIMEOUT'],
      [Errno.EACCES, 'PERMISSION_DENIED'],
      [Errno.ENOENT, 'NOT_FOUND'],
      [Errno.EINVAL, 'INVALID_ARGUMENT'],
      [Errno.EIO, 'SYSTEM_CALL'],
    ] as const) {
      const error = connectError(options, -errno, 30);
      assert.equal(error.code, code);
      assert.match(error.message, /^cannot connect to the Ceph cluster of 'pool\/ns\/image@snap': /);
    }
    assert.match(rbdError(options, 'open', -Errno.ENOENT).message, /there is no such image or snapshot/);
    assert.match(rbdError(options, 'open', -108).message, /shut this client out/);
  });

  test('a machine without librbd is told what to install', () => {
    assert.throws(
      () => loadCephLibrary('librbd-that-is-not-there.so.1'),
      (error) =>
        error instanceof VduseError &&
        error.code === 'NOT_SUPPORTED' &&
        /apt-get install librbd1/.test(error.hint ?? ''),
    );
  });
});

describe('options of remote block nodes', () => {
  const parse = (input: object) => toBlockNodeOptions(checkOptions(blockdevOptions.json, input));

  test('rbd takes what QEMU takes', () => {
    const parsed = parse({
      driver: 'rbd',
      'node-name': 'disk',
      pool: 'rbd',
      namespace: 'ns',
      image: 'vm',
      snapshot: 'monday',
      conf: '/etc/ceph/other.conf',
      user: 'vm',
      'auth-client-required': ['cephx'],
      'key-secret': 'key0',
      server: [{ host: '10.0.0.1', port: '6789' }],
      'read-only': true,
      'mount-timeout': 10,
    });
    assert.deepEqual(parsed, {
      driver: 'rbd',
      nodeName: 'disk',
      readOnly: true,
      pool: 'rbd',
      namespace: 'ns',
      image: 'vm',
      snapshot: 'monday',
      conf: '/etc/ceph/other.conf',
      user: 'vm',
      authClientRequired: ['cephx'],
      keySecret: 'key0',
      servers: [{ host: '10.0.0.1', port: '6789' }],
      mountTimeout: 10,
    });
  });

  test('the text form has lists too, and numbers', () => {
    const parsed = checkOptions(blockdevOptions.keyval, {
      driver: 'rbd',
      'node-name': 'disk',
      pool: 'rbd',
      image: 'vm',
      server: [{ host: 'a', port: '1' }],
      'osd-timeout': '5',
    });
    assert.deepEqual(toBlockNodeOptions(parsed), {
      driver: 'rbd',
      nodeName: 'disk',
      pool: 'rbd',
      image: 'vm',
      servers: [{ host: 'a', port: '1' }],
      osdTimeout: 5,
    });
  });

  test('encryption and proxies with names are refused', () => {
    const rbd = { driver: 'rbd', 'node-name': 'n', pool: 'p', image: 'i' };
    assert.throws(() => parse({ ...rbd, encrypt: { format: 'luks' } }), /'encrypt' is not supported/);
    const http = { driver: 'http', 'node-name': 'n', url: 'http://h/' };
    assert.throws(() => parse({ ...http, 'proxy-username': 'me' }), /'proxy-username' is not supported/);
  });

  test('https has sslverify, http has not', () => {
    const node = {
      'node-name': 'n',
      url: 'https://h/',
      sslverify: false,
      readahead: 65_536,
      'read-only': true,
    };
    assert.deepEqual(parse({ driver: 'https', ...node }), {
      driver: 'https',
      nodeName: 'n',
      readOnly: true,
      url: 'https://h/',
      readahead: 65_536,
      sslVerify: false,
    });
    assert.throws(() => parse({ driver: 'http', ...node }), /Parameter 'sslverify' is unexpected/);
  });
});
