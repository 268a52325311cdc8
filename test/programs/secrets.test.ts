/**
 * Secrets stay where they are: everything that the daemon says, to whomever and wherever, is gathered at its most
 * talkative, and none of what it was entrusted with is in it.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type Message, QmpClient } from '../qmp/client.js';

const programAt = (name: string) => fileURLToPath(new URL(`../../src/cli/${name}.js`, import.meta.url));
const daemonProgram = programAt('vduse-storage-daemon');
const startMsMax = 30_000;

/** A secret, and all that it would look like where it leaked. */
class Secret {
  readonly text: string;
  readonly #traces: readonly string[];

  constructor(what: string, text = `${what}-${randomBytes(12).toString('hex')}`) {
    this.text = text;
    const bytes = Buffer.from(text);
    // Base64 of a longer text that holds it, at each of the three places where it can begin.
    const inBase64 = [0, 1, 2].map((before) =>
      Buffer.concat([Buffer.alloc(before), bytes])
        .toString('base64')
        .replace(/=+$/, '')
        .slice(before === 0 ? 0 : 4, -1),
    );
    this.#traces = [text, bytes.toString('hex'), encodeURIComponent(text), ...inBase64];
  }

  get base64(): string {
    return Buffer.from(this.text).toString('base64');
  }

  isIn(text: string): boolean {
    const lowerCase = text.toLowerCase();
    return this.#traces.some((trace) => text.includes(trace) || lowerCase.includes(trace.toLowerCase()));
  }
}

class Secrets {
  readonly #all: Secret[] = [];

  make(what: string, text?: string): Secret {
    const secret = new Secret(what, text);
    this.#all.push(secret);
    return secret;
  }

  assertNoneIn(where: string, text: string): void {
    for (const secret of this.#all) {
      if (secret.isIn(text)) {
        const line = text.split('\n').find((one) => secret.isIn(one));
        assert.fail(`${where} has ${secret.text}: ${line}`);
      }
    }
  }
}

class Daemon {
  readonly process: ChildProcess;
  /** Everything that it wrote. */
  output = '';
  /** Everything that its monitor answered. */
  answers = '';
  client!: QmpClient;

  constructor(args: readonly string[], cwd: string, program = daemonProgram) {
    this.process = spawn(process.execPath, [program, ...args], { cwd });
    for (const stream of [this.process.stdout, this.process.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => {
        this.output += text;
      });
    }
  }

  async connect(path: string): Promise<void> {
    const deadline = Date.now() + startMsMax;
    for (;;) {
      try {
        this.client = await QmpClient.open(path);
        return;
      } catch (error) {
        assert.ok(this.process.exitCode === null && Date.now() < deadline, `${error}: ${this.output}`);
        await delay(20);
      }
    }
  }

  async ask(command: string, args?: object): Promise<Message> {
    return this.say(JSON.stringify({ execute: command, ...(args === undefined ? {} : { arguments: args }) }));
  }

  async say(line: string): Promise<Message> {
    this.client.send(line);
    for (;;) {
      const answer = await this.client.readLine();
      assert.ok(answer !== undefined);
      this.answers += `${answer}\n`;
      const message = JSON.parse(answer) as Message;
      if (!('event' in message)) {
        return message;
      }
    }
  }

  async succeed(command: string, args?: object): Promise<unknown> {
    const answer = await this.ask(command, args);
    assert.ok('return' in answer, `${command}: ${JSON.stringify(answer)}`);
    return answer['return'];
  }

  async fail(command: string, args: object): Promise<void> {
    assert.ok('error' in (await this.ask(command, args)), `${command} ${JSON.stringify(args)} works`);
  }

  async close(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    this.client?.close();
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill(signal);
      await once(this.process, 'close');
    }
  }
}

/** Command line, environment and name of a process. */
function publicFiles(pid: number): string {
  return ['cmdline', 'environ', 'comm', 'stat']
    .map((name) => readFileSync(`/proc/${pid}/${name}`, 'latin1').replaceAll('\0', '\n'))
    .join('\n');
}

function childrenOf(pid: number): number[] {
  return readdirSync(`/proc/${pid}/task`).flatMap((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8').split(' ').filter(Boolean).map(Number),
  );
}

/** Every property of every object that a client can see. */
async function walkObjects(daemon: Daemon, path: string): Promise<void> {
  const properties = (await daemon.succeed('qom-list', { path })) as { name: string; type: string }[];
  for (const { name, type } of properties) {
    await daemon.ask('qom-get', { path, property: name });
    if (type.startsWith('child<')) {
      await walkObjects(daemon, `${path === '/' ? '' : path}/${name}`);
    }
  }
}

/** Serves a megabyte to those who bring the password, or a cookie. */
function serveImage(password: Secret, cookie: Secret): Server {
  return createServer((request: IncomingMessage, response: ServerResponse) => {
    const expected = `Basic ${Buffer.from(`me:${password.text}`).toString('base64')}`;
    const mayCome = request.headers.authorization === expected || request.headers.cookie === cookie.text;
    const size = 1 << 20;
    if (!mayCome) {
      response.writeHead(401).end();
      return;
    }
    const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? '');
    const [first, last] = range === null ? [0, size - 1] : [Number(range[1]), Number(range[2])];
    response.writeHead(range === null ? 200 : 206, {
      'accept-ranges': 'bytes',
      etag: '"1"',
      'content-length': last - first + 1,
      ...(range === null ? {} : { 'content-range': `bytes ${first}-${last}/${size}` }),
    });
    response.end(request.method === 'HEAD' ? undefined : Buffer.alloc(last - first + 1, 1));
  });
}

describe('secrets', { timeout: 240_000 }, () => {
  let folder: string;
  let web: Server;
  let port: number;
  const daemons: Daemon[] = [];
  const secrets = new Secrets();
  const password = secrets.make('password');
  const cookie = secrets.make('cookie');
  const key = secrets.make('pskkey', randomBytes(32).toString('hex'));
  const otherKey = secrets.make('otherkey', randomBytes(32).toString('hex'));

  before(async () => {
    folder = mkdtempSync(join(tmpdir(), 'vduse-secrets-'));
    web = serveImage(password, cookie).listen(0, '127.0.0.1');
    await once(web, 'listening');
    ({ port } = web.address() as AddressInfo);
  });

  afterEach(async () => {
    for (const daemon of daemons.splice(0)) {
      await daemon.close();
    }
  });

  after(() => {
    web.closeAllConnections();
    web.close();
    rmSync(folder, { recursive: true });
  });

  function start(args: readonly string[], program?: string): Daemon {
    const daemon = new Daemon(args, folder, program);
    daemons.push(daemon);
    return daemon;
  }

  function file(name: string, content: string): string {
    const path = join(folder, name);
    writeFileSync(path, content, { mode: 0o600 });
    return path;
  }

  async function addObjects(daemon: Daemon): Promise<void> {
    const secret = (id: string, more: object) => ({ 'qom-type': 'secret', id, ...more });
    const raw = secrets.make('raw');
    const encoded = secrets.make('encoded');
    await daemon.succeed('object-add', secret('raw', { data: raw.text }));
    await daemon.succeed('object-add', secret('encoded', { data: encoded.base64, format: 'base64' }));
    await daemon.succeed('object-add', secret('password', { data: password.text }));
    await daemon.succeed('object-add', secret('cookie', { data: cookie.text }));
    await daemon.fail('object-add', secret('raw', { data: raw.text }));
    await daemon.fail('object-add', secret('x', { data: raw.text, format: 'base64' }));
    await daemon.fail('object-add', secret('x', { data: raw.text, file: 'both' }));
    await daemon.fail('object-add', secret('x', { data: raw.text, formt: 'raw' }));
    await daemon.fail('object-add', secret('x', { data: { text: raw.text } }));
    await daemon.fail('object-ad', secret('x', { data: raw.text }));
    await daemon.say(`{"execute": "object-add", "arguments": {"data": "${raw.text}" }, oops}`);
    await daemon.fail('qom-get', { path: '/objects/raw', property: 'data' });
    await daemon.fail('qom-set', { path: '/objects/raw', property: 'data', value: raw.text });
    const psk = (id: string, endpoint: string, dir: string) => ({
      'qom-type': 'tls-creds-psk',
      id,
      endpoint,
      dir,
      ...(endpoint === 'client' ? { username: 'me' } : {}),
    });
    for (const [name, one] of Object.entries({ keys: key, others: otherKey })) {
      const dir = mkdtempSync(join(folder, name));
      writeFileSync(join(dir, 'keys.psk'), `me:${one.text}\n`);
      await daemon.succeed('object-add', psk(`${name}-server`, 'server', dir));
      await daemon.succeed('object-add', psk(`${name}-client`, 'client', dir));
    }
    await daemon.fail('object-add', {
      'qom-type': 'tls-creds-x509',
      id: 'x509',
      dir: folder,
      passwordid: 'password',
    });
  }

  async function addNodes(daemon: Daemon): Promise<void> {
    const there = `127.0.0.1:${port}/disk.img`;
    const http = (name: string, url: string, more: object = {}) => ({
      driver: 'http',
      'node-name': name,
      url,
      'read-only': true,
      ...more,
    });
    const withPassword = `http://me:${password.text}@${there}`;
    await daemon.succeed('blockdev-add', http('h1', withPassword));
    await daemon.succeed(
      'blockdev-add',
      http('h2', `http://${there}`, { username: 'me', 'password-secret': 'password' }),
    );
    await daemon.succeed('blockdev-add', http('h3', `http://${there}`, { 'cookie-secret': 'cookie' }));
    await daemon.succeed('blockdev-add', http('h4', `http://${there}?ticket=1`, { cookie: cookie.text }));
    await daemon.succeed('blockdev-add', {
      driver: 'raw',
      'node-name': 'r1',
      file: http('h5', withPassword),
    });
    const wrong = secrets.make('wrong').text;
    const ticket = secrets.make('ticket').text;
    const failing: readonly object[] = [
      http('x', `http://me:${wrong}@${there}?ticket=${ticket}`),
      http('x', `http://${there}?ticket=${ticket}`, { username: 'me', 'password-secret': 'raw' }),
      http('x', `http://me:${wrong}@127.0.0.1:1/disk?ticket=${ticket}`),
      http('x', `http://me:${wrong}@nowhere.invalid/disk?ticket=${ticket}`),
      http('x', `https://me:${wrong}@${there}`),
      http('x', `http//me:${wrong}@${there}`),
      http('x', `http://me:${wrong}@host:notaport/`),
      http('x', `http://me:${wrong}@${there}`, { readahed: 1 }),
      http('x', `http://me:${wrong}@${there}`, { cookie: wrong, 'cookie-secret': 'cookie' }),
      http('x', `http://me:${wrong}@${there}`, { cookie: `${wrong}\n` }),
      http('h1', `http://me:${wrong}@${there}`),
      { driver: 'raw', 'node-name': 'x', file: http('y', `http://me:${wrong}@127.0.0.1:1/`) },
      { driver: 'file', 'node-name': 'x', filename: 'missing', url: withPassword },
    ];
    for (const options of failing) {
      await daemon.fail('blockdev-add', options);
    }
    // Whether librbd is there or not, and no cluster is.
    await daemon.fail('blockdev-add', {
      driver: 'rbd',
      'node-name': 'x',
      pool: 'p',
      image: 'i',
      user: 'me',
      'key-secret': 'raw',
      server: [{ host: '127.0.0.1', port: '1' }],
      'mount-timeout': 1,
    });
    await daemon.fail('blockdev-reopen', { options: [http('h1', `http://me:${wrong}@127.0.0.1:1/`)] });
  }

  async function serveOverTls(daemon: Daemon): Promise<void> {
    const path = join(folder, 'nbd.sock');
    const addr = { type: 'unix', data: { path } };
    await daemon.succeed('nbd-server-start', { addr, 'tls-creds': 'keys-server' });
    await daemon.succeed('block-export-add', { type: 'nbd', id: 'e1', 'node-name': 'h1', name: 'disk' });
    const nbd = (name: string, credentials: string) => ({
      driver: 'nbd',
      'node-name': name,
      server: { type: 'unix', path },
      'read-only': true,
      export: 'disk',
      'tls-creds': credentials,
    });
    await daemon.succeed('blockdev-add', nbd('n1', 'keys-client'));
    await daemon.fail('blockdev-add', nbd('n2', 'others-client'));
    await daemon.fail('blockdev-add', nbd('n2', 'keys-server'));
    await daemon.fail('blockdev-add', nbd('n2', 'raw'));
  }

  test('are in no answer, no event, no log line, no figure and no file of a process', async () => {
    const fromFile = secrets.make('fromfile');
    const encodedFile = secrets.make('encodedfile');
    const qmp = join(folder, 'qmp.sock');
    const daemon = start([
      ...[
        '--log-level',
        'trace',
        '--chardev',
        `socket,id=m,path=${qmp},server=on,wait=off`,
        '--monitor',
        'm',
      ],
      ...['--object', `secret,id=f,file=${file('secret.txt', fromFile.text)}`],
      ...['--object', `secret,id=g,format=base64,file=${file('secret.b64', encodedFile.base64)}`],
      ...['--metrics', `addr.type=unix,addr.path=${join(folder, 'metrics.sock')}`],
    ]);
    await daemon.connect(qmp);
    await addObjects(daemon);
    await addNodes(daemon);
    await serveOverTls(daemon);
    const commands = (await daemon.succeed('query-commands')) as { name: string }[];
    const queries = commands.map(({ name }) => name).filter((name) => name.startsWith('query-'));
    assert.ok(queries.length >= 10);
    for (const query of queries) {
      await daemon.succeed(query);
    }
    await daemon.succeed('query-named-block-nodes', { flat: true });
    await daemon.succeed('query-blockstats', { 'query-nodes': true });
    await walkObjects(daemon, '/');
    const metrics = await readMetrics(join(folder, 'metrics.sock'));
    assert.match(metrics, /^# HELP/m);
    const { pid } = daemon.process;
    const processes = [pid!, ...childrenOf(pid!)].map(publicFiles).join('\n');
    await daemon.close();
    // The talk is there: the names that go with the secrets are.
    assert.match(daemon.answers, /h1/);
    assert.match(daemon.output, /NBD client dropped: TLS/);
    for (const [where, text] of Object.entries({
      'an answer': daemon.answers,
      'the log': daemon.output,
      'a figure': metrics,
      'a file of the process': processes,
    })) {
      secrets.assertNoneIn(where, text);
    }
  });

  test('of a command line are not repeated when it is wrong', async () => {
    const secret = secrets.make('given').text;
    const there = `me:${secret}@127.0.0.1:1/disk?ticket=${secret}`;
    const failing: readonly string[][] = [
      ['--object', `secret,id=s,data=${secret},format=x`],
      ['--object', `secret,data=${secret}`],
      ['--object', `secret,id=9,data=${secret}`],
      ['--object', `{"qom-type":"secret","id":"s","data":"${secret}","x":1}`],
      ['--object', `{"qom-type":"secret","id":"s","data":"${secret}",}`],
      ['--object', `secret,id=s,data=${secret},format=base64`],
      ['--object', `secret,id=s,data=comma,${secret},format=raw`],
      ['--object', `secret,id=s,dta=${secret}`],
      ['--object', `secret,id=s,data.x=${secret}`],
      ['--object', `qom-type=secret,id=s,data=x,${secret}=y`],
      ['--object', `{"qom-type":"secret","id":"s","data":${secret}}`],
      ['--object', `{"qom-type":"secret","id":"s","data":{"x":"${secret}"}}`],
      ['--blockdev', `http,node-name=h,read-only=on,url=http://${there}`],
      ['--blockdev', `http,node-name=h,read-only=on,url=http://${there},readahed=1`],
      ['--blockdev', `http,node-name=h,read-only=on,url=ftp://${there}`],
      ['--blockdev', `http,node-name=h,read-only=on,url=http://127.0.0.1:1/,cookie=${secret}`],
      ['--blockdev', `raw,node-name=r,file.driver=http,file.url=http://${there},file.cookie=${secret}`],
      [
        '--blockdev',
        `{"driver":"http","node-name":"h","read-only":true,"url":"http:\\/\\/${there}","cookie":"${secret}"}`,
      ],
      ['--blockdev', `{"driver":"http","node-name":"h","cookie":"${secret}","url":"http://${there}"`],
    ];
    const ended = failing.map((args) => start(['--log-level', 'trace', ...args]));
    await Promise.all(ended.map((daemon) => once(daemon.process, 'close')));
    for (const daemon of ended) {
      assert.equal(daemon.process.exitCode, 1);
      assert.notEqual(daemon.output, '');
      secrets.assertNoneIn('an error', daemon.output);
    }
  });

  test('of an image that does not open are not repeated by the commands that open images', async () => {
    const secret = secrets.make('image').text;
    const there = `me:${secret}@127.0.0.1:1/disk?ticket=${secret}`;
    const failing: readonly string[][] = [
      ['serve', `http://${there}`],
      ['convert', `http://${there}`, 'copy.img', '--create'],
      ['convert', `https://${there}`, 'copy.img', '--create'],
      ['serve', `http.url=http://${there}`],
      ['serve', `driver=http,url=http://${there}`],
      ['serve', `json:{"driver":"http","url":"http://${there}"}`],
      ['serve', `json:{"driver":"http","url":"http://${there}"`],
    ];
    const ended = failing.map((args) => start(args, programAt('vduse')));
    await Promise.all(ended.map((daemon) => once(daemon.process, 'close')));
    for (const daemon of ended) {
      assert.notEqual(daemon.process.exitCode, 0);
      assert.notEqual(daemon.output, '');
      secrets.assertNoneIn('an error', daemon.output);
    }
  });

  test('of an image that is read are not repeated by the commands that read it', async () => {
    const url = `http://me:${password.text}@127.0.0.1:${port}/disk?ticket=${secrets.make('ticket').text}`;
    writeFileSync(join(folder, 'target.img'), new Uint8Array(1 << 20));
    writeFileSync(join(folder, 'small.img'), new Uint8Array(4096));
    const commands: readonly (readonly [number, ...string[]])[] = [
      [0, 'convert', url, 'target.img'],
      [0, 'convert', url, 'made.img', '--create', '--json', '--verify'],
      [1, 'convert', url, 'small.img'],
      [1, 'convert', 'small.img', url],
      [2, 'convert', url, url],
      [0, 'bench', url, '--runtime', '0.1'],
      [0, 'bench', url, '--runtime', '0.1', '--json'],
      [2, 'bench', url, '--rw', 'write'],
    ];
    for (const [status, ...args] of commands) {
      const command = start(args, programAt('vduse'));
      await once(command.process, 'close');
      assert.equal(command.process.exitCode, status, command.output);
      assert.notEqual(command.output, '');
      secrets.assertNoneIn(`vduse ${args[0]}`, command.output);
    }
  });

  test('by file= are in no command line, not even in the background; by data= they are where they were written', async () => {
    const known = secrets.make('known');
    const path = file('known.txt', known.text);
    for (const [object, isThere] of [
      [`secret,id=s,file=${path}`, false],
      [`secret,id=s,data=${known.text}`, true],
    ] as const) {
      const pidFile = join(folder, 'pid');
      const starter = start(['--daemonize', '--pidfile', pidFile, '--object', object]);
      const [status] = (await once(starter.process, 'close')) as [number];
      assert.equal(status, 0, starter.output);
      const pid = Number(readFileSync(pidFile, 'utf8'));
      try {
        assert.equal(known.isIn(publicFiles(pid)), isThere);
        for (const child of childrenOf(pid)) {
          assert.ok(!known.isIn(publicFiles(child)));
        }
      } finally {
        process.kill(pid, 'SIGTERM');
        await gone(pidFile);
      }
      assert.ok(!known.isIn(starter.output));
    }
  });
});

async function readMetrics(path: string): Promise<string> {
  const sent = request({ socketPath: path, path: '/metrics' }).end();
  const [response] = (await once(sent, 'response')) as [IncomingMessage];
  let text = '';
  for await (const chunk of response.setEncoding('utf8')) {
    text += chunk as string;
  }
  return text;
}

async function gone(path: string): Promise<void> {
  const deadline = Date.now() + startMsMax;
  while (existsSync(path)) {
    assert.ok(Date.now() < deadline, 'it did not end');
    await delay(10);
  }
}
