/** Other people's NBD servers for one test, and the certificates that they want. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const startMs = 20_000;

export class ServerProcess {
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;
  #output = '';

  /** Starts a server in the foreground; `isReady` is asked until it is so. */
  static async start(
    program: string,
    args: readonly string[],
    isReady: () => boolean | Promise<boolean>,
  ): Promise<ServerProcess> {
    const server = new ServerProcess(program, args);
    const endMs = performance.now() + startMs;
    while (!(await isReady())) {
      if (server.#child.exitCode !== null || performance.now() > endMs) {
        await server.kill();
        throw new Error(`${program} did not start: ${server.#output}`);
      }
      await sleep(20);
    }
    return server;
  }

  private constructor(program: string, args: readonly string[]) {
    this.#child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    const collect = (chunk: Buffer): void => {
      this.#output += chunk.toString();
    };
    this.#child.stdout?.on('data', collect);
    this.#child.stderr?.on('data', collect);
    this.#exited = new Promise((resolve) => {
      this.#child.once('close', () => resolve());
      this.#child.once('error', (error) => {
        this.#output += error.message;
        resolve();
      });
    });
  }

  get output(): string {
    return this.#output;
  }

  get isRunning(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null;
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    this.#child.kill(signal);
    return this.#exited;
  }
}

/** A TCP port that nobody listens on at the moment. */
export function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const address = server.address();
      server.close(() => resolve(typeof address === 'object' ? address!.port : 0));
    });
  });
}

const openssl = (args: readonly string[]): void => {
  execFileSync('openssl', args, { stdio: 'ignore' });
};
const newKey = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes'];

/** Makes a CA and a certificate for each side under QEMU's names; both sides can use the folder. */
export function makeCertificates(folder: string, serverName: string, clientSubject = '/CN=client'): void {
  mkdirSync(folder, { recursive: true });
  const path = (name: string): string => join(folder, name);
  openssl([
    'req',
    '-x509',
    ...newKey,
    '-days',
    '2',
    '-subj',
    '/CN=test CA',
    '-keyout',
    path('ca-key.pem'),
    '-out',
    path('ca-cert.pem'),
  ]);
  for (const [side, usage] of [
    ['server', 'serverAuth'],
    ['client', 'clientAuth'],
  ]) {
    const request = path(`${side}.csr`);
    const subject = side === 'client' ? clientSubject : '/CN=server';
    openssl([
      ...['req', '-utf8', ...newKey, '-subj', subject],
      ...['-keyout', path(`${side}-key.pem`), '-out', request],
    ]);
    writeFileSync(
      path(`${side}.ext`),
      `subjectAltName=DNS:${serverName},IP:127.0.0.1\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=${usage}\n`,
    );
    openssl([
      ...[
        'x509',
        '-req',
        '-in',
        request,
        '-days',
        '2',
        '-CA',
        path('ca-cert.pem'),
        '-CAkey',
        path('ca-key.pem'),
      ],
      ...['-CAcreateserial', '-extfile', path(`${side}.ext`), '-out', path(`${side}-cert.pem`)],
    ]);
  }
}

/** Makes GnuTLS's file of pre-shared keys. Returns the key as it is written there. */
export function makeSharedKeys(folder: string, username: string): string {
  mkdirSync(folder, { recursive: true });
  const key = randomBytes(32).toString('hex');
  writeFileSync(join(folder, 'keys.psk'), `${username}:${key}\n`, { mode: 0o600 });
  return key;
}
