/** A container's disk on an NBD server that is killed and started again under load, with reconnect-delay. */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import { type CheckContext, type Figures, runChecks } from './checks.js';
import { assertSameFiles, DaemonDisk, lookMs, runContainedLoad } from './contained-load.js';
import { loadModules, MiB, makeImage } from './disks.js';
import { type RunningProgram, start } from './shell.js';

const socket = '/tmp/nbd.sock';
const image = '/tmp/nbd.img';

/** Serves the image on the socket, in the foreground. */
const servers: Readonly<Record<string, readonly string[]>> = {
  nbdkit: ['nbdkit', '--foreground', '--unix', socket, 'file', image],
  // One connection at a time: all queues share it.
  'qemu-nbd': ['qemu-nbd', '--persistent', '--shared=1', '--format=raw', `--socket=${socket}`, image],
};

/** Requests from one death of the server to the next. */
const requestsBetween = 450;

/** How long the server stays away, in turn. */
const awayMs = [0, 1500, 300, 3000];

class RestartedServer {
  readonly #command: readonly string[];
  #program!: RunningProgram;

  static async start(context: CheckContext, command: readonly string[]): Promise<RestartedServer> {
    const server = new RestartedServer(command);
    context.after(() => server.#program.end('SIGKILL'));
    await server.#start();
    return server;
  }

  private constructor(command: readonly string[]) {
    this.#command = command;
  }

  async #start(): Promise<void> {
    // nbdkit does not take the place of a socket that was left.
    rmSync(socket, { force: true });
    this.#program = await start(this.#command[0], this.#command.slice(1));
  }

  get said(): string {
    return `${this.#program.running ? 'runs' : 'has ended'}: ${this.#program.output}`;
  }

  async restart(afterMs: number): Promise<void> {
    await this.#program.end('SIGKILL');
    await sleep(afterMs);
    await this.#start();
  }
}

interface Restarts {
  count: number;
  /** From the new server's start to the first request that it has served, at most. */
  slowestReturnMs: number;
}

/** Kills the server each time when so many requests were completed, for as long as the load runs. */
async function restartUnderLoad(
  server: RestartedServer,
  disk: DaemonDisk,
  load: RunningProgram,
): Promise<Restarts> {
  const restarts: Restarts = { count: 0, slowestReturnMs: 0 };
  for (let next = disk.requests + requestsBetween; load.running; await sleep(lookMs)) {
    if (disk.requests >= next) {
      await server.restart(awayMs[restarts.count++ % awayMs.length]);
      const startedMs = performance.now();
      const { requests } = disk;
      next = requests + requestsBetween;
      while (load.running && disk.requests === requests) {
        await sleep(lookMs);
      }
      restarts.slowestReturnMs = Math.max(
        restarts.slowestReturnMs,
        Math.round(performance.now() - startedMs),
      );
    }
  }
  return restarts;
}

async function serverRestarts(context: CheckContext, name: string): Promise<Figures> {
  const beginMs = performance.now();
  makeImage(image, 96 * MiB);
  context.after(() => rmSync(image));
  const server = await RestartedServer.start(context, servers[name]);
  const disk = await DaemonDisk.start(context, 'remote', [
    '--blockdev',
    `driver=nbd,node-name=remote,server.type=unix,server.path=${socket},reconnect-delay=120,open-timeout=60`,
  ]);
  const startMs = Math.round(performance.now() - beginMs);
  let restarts: Restarts = { count: 0, slowestReturnMs: 0 };
  const { reads, writes } = await runContainedLoad(context, disk, async (load) => {
    restarts = await restartUnderLoad(server, disk, load);
  });
  const { count, slowestReturnMs } = restarts;
  assert.ok(count >= 3, `the load was over after ${count} restarts; the server ${server.said}`);
  await disk.end();
  await assertSameFiles(context, image);
  return {
    restarts: count,
    'ms until the disk': startMs,
    'slowest return, ms': slowestReturnMs,
    reads,
    writes,
  };
}

await loadModules('ext4', 'loop');
await runChecks([
  {
    name: 'nbdkit, two connections: killed and restarted under fio --verify, no error and nothing lost',
    noIoErrors: true,
    run: (context) => serverRestarts(context, 'nbdkit'),
  },
  {
    name: 'qemu-nbd, one connection: killed and restarted under fio --verify, no error and nothing lost',
    noIoErrors: true,
    run: (context) => serverRestarts(context, 'qemu-nbd'),
  },
]);
