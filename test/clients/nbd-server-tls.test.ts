/** The NBD server over TLS, by programs that nobody here wrote and by our own block driver. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { openBlockNode } from '../../src/block/open.js';
import { objectOptions, toUserObject } from '../../src/daemon/options/object-options.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import { checkOptions } from '../../src/qmp/qapi.js';
import { NbdDisk } from '../support/nbd-disk.js';
import { recordingLogger } from '../support/recording-logger.js';
import { makeSparseFile } from '../support/sparse-file.js';
import { until } from '../support/within.js';
import { freePort, makeCertificates, makeSharedKeys, ServerProcess } from './nbd-servers.js';
import { makeRandom, runProgram as run } from './programs.js';

const programs = ['qemu-img', 'qemu-io', 'nbdinfo', 'nbdcopy', 'qemu-nbd', 'openssl'];
const missing = programs.find((program) => spawnSync('which', [program]).status !== 0);
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;
const imageMib = 32;
const subject =
  '/C=GB/L=Z\u00fcrich/O=Example, "Org" \\+ Co;/OU=a+UID=u/CN=laptop/emailAddress=a@b.c/GN=given';
const clientName =
  'C=GB,L=Z\u00fcrich,O=Example\\, \\"Org\\" \\+ Co\\;,OU=a+UID=u,CN=laptop,EMAIL=a@b.c,givenName=given';

interface Served {
  readonly daemon: StorageDaemon;
  readonly lines: string[];
  readonly socket: string;
}

describe('programs on an NBD export with TLS', { skip, timeout: 300_000 }, () => {
  let folder: string;
  let certificates: string;
  let others: string;
  let anonymous: string;
  let keys: string;
  let source: string;
  let count = 0;

  before(() => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-nbd-server-tls-'));
    const place = (name: string): string => join(folder, name);
    [certificates, others, anonymous, keys] = ['certificates', 'others', 'anonymous', 'keys'].map(place);
    makeCertificates(certificates, 'localhost', subject);
    makeCertificates(others, 'localhost', subject);
    mkdirSync(anonymous);
    cpSync(join(certificates, 'ca-cert.pem'), join(anonymous, 'ca-cert.pem'));
    makeSharedKeys(keys, 'alice');
    source = place('source.img');
    makeRandom(source, imageMib);
  });

  after(() => rmSync(folder, { recursive: true, force: true }));

  async function serve(
    t: TestContext,
    objects: readonly Record<string, unknown>[],
    more: { tlsAuthz?: string; tcp?: boolean } = {},
  ): Promise<Served> {
    const { logger, lines } = recordingLogger();
    const image = join(folder, `disk-${++count}.img`);
    const socket = join(folder, `${count}.sock`);
    makeSparseFile(image, imageMib << 20);
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {}, logger });
    t.after(() => daemon.close());
    await daemon.addNode({ driver: 'file', nodeName: 'disk', filename: image, discard: 'unmap' });
    for (const options of objects) {
      await daemon.addObject(toUserObject(checkOptions(objectOptions.json, options)));
    }
    const authz = more.tlsAuthz === undefined ? {} : { tlsAuthz: more.tlsAuthz };
    await daemon.startNbdServer({ address: { type: 'unix', path: socket }, tlsCreds: 'tls0', ...authz });
    await daemon.addExport({ type: 'nbd', id: 'rw', nodeName: 'disk', writable: true });
    return { daemon, lines, socket };
  }

  const x509 = (more: object = {}) => ({
    'qom-type': 'tls-creds-x509',
    id: 'tls0',
    endpoint: 'server',
    dir: certificates,
    ...more,
  });
  const psk = () => ({ 'qom-type': 'tls-creds-psk', id: 'tls0', endpoint: 'server', dir: keys });

  const withCertificates = ({ socket }: Served, dir = certificates): string =>
    `nbds+unix:///disk?socket=${socket}&tls-certificates=${dir}`;
  const withKey = ({ socket }: Served): string =>
    `nbds+unix://alice@/disk?socket=${socket}&tls-psk-file=${join(keys, 'keys.psk')}`;
  const qemu = ({ socket }: Served, credentials: string): string[] => [
    ...['--object', `${credentials},id=t,endpoint=client`, '--image-opts'],
    `driver=nbd,server.type=unix,server.path=${socket},export=disk,tls-creds=t,tls-hostname=localhost`,
  ];

  /** Random bytes in by one program and out by another. */
  async function copyBothWays(uri: string): Promise<void> {
    const copy = join(folder, 'copy.img');
    await run('nbdcopy', ['--flush', '--connections=4', source, uri]);
    await run('nbdcopy', ['--connections=4', uri, copy]);
    execFileSync('cmp', [source, copy]);
    rmSync(copy);
  }

  async function exerciseWithQemu(options: readonly string[]): Promise<void> {
    const size = imageMib << 20;
    assert.match(await run('qemu-img', ['info', ...options]), new RegExp(`${size} bytes`));
    const commands = ['write -P 0x5a 1M 3M', 'flush', 'read -P 0x5a 1M 3M', 'discard 2M 1M', 'read 0 32M'];
    const output = await run('qemu-io', [...commands.flatMap((command) => ['-c', command]), ...options]);
    assert.ok(!output.includes('failed'), output);
  }

  async function exerciseWithDriver(served: Served, credentials: Record<string, unknown>): Promise<void> {
    const object = toUserObject(
      checkOptions(objectOptions.json, { id: 'c', endpoint: 'client', ...credentials }),
    );
    assert.ok('load' in object);
    const loaded = object.load(() => assert.fail());
    const disk = await NbdDisk.open(
      {
        server: { type: 'unix', path: served.socket },
        exportName: 'disk',
        tlsCreds: 'c',
        tlsHostname: 'localhost',
      },
      { tlsCredentials: () => loaded },
    );
    try {
      const data = randomBytes(4 << 20);
      await disk.write(0, data);
      await disk.flush();
      assert.ok((await disk.read(0, data.length)).equals(data));
    } finally {
      await disk.close();
    }
  }

  test('certificates of both sides', async (t) => {
    const served = await serve(t, [x509()]);
    assert.match(await run('nbdinfo', [withCertificates(served)]), /protocol: newstyle-fixed with TLS/);
    await copyBothWays(withCertificates(served));
    await exerciseWithQemu(qemu(served, `tls-creds-x509,dir=${certificates}`));
    await exerciseWithDriver(served, { 'qom-type': 'tls-creds-x509', dir: certificates });
  });

  test('by the command line, over TCP, and the name of the server counts', async (t) => {
    const port = await freePort();
    const program = fileURLToPath(new URL('../../src/cli/vduse-storage-daemon.js', import.meta.url));
    const pidFile = join(folder, 'daemon.pid');
    const server = await ServerProcess.start(
      process.execPath,
      [
        program,
        ...['--object', `tls-creds-x509,id=tls0,endpoint=server,dir=${certificates},verify-peer=on`],
        '--object',
        'authz-list,id=who,rules.0.match=C=GB,,*,,CN=laptop,,*,rules.0.format=glob,rules.0.policy=allow',
        '--nbd-server',
        `addr.type=inet,addr.host=127.0.0.1,addr.port=${port},tls-creds=tls0,tls-authz=who`,
        ...[
          '--blockdev',
          'memory,node-name=disk,size=32M',
          '--export',
          'nbd,id=e,node-name=disk,writable=on',
        ],
        ...['--pidfile', pidFile],
      ],
      () => existsSync(pidFile),
    );
    t.after(() => server.kill('SIGTERM'));
    await copyBothWays(`nbds://localhost:${port}/disk?tls-certificates=${certificates}`);
    const options = (host: string): string[] => [
      ...['--object', `tls-creds-x509,dir=${certificates},id=t,endpoint=client`, '--image-opts'],
      `driver=nbd,server.type=inet,server.host=127.0.0.1,server.port=${port},export=disk,tls-creds=t,tls-hostname=${host}`,
    ];
    await exerciseWithQemu(options('localhost'));
    await assert.rejects(run('qemu-img', ['info', ...options('other.example')]));
  });

  test('whoever can not be known does not come from other machines', async (t) => {
    const { daemon } = await serve(t, [x509({ 'verify-peer': false })]);
    await daemon.stopNbdServer();
    const address = { type: 'inet', host: '0.0.0.0', port: 0 } as const;
    await assert.rejects(daemon.startNbdServer({ address, tlsCreds: 'tls0' }), {
      code: 'NOT_SUPPORTED',
      message: "NBD server: host '0.0.0.0' is not a loopback address",
    });
  });

  test('pre-shared keys', async (t) => {
    const served = await serve(t, [psk()]);
    assert.match(await run('nbdinfo', [withKey(served)]), /with TLS/);
    await copyBothWays(withKey(served));
    await exerciseWithQemu(qemu(served, `tls-creds-psk,username=alice,dir=${keys}`));
    await exerciseWithDriver(served, { 'qom-type': 'tls-creds-psk', username: 'alice', dir: keys });
  });

  test('pre-shared keys by TLS 1.2 and 1.3, with and without forward secrecy, and by nothing older', async (t) => {
    const served = await serve(t, [psk()]);
    const info = (version: string, exchange: string): Promise<string> => {
      const priority = `NORMAL:-VERS-ALL:+VERS-TLS${version}:-KX-ALL:+${exchange}`;
      const credentials = `tls-creds-psk,username=alice,dir=${keys},priority=${priority}`;
      return run('qemu-img', ['info', ...qemu(served, credentials)]);
    };
    for (const version of ['1.2', '1.3']) {
      for (const exchange of ['PSK', 'DHE-PSK', 'ECDHE-PSK']) {
        await info(version, exchange);
      }
    }
    await assert.rejects(info('1.1', 'PSK'));
  });

  test('a client without TLS learns nothing', async (t) => {
    const served = await serve(t, [psk()]);
    const plain = `nbd+unix:///disk?socket=${served.socket}`;
    for (const args of [['--list', plain], [plain]]) {
      await assert.rejects(run('nbdinfo', args), (error: Error) => {
        assert.ok(!error.message.includes(`${imageMib << 20}`));
        return true;
      });
    }
    await assert.rejects(run('qemu-img', ['info', plain]), /TLS|tls/);
  });

  test('verify-peer=on wants a certificate of this CA, verify-peer=off takes anybody', async (t) => {
    const strict = await serve(t, [x509()]);
    await assert.rejects(run('nbdinfo', [withCertificates(strict, anonymous)]));
    await assert.rejects(run('qemu-img', ['info', ...qemu(strict, `tls-creds-x509,dir=${anonymous}`)]));
    await assert.rejects(
      run('qemu-img', ['info', ...qemu(strict, `tls-creds-x509,dir=${others},verify-peer=off`)]),
    );
    const refused = strict.lines.filter((line) => line.includes('dropped: TLS: '));
    assert.equal(refused.length, 3, refused.join(''));
    const open = await serve(t, [x509({ 'verify-peer': false })]);
    assert.match(await run('nbdinfo', [withCertificates(open, anonymous)]), /with TLS/);
    await exerciseWithQemu(qemu(open, `tls-creds-x509,dir=${anonymous}`));
  });

  test('a certificate that was revoked does not count', async (t) => {
    const dir = join(folder, 'revoking');
    cpSync(certificates, dir, { recursive: true });
    const path = (name: string): string => join(dir, name);
    writeFileSync(path('index.txt'), '');
    writeFileSync(
      path('ca.cnf'),
      `[ca]\ndefault_ca=c\n[c]\ndatabase=${path('index.txt')}\ndefault_md=sha256\ndefault_crl_days=2\n`,
    );
    const ca = [
      'ca',
      '-config',
      path('ca.cnf'),
      '-cert',
      path('ca-cert.pem'),
      '-keyfile',
      path('ca-key.pem'),
    ];
    const crl = (): string => execFileSync('openssl', [...ca, '-gencrl'], { stdio: 'pipe' }).toString();
    writeFileSync(path('ca-crl.pem'), crl());
    await exerciseWithQemu(qemu(await serve(t, [x509({ dir })]), `tls-creds-x509,dir=${certificates}`));
    execFileSync('openssl', [...ca, '-revoke', path('client-cert.pem')], { stdio: 'pipe' });
    writeFileSync(path('ca-crl.pem'), crl());
    const served = await serve(t, [x509({ dir })]);
    await assert.rejects(run('qemu-img', ['info', ...qemu(served, `tls-creds-x509,dir=${certificates}`)]));
    assert.ok(
      served.lines.some((line) => line.includes('dropped: TLS: CERT_REVOKED')),
      served.lines.join(''),
    );
  });

  test('credentials that do not do are refused when they are made, in words', async () => {
    const broken = (name: string): string => {
      const dir = join(folder, name);
      cpSync(certificates, dir, { recursive: true });
      return dir;
    };
    const garbage = broken('garbage');
    writeFileSync(join(garbage, 'ca-cert.pem'), 'garbage');
    const mixed = broken('mixed');
    cpSync(join(mixed, 'client-key.pem'), join(mixed, 'server-key.pem'));
    const expired = broken('expired');
    const path = (name: string): string => join(expired, name);
    execFileSync(
      'openssl',
      [
        ...['x509', '-req', '-in', path('server.csr'), '-days', '-1', '-CA', path('ca-cert.pem')],
        ...['-CAkey', path('ca-key.pem'), '-CAcreateserial', '-out', path('server-cert.pem')],
      ],
      { stdio: 'ignore' },
    );
    const load = (options: object): void => {
      const object = toUserObject(checkOptions(objectOptions.json, options));
      assert.ok('load' in object);
      object.load(() => assert.fail());
    };
    assert.throws(() => load(x509({ dir: garbage })), /Unable to import CA certificate list .*no start line/);
    assert.throws(() => load(x509({ dir: mixed })), /Cannot load certificate '.*server-cert.pem' & key '.*'/);
    assert.throws(() => load(x509({ dir: expired })), /The server certificate .*server-cert.pem has expired/);
    load(x509({ dir: expired, 'sanity-check': false }));
  });

  test('tls-authz: the name of the certificate decides, and rules change while the server runs', async (t) => {
    const simple = (identity: string) => ({ 'qom-type': 'authz-simple', id: 'authz0', identity });
    const served = await serve(t, [x509(), simple('CN=other')], { tlsAuthz: 'authz0' });
    const info = (): Promise<string> => run('nbdinfo', [withCertificates(served)]);
    await assert.rejects(info());
    const denied = `NBD client dropped: TLS x509 authz check for ${clientName} is denied`;
    assert.ok(served.lines.some((line) => (JSON.parse(line) as { msg: string }).msg === denied));
    const set = async (options: Record<string, unknown>): Promise<void> => {
      await served.daemon.deleteObject('authz0');
      await served.daemon.addObject(toUserObject(checkOptions(objectOptions.json, options)));
    };
    await set(simple(clientName));
    await info();
    const rules = [{ match: 'C=GB,*,CN=laptop,*', policy: 'allow', format: 'glob' }];
    await set({ 'qom-type': 'authz-list', id: 'authz0', rules });
    await info();
    await set({ 'qom-type': 'iothread', id: 'authz0' });
    await assert.rejects(info());
    await served.daemon.deleteObject('authz0');
    await assert.rejects(info());
    assert.ok(served.lines.some((line) => line.includes('Cannot find QAuthZ object ID authz0')));
    assert.ok(served.lines.some((line) => line.includes("Object 'authz0' is not a QAuthZ subclass")));
  });

  test('qemu-nbd calls the client by the same name', async (t) => {
    const socket = join(folder, 'qemu-nbd.sock');
    const image = join(folder, 'qemu-nbd.img');
    writeFileSync(image, Buffer.alloc(1 << 20));
    const objects = [
      ...['--object', `tls-creds-x509,id=tls0,endpoint=server,dir=${certificates},verify-peer=on`],
      ...['--object', 'authz-simple,id=authz0,identity=CN=other'],
    ];
    const options = ['-f', 'raw', '-k', socket, '--tls-creds', 'tls0', '--tls-authz', 'authz0'];
    const server = await ServerProcess.start('qemu-nbd', [...objects, ...options, image], () =>
      existsSync(socket),
    );
    t.after(() => server.kill());
    const uri = `nbds+unix:///?socket=${socket}&tls-certificates=${certificates}`;
    await assert.rejects(run('nbdinfo', [uri]));
    await until('a word of qemu-nbd', () => server.output.includes('denied'));
    assert.ok(server.output.includes(`TLS x509 authz check for ${clientName} is denied`), server.output);
  });
});
