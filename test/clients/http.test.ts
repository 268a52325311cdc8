/** The http and https block drivers on nginx: whole images through the device, certificates, a file that changes. */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { HttpNodeOptions } from '../../src/block/node.js';
import { openBlockNode } from '../../src/block/open.js';
import { openSoftwareDisk } from '../../src/daemon/open-software-disk.js';
import { recordingLogger } from '../support/recording-logger.js';
import { isVduseError } from '../support/vduse-error.js';
import { runProgram } from './programs.js';

const program = fileURLToPath(new URL('../../src/cli/vduse.js', import.meta.url));
const mebibyte = 1 << 20;
/** Not a whole number of sectors. */
const imageBytes = 64 * mebibyte + 100;
const startTimeoutMs = 20_000;

const missing = ['nginx', 'openssl', 'qemu-img'].find(
  (program) => spawnSync('which', [program]).status !== 0,
);
const skip = missing !== undefined && process.env['CI'] !== 'true' ? `${missing} is not installed` : false;

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer());
  const ports: number[] = [];
  for (const server of servers) {
    await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening));
    const address = server.address();
    assert(address !== null && typeof address === 'object');
    ports.push(address.port);
  }
  await Promise.all(servers.map((server) => new Promise((closed) => server.close(closed))));
  return ports;
}

async function listens(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(port, '127.0.0.1');
    socket.once('connect', () => resolve(true));
    socket.once('error', () => resolve(false));
    socket.once('connect', () => socket.destroy());
  });
}

describe('images on nginx', { skip, timeout: 120_000 }, () => {
  let folder: string;
  let nginx: ChildProcess;
  let http: string;
  let https: string;
  const image = randomFillSync(Buffer.alloc(imageBytes));
  const { logger, lines } = recordingLogger();

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-clients-'));
    const files = join(folder, 'files');
    mkdirSync(files);
    writeFileSync(join(files, 'disk.img'), image);
    const [key, certificate] = [join(folder, 'key.pem'), join(folder, 'certificate.pem')];
    const subject = ['-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1'];
    execFileSync(
      'openssl',
      ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', key, '-out', certificate, ...subject],
      { stdio: 'ignore' },
    );
    writeFileSync(join(folder, 'users'), `me:${execFileSync('openssl', ['passwd', '-apr1', 'hidden'])}`);
    const [plain, secure] = await freePorts(2);
    const conf = join(folder, 'nginx.conf');
    writeFileSync(
      conf,
      `daemon off; pid ${folder}/pid; error_log ${folder}/error.log; worker_processes 1;
       events {}
       http {
         access_log off; root ${files}; client_body_temp_path ${folder}/b; proxy_temp_path ${folder}/p;
         fastcgi_temp_path ${folder}/f; uwsgi_temp_path ${folder}/u; scgi_temp_path ${folder}/s;
         server {
           listen 127.0.0.1:${plain};
           location /private/ { alias ${files}/; auth_basic x; auth_basic_user_file ${folder}/users; }
           location /whole/ { alias ${files}/; max_ranges 0; }
         }
         server {
           listen 127.0.0.1:${secure} ssl;
           ssl_certificate ${certificate}; ssl_certificate_key ${key};
         }
       }`,
    );
    // As root nginx would give its workers to nobody, who must not see this folder.
    const user = process.getuid?.() === 0 ? ['-g', 'user root;'] : [];
    nginx = spawn('nginx', ['-c', conf, '-p', folder, ...user], { stdio: 'ignore' });
    for (const endMs = Date.now() + startTimeoutMs; !(await listens(secure)); await sleep(20)) {
      assert.ok(Date.now() < endMs && nginx.exitCode === null, 'nginx does not start');
    }
    http = `http://127.0.0.1:${plain}`;
    https = `https://127.0.0.1:${secure}`;
  });

  after(async () => {
    const ended = new Promise((resolve) => nginx.once('exit', resolve));
    nginx.kill('SIGTERM');
    await ended;
    rmSync(folder, { recursive: true, force: true });
  });

  const options = (url: string, more: Partial<HttpNodeOptions> = {}): HttpNodeOptions => ({
    driver: url.startsWith('https') ? 'https' : 'http',
    nodeName: 'web',
    url,
    readOnly: true,
    ...more,
  });

  test('a whole image goes through the device, from http and from https', async () => {
    const padded = Buffer.concat([image, Buffer.alloc(512 - (imageBytes % 512))]);
    for (const source of [
      options(`${http}/disk.img`),
      options(`${https}/disk.img`, { sslVerify: false, readahead: 1 << 20 }),
    ]) {
      const disk = await openSoftwareDisk(source, { logger });
      const path = join(folder, `${source.driver}.sock`);
      await disk.serveNbd({ address: { type: 'unix', path } });
      const copy = join(folder, 'copy.img');
      await runProgram('qemu-img', [
        'convert',
        '-f',
        'raw',
        '-O',
        'raw',
        `nbd+unix:///?socket=${path}`,
        copy,
      ]);
      await disk.close();
      assert.ok(readFileSync(copy).equals(padded), `${source.driver}: the copy differs`);
    }
  });

  test('vduse convert fetches an image into a file, as qemu-img sees it', async () => {
    const [source, target] = [join(folder, 'files', 'disk.img'), join(folder, 'fetched.img')];
    const args = [program, 'convert', `${http}/disk.img`, target, '--create', '--verify'];
    assert.match(
      await runProgram(process.execPath, args),
      /fetched\.img: 64\.0 MiB in .*, compared and equal/,
    );
    // What is longer by zeroes is equal: the last sector is filled up.
    await runProgram('qemu-img', ['compare', '-f', 'raw', '-F', 'raw', source, target]);
    assert.equal(statSync(target).size, Math.ceil(imageBytes / 512) * 512);
  });

  test('vduse convert of what is not there leaves no file', async () => {
    const target = join(folder, 'none.img');
    await assert.rejects(
      runProgram(process.execPath, [program, 'convert', `${http}/none.img`, target, '--create']),
      /ended with 1: vduse: .*HTTP 404/,
    );
    assert.ok(!existsSync(target));
  });

  test('a certificate that nobody signed is refused, unless it is not to be checked', async () => {
    await assert.rejects(
      openBlockNode(options(`${https}/disk.img`)),
      isVduseError('PERMISSION_DENIED', /certificate is not trusted/),
    );
  });

  test('names and passwords; without them the server refuses', async () => {
    const url = `${http}/private/disk.img`;
    await assert.rejects(openBlockNode(options(url)), isVduseError('PERMISSION_DENIED', /HTTP 401/));
    const services = { secret: (): Uint8Array => Buffer.from('hidden\n'), logger };
    const node = await openBlockNode(
      options(url, { username: 'me', passwordSecret: 'pw' }),
      undefined,
      services,
    );
    assert.equal(node.size % 512, 0);
    await node.close();
    assert.ok(!lines.join().includes('hidden'));
  });

  test('what is not there, and what has no ranges', async () => {
    await assert.rejects(openBlockNode(options(`${http}/none.img`)), isVduseError('NOT_FOUND', /HTTP 404/));
    await assert.rejects(
      openBlockNode(options(`${http}/whole/disk.img`)),
      isVduseError('NOT_SUPPORTED', /does not support 'range'/),
    );
  });

  test('a file that changes is an I/O error from then on', async () => {
    const file = join(folder, 'files', 'changing.img');
    writeFileSync(file, image.subarray(0, mebibyte));
    const disk = await openSoftwareDisk(options(`${http}/changing.img`), { logger });
    await disk.disk.read(0, Buffer.alloc(4096));
    await sleep(1100);
    writeFileSync(file, image.subarray(mebibyte, 2 * mebibyte));
    await assert.rejects(disk.disk.read(65_536, Buffer.alloc(4096)));
    await assert.rejects(disk.disk.read(0, Buffer.alloc(4096)));
    await disk.close();
    assert.ok(lines.some((line) => line.includes('has changed on the server')));
  });
});
