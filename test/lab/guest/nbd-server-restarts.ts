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

/** Kills the server each time when so many requests were completed, for as long as the load runs. */
async function restartUnderLoad(
  server: RestartedServer,
  disk: DaemonDisk,
  load: RunningProgram,
  everyRequests: number,
): Promise<number> {
  let restarts = 0;
  for (let next = disk.requests + everyRequests; load.running; await sleep(lookMs)) {
    if (disk.requests >= next) {
      await server.restart(awayMs[restarts++ % awayMs.length]);
      next = disk.requests + everyRequests;
    }
  }
  return restarts;
}

async function serverRestarts(context: CheckContext, name: string): Promise<Figures> {
  makeImage(image, 96 * MiB);
  context.after(() => rmSync(image));
  const server = await RestartedServer.start(context, servers[name]);
  const disk = await DaemonDisk.start(context, 'remote', [
    '--blockdev',
    `driver=nbd,node-name=remote,server.type=unix,server.path=${socket},reconnect-delay=120,open-timeout=60`,
  ]);
  let restarts = 0;
  const { reads, writes } = await runContainedLoad(context, disk, async (load) => {
    restarts = await restartUnderLoad(server, disk, load, 350);
  });
  assert.ok(restarts >= 3, `the load was over after ${restarts} restarts; the server ${server.said}`);
  await disk.end();
  await assertSameFiles(context, image);
  return { restarts, reads, writes };
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
