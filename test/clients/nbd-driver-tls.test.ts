/** The block driver nbd with TLS: certificates and pre-shared keys, right ones and wrong ones. */
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { inspect } from 'node:util';
import type { BlockServices, NbdNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { objectOptions, toUserObject } from '../../src/daemon/options/object-options.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { closeFd } from '../../src/native/fd.js';
import { connectUnix } from '../../src/native/unix-socket.js';
import { checkOptions } from '../../src/qmp/qapi.js';
import { NbdDisk } from '../support/nbd-disk.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { makeCertificates, makeSharedKeys, ServerProcess } from './nbd-servers.js';

const programs = ['nbdkit', 'qemu-nbd', 'openssl'];
const missing = programs.find((program) => spawnSync('which', [program]).status !== 0);
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;
const mebibyte = 1 << 20;
const serverName = 'storage.example';

type TlsServices = Pick<BlockServices, 'tlsCredentials'>;

/** Credentials by the options of an object, as the daemon makes them. */
function servicesFor(options: Record<string, unknown>, secrets: Record<string, string> = {}): TlsServices {
  const object = toUserObject(checkOptions(objectOptions.json, { id: 'tls0', ...options }));
  assert.ok('load' in object);
  const credentials = object.load((id) => Buffer.from(secrets[id]));
  return { tlsCredentials: () => credentials };
}

describe('the block driver nbd with TLS', { skip, timeout: 300_000 }, () => {
  let folder: string;
  let certificates: string;
  let others: string;
  let keys: string;
  let otherKeys: string;
  let key: string;
  let count = 0;
  const place = (suffix: string): string => join(folder, `${count++}${suffix}`);

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-nbd-tls-'));
    certificates = join(folder, 'certificates');
    others = join(folder, 'others');
    keys = join(folder, 'keys');
    otherKeys = join(folder, 'other-keys');
    makeCertificates(certificates, serverName);
    makeCertificates(others, serverName);
    key = makeSharedKeys(keys, 'qemu');
    makeSharedKeys(otherKeys, 'qemu');
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  async function qemuNbd(t: TestContext, object: string): Promise<string> {
    const image = makeSparseFile(place('.img'), 16 * mebibyte);
    const socket = place('.sock');
    const args = [
      '-f',
      'raw',
      '-t',
      '-e',
      '8',
      '-k',
      socket,
      '--object',
      `${object},id=tls0,endpoint=server`,
    ];
    const server = await ServerProcess.start('qemu-nbd', [...args, '--tls-creds', 'tls0', image], () =>
      existsSync(socket),
    );
    t.after(() => server.kill());
    return socket;
  }

  async function nbdkit(t: TestContext, args: readonly string[]): Promise<string> {
    const socket = place('.sock');
    const server = await ServerProcess.start(
      'nbdkit',
      ['-f', '-U', socket, '-P', `${socket}.pid`, '--tls=require', ...args, 'memory', '16M'],
      () => existsSync(`${socket}.pid`),
    );
    t.after(() => server.kill());
    return socket;
  }

  function open(
    path: string,
    services: TlsServices | undefined,
    options: Partial<NbdNodeOptions> = {},
  ): Promise<NbdDisk> {
    const tls = services === undefined ? {} : { tlsCreds: 'tls0' };
    return NbdDisk.open({ server: { type: 'unix', path }, ...tls, ...options }, services);
  }

  async function exercise(disk: NbdDisk): Promise<void> {
    try {
      const data = randomBytes(8 * mebibyte);
      await disk.writeAndReadBack(data, 256 << 10);
      await disk.writeZeroes(0, mebibyte);
      assert.ok((await disk.read(0, mebibyte)).every((byte) => byte === 0));
    } finally {
      await disk.close();
    }
  }

  const x509 = (dir: string, more: object = {}): TlsServices =>
    servicesFor({ 'qom-type': 'tls-creds-x509', endpoint: 'client', dir, ...more });
  const psk = (dir: string, more: object = {}): TlsServices =>
    servicesFor({ 'qom-type': 'tls-creds-psk', endpoint: 'client', dir, ...more });

  test('qemu-nbd: certificates of both sides', async (t) => {
    const socket = await qemuNbd(t, `tls-creds-x509,dir=${certificates},verify-peer=on`);
    await exercise(await open(socket, x509(certificates), { tlsHostname: serverName }));
  });

  test('nbdkit: certificates of both sides', async (t) => {
    const socket = await nbdkit(t, [`--tls-certificates=${certificates}`, '--tls-verify-peer']);
    await exercise(await open(socket, x509(certificates), { tlsHostname: serverName }));
  });

  test('qemu-nbd and nbdkit: pre-shared keys', async (t) => {
    await exercise(await open(await qemuNbd(t, `tls-creds-psk,dir=${keys}`), psk(keys)));
    await exercise(await open(await nbdkit(t, [`--tls-psk=${join(keys, 'keys.psk')}`]), psk(keys)));
  });

  test('over a descriptor', async (t) => {
    const socket = await qemuNbd(t, `tls-creds-psk,dir=${keys}`);
    const fd = connectUnix(socket);
    t.after(() => closeFd(fd));
    const disk = await open(socket, psk(keys), { server: { type: 'fd', fd } });
    await exercise(disk);
  });

  test('an encrypted key is opened by the secret that passwordid names', async (t) => {
    const encrypted = join(folder, 'encrypted');
    makeCertificates(encrypted, serverName);
    const keyFile = join(encrypted, 'client-key.pem');
    const convert = [
      'pkcs8',
      '-topk8',
      '-in',
      keyFile,
      '-out',
      `${keyFile}.new`,
      '-passout',
      'pass:open sesame',
    ];
    assert.equal(spawnSync('openssl', convert).status, 0);
    writeFileSync(keyFile, readFileSync(`${keyFile}.new`));
    const services = servicesFor(
      { 'qom-type': 'tls-creds-x509', dir: encrypted, passwordid: 'password' },
      { password: 'open sesame' },
    );
    const socket = await qemuNbd(
      t,
      `tls-creds-x509,dir=${certificates.replace('certificates', 'encrypted')},verify-peer=on`,
    );
    await exercise(await open(socket, services, { tlsHostname: serverName }));
  });

  test('what is wrong is said in words, and the key is not among them', async (t) => {
    const socket = await qemuNbd(t, `tls-creds-x509,dir=${certificates},verify-peer=on`);
    const withName = { tlsHostname: serverName };
    const cases: readonly [() => Promise<NbdDisk>, string, RegExp][] = [
      [() => open(socket, undefined), 'PERMISSION_DENIED', /requires TLS/],
      [() => open(socket, x509(others), withName), 'PERMISSION_DENIED', /TLS: .*(certificate|signature)/],
      [
        () => open(socket, x509(certificates), { tlsHostname: 'other.example' }),
        'PERMISSION_DENIED',
        /TLS: .*other\.example/,
      ],
      [() => open(socket, x509(certificates)), 'INVALID_ARGUMENT', /No hostname for certificate validation/],
      [
        () => open(socket, x509(certificates, { endpoint: 'server' }), withName),
        'INVALID_ARGUMENT',
        /client endpoint/,
      ],
    ];
    for (const [opening, code, message] of cases) {
      await assert.rejects(opening(), { code, message });
    }
    const shared = await qemuNbd(t, `tls-creds-psk,dir=${keys}`);
    const wrong = await open(shared, psk(otherKeys)).then(
      () => assert.fail('it opened'),
      (error: unknown) => error,
    );
    assert.match(String(wrong), /TLS: [\w ]+$/, 'without what OpenSSL says to its developers');
    assert.ok(!inspect(wrong, { depth: 9, showHidden: true }).includes(key));
    const plain = place('.sock');
    const server = await ServerProcess.start(
      'nbdkit',
      ['-f', '-U', plain, '-P', `${plain}.pid`, '--tls=off', 'memory', '1M'],
      () => existsSync(`${plain}.pid`),
    );
    t.after(() => server.kill());
    await assert.rejects(open(plain, x509(certificates), withName), {
      code: 'NOT_SUPPORTED',
      message: /refuses TLS/,
    });
  });

  test('verify-peer=off takes any certificate', async (t) => {
    const socket = await qemuNbd(t, `tls-creds-x509,dir=${certificates},verify-peer=off`);
    await exercise(await open(socket, x509(others, { 'verify-peer': false })));
  });

  test('a server killed and started again: requests wait for TLS to be up again', async (t) => {
    const socket = place('.sock');
    const image = makeSparseFile(place('.img'), 16 * mebibyte);
    const start = (): Promise<ServerProcess> => {
      rmSync(socket, { force: true });
      rmSync(`${socket}.pid`, { force: true });
      const tls = ['--tls=require', `--tls-psk=${join(keys, 'keys.psk')}`];
      const args = ['-f', '-U', socket, '-P', `${socket}.pid`, ...tls, 'file', image];
      return ServerProcess.start('nbdkit', args, () => existsSync(`${socket}.pid`));
    };
    let server = await start();
    t.after(() => server.kill());
    const disk = await open(socket, psk(keys), { reconnectDelay: 60 });
    const data = randomBytes(16 * mebibyte);
    const step = 64 << 10;
    const writes = Array.from({ length: data.length / step }, (_, n) =>
      disk.write(n * step, data.subarray(n * step, (n + 1) * step), { at: n * step }),
    );
    for (let round = 0; round < 3; round++) {
      await server.kill('SIGKILL');
      server = await start();
    }
    await Promise.all(writes);
    await disk.flush();
    await disk.close();
    assert.ok(readFileSync(image).equals(data));
  });

  test('the daemon: objects by id, and no secret in what it answers', async (t) => {
    const socket = await nbdkit(t, [`--tls-psk=${join(keys, 'keys.psk')}`]);
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    t.after(() => daemon.close());
    const server = { type: 'unix', path: socket } as const;
    const node = { driver: 'nbd', nodeName: 'disk', server, tlsCreds: 'tls0' } as const;
    await assert.rejects(daemon.addNode(node), { message: /No TLS credentials with id 'tls0'/ });
    const options = { 'qom-type': 'tls-creds-psk', id: 'tls0', endpoint: 'client', dir: keys };
    await daemon.addObject(toUserObject(checkOptions(objectOptions.json, options)));
    const opened = await daemon.addNode(node);
    assert.equal(opened.size, 16 * mebibyte);
    assert.ok(!inspect(daemon.nodes, { depth: 9, showHidden: true }).includes(key));
  });
});
