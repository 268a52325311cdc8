/**
 * A Ceph cluster of Debian's packages (ceph-mon, ceph-osd, ceph-common) as plain processes on the loopback interface:
 * one monitor and any number of OSDs that keep their objects in memory. No manager: I/O needs none. Up in a few seconds.
 */
import { type ChildProcess, execFile, spawn, spawnSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

const execFileAsync = promisify(execFile);
/** Monitor and OSDs are local and the load is small: what takes longer does not end. */
const startTimeoutMs = 120_000;
const commandTimeoutMs = 60_000;

export interface CephClusterOptions {
  /** 1 when absent. With three, each object has three copies, and two are enough for I/O. */
  readonly osds?: number;
  /** Of the loopback interface, where monitor and OSDs listen. 127.0.0.1 when absent. */
  readonly address?: string;
  /** Lines for ceph.conf's section [global]. */
  readonly settings?: readonly string[];
}

/** The first program that is missing, or undefined. */
export function missingCephProgram(): string | undefined {
  return ['ceph-mon', 'ceph-osd', 'ceph', 'rbd', 'ceph-authtool', 'monmaptool'].find(
    (program) => spawnSync('which', [program]).status !== 0,
  );
}

async function freePort(address: string): Promise<number> {
  const server = createServer();
  await new Promise<void>((listening) => server.listen(0, address, listening));
  const bound = server.address();
  await new Promise((closed) => server.close(closed));
  if (bound === null || typeof bound === 'string') {
    throw new Error('a listening socket has no port');
  }
  return bound.port;
}

export class CephCluster {
  readonly folder = mkdtempSync(join(tmpdir(), 'vduse-ceph-'));
  readonly conf = join(this.folder, 'ceph.conf');
  readonly pool = 'rbd';
  readonly #osdCount: number;
  readonly #address: string;
  readonly #settings: readonly string[];
  readonly #fsid = randomUUID();
  #monitorPort = 0;
  #monitor: ChildProcess | undefined;
  readonly #osds: ChildProcess[] = [];

  static async start(options: CephClusterOptions = {}): Promise<CephCluster> {
    const cluster = new CephCluster(options);
    try {
      await cluster.#start();
      return cluster;
    } catch (error) {
      await cluster.stop();
      throw error;
    }
  }

  private constructor(options: CephClusterOptions) {
    this.#osdCount = options.osds ?? 1;
    this.#address = options.address ?? '127.0.0.1';
    this.#settings = options.settings ?? [];
  }

  get monitor(): { host: string; port: number } {
    return { host: this.#address, port: this.#monitorPort };
  }

  get keyring(): string {
    return join(this.folder, 'keyring');
  }

  /** The process id of an OSD, to signal it. */
  osdPid(osd: number): number {
    const { pid } = this.#osds[osd];
    if (pid === undefined) {
      throw new Error(`OSD ${osd} does not run`);
    }
    return pid;
  }

  get monitorPid(): number | undefined {
    return this.#monitor?.pid;
  }

  /** Runs `ceph`. */
  ceph(...args: string[]): Promise<string> {
    return this.#run('ceph', ['-c', this.conf, ...args]);
  }

  /** Runs `rbd`. */
  rbd(...args: string[]): Promise<string> {
    return this.#run('rbd', ['-c', this.conf, ...args]);
  }

  /** The secret of a user as Ceph writes it, base64. */
  async key(user: string): Promise<string> {
    return (await this.ceph('auth', 'get-key', user)).trim();
  }

  async stop(): Promise<void> {
    const children = [...this.#osds, ...(this.#monitor === undefined ? [] : [this.#monitor])];
    await Promise.all(
      children.map(async (child) => {
        if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) {
          const ended = new Promise((resolve) => child.once('exit', resolve));
          // The data is in memory or of no use: nothing is worth a slow end.
          child.kill('SIGKILL');
          await ended;
        }
      }),
    );
    rmSync(this.folder, { recursive: true, force: true });
  }

  async #run(program: string, args: readonly string[]): Promise<string> {
    const { stdout } = await execFileAsync(program, [...args], {
      timeout: commandTimeoutMs,
      maxBuffer: 64 << 20,
    });
    return stdout;
  }

  #spawn(program: string, args: readonly string[], name: string): ChildProcess {
    const log = openSync(join(this.folder, `${name}.out`), 'a');
    // The kernel ends it with this process, however that ends: nobody else would stop a cluster that is left.
    const tied = ['--pdeathsig', 'KILL', '--', program, '-c', this.conf];
    return spawn('setpriv', [...tied, ...args], { stdio: ['ignore', log, log] });
  }

  async #start(): Promise<void> {
    const deadlineMs = Date.now() + startTimeoutMs;
    this.#monitorPort = await freePort(this.#address);
    this.#writeConfiguration();
    await this.#startMonitor();
    await Promise.all(Array.from({ length: this.#osdCount }, (_, osd) => this.#startOsd(osd)));
    while (!(await this.ceph('osd', 'stat')).includes(` ${this.#osdCount} up`)) {
      if (Date.now() > deadlineMs) {
        throw new Error(`the OSDs do not come up: ${this.#output()}`);
      }
      await sleep(100);
    }
    await this.ceph('osd', 'pool', 'create', this.pool, '8', '8');
    await this.rbd('pool', 'init', this.pool);
  }

  #writeConfiguration(): void {
    const copies = Math.min(3, this.#osdCount);
    const lines = [
      '[global]',
      `fsid = ${this.#fsid}`,
      `mon host = [v2:${this.#address}:${this.#monitorPort}]`,
      `public addr = ${this.#address}`,
      'ms bind ipv6 = false',
      'auth cluster required = cephx',
      'auth service required = cephx',
      'auth client required = cephx',
      `keyring = ${this.keyring}`,
      `run dir = ${this.folder}`,
      `admin socket = ${this.folder}/$name.$pid.asok`,
      `log file = ${this.folder}/$name.log`,
      'mon cluster log file = ',
      `mon data = ${this.folder}/mon`,
      `osd data = ${this.folder}/osd-$id`,
      'paxos propose interval = 0.05',
      'mon allow pool size one = true',
      'mon allow pool delete = true',
      'mon warn on pool no redundancy = false',
      'auth allow insecure global id reclaim = false',
      `osd pool default size = ${copies}`,
      `osd pool default min size = ${Math.max(1, copies - 1)}`,
      'osd crush chooseleaf type = 0',
      'osd objectstore = memstore',
      'memstore page set = true',
      'memstore device bytes = 4294967296',
      // A killed OSD is missed soon: the others tell the monitor, who believes one of them. One OSD by itself is missed
      // by nobody, and may not have a short grace: its leases, 0.8 of it, would run out while a test stops it, and
      // Ceph 16 sometimes never renews them then ("waiting for readable").
      `osd heartbeat grace = ${this.#osdCount === 1 ? 60 : 4}`,
      'osd heartbeat interval = 1',
      'mon osd min down reporters = 1',
      'mon osd adjust heartbeat grace = false',
      ...this.#settings,
    ];
    writeFileSync(this.conf, `${lines.join('\n')}\n`);
  }

  async #startMonitor(): Promise<void> {
    const map = join(this.folder, 'monmap');
    const keyring = this.keyring;
    await this.#run('ceph-authtool', [
      '--create-keyring',
      keyring,
      '--gen-key',
      '-n',
      'mon.',
      '--cap',
      'mon',
      'allow *',
    ]);
    const admin = ['mon', 'allow *', 'osd', 'allow *', 'mgr', 'allow *', 'mds', 'allow *'];
    const caps: string[] = [];
    for (let n = 0; n < admin.length; n += 2) {
      caps.push('--cap', admin[n], admin[n + 1]);
    }
    await this.#run('ceph-authtool', [keyring, '--gen-key', '-n', 'client.admin', ...caps]);
    const address = `[v2:${this.#address}:${this.#monitorPort}]`;
    await this.#run('monmaptool', ['--create', '--fsid', this.#fsid, '--addv', 'a', address, map]);
    mkdirSync(join(this.folder, 'mon'));
    await this.#run('ceph-mon', [
      '-c',
      this.conf,
      '--mkfs',
      '-i',
      'a',
      '--monmap',
      map,
      '--keyring',
      keyring,
    ]);
    this.#monitor = this.#spawn('ceph-mon', ['-f', '-i', 'a'], 'mon');
  }

  async #startOsd(osd: number): Promise<void> {
    const uuid = randomUUID();
    mkdirSync(join(this.folder, `osd-${osd}`));
    await this.ceph('osd', 'new', uuid, `${osd}`);
    const keyring = join(this.folder, `osd-${osd}`, 'keyring');
    await this.ceph(
      'auth',
      'get-or-create',
      `osd.${osd}`,
      'mon',
      'allow profile osd',
      'osd',
      'allow *',
      '-o',
      keyring,
    );
    await this.#run('ceph-osd', [
      '-c',
      this.conf,
      '-i',
      `${osd}`,
      '--mkfs',
      '--osd-uuid',
      uuid,
      '--keyring',
      keyring,
    ]);
    this.#osds[osd] = this.#spawn('ceph-osd', ['-f', '-i', `${osd}`, '--keyring', keyring], `osd-${osd}`);
  }

  #output(): string {
    return ['mon.out', ...this.#osds.map((_, osd) => `osd-${osd}.out`)]
      .map((name) => `${name}: ${readFileSync(join(this.folder, name), 'utf8').slice(-2000)}`)
      .join('\n');
  }
}
