/**
 * What a container does with a disk: a file system, mounted in a mount and a pid namespace of its own, and files that
 * fio writes and verifies there. Meanwhile whoever runs it breaks things below the disk.
 */
import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';

import { vdpaBusDevice } from '../../../src/native/vdpa-bus.js';
import type { CheckContext } from './checks.js';
import { startDaemon } from './commands.js';
import { type FioResult, fioCommand, mount, parseFio } from './disks.js';
import { type RunningProgram, sh, start, waitFor } from './shell.js';

/** How often to look how far the load is: a machine with KVM is through a hundred requests in this time. */
export const lookMs = 5;

const directory = '/mnt/contained';
const sumsPath = '/tmp/contained.sums';
const resultPath = '/tmp/contained.json';

/** Everything is asked of the disk itself: writes by O_DIRECT, reads after the caches were dropped. */
function script(disk: string): string {
  return `set -e
mount ${disk} ${directory}
cd ${directory}
${fioCommand} --group_reporting --allow_file_create=1 --directory=${directory} --verify=crc32c --verify_fatal=1 \\
  --verify_state_save=0 --output=${resultPath} \\
  --rw=randwrite --bsrange=4k-64k --size=12M --numjobs=2 --iodepth=16 --fsync=32
echo 3 >/proc/sys/vm/drop_caches
sha256sum load.* >${sumsPath}
cd /
umount ${directory}
`;
}

/** A daemon with one node and its disk, on the bus until the check is over. */
export class DaemonDisk {
  readonly #daemon: RunningProgram;
  readonly path: string;

  static async start(context: CheckContext, name: string, args: readonly string[]): Promise<DaemonDisk> {
    const daemon = await startDaemon(context, [
      ...args,
      '--export',
      `vduse-blk,id=${name},node-name=${name},name=${name},writable=on,num-queues=2,attach=virtio`,
    ]);
    let path: string | undefined;
    await waitFor(
      `the disk is there (${daemon.output})`,
      () => {
        path = vdpaBusDevice(name)?.blockDevice;
        return path !== undefined || !daemon.running;
      },
      60_000,
    );
    assert(path !== undefined, `the daemon made no disk: ${daemon.output}`);
    return new DaemonDisk(daemon, path);
  }

  private constructor(daemon: RunningProgram, path: string) {
    this.#daemon = daemon;
    this.path = path;
  }

  /** Requests that it has completed. */
  get requests(): number {
    const fields = readFileSync(`/sys/block/${this.path.slice('/dev/'.length)}/stat`, 'utf8')
      .trim()
      .split(/\s+/);
    return Number(fields[0]) + Number(fields[4]);
  }

  /** What the daemon has said. */
  get log(): string {
    return this.#daemon.output;
  }

  /** Takes it off the bus. */
  async end(): Promise<void> {
    const { status, output } = await this.#daemon.end();
    assert.equal(status, 0, output);
  }
}

/**
 * Makes a file system, and writes and verifies files on it in namespaces of its own, while `disturb` runs; that is to
 * end when the load does. Fails where any of it sees an error.
 */
export async function runContainedLoad(
  context: CheckContext,
  disk: DaemonDisk,
  disturb: (load: RunningProgram) => Promise<void>,
): Promise<FioResult> {
  await sh(`mkfs.ext4 -q -F ${disk.path} && mkdir -p ${directory}`);
  writeFileSync('/tmp/contained.sh', script(disk.path));
  const load = await start('unshare', [
    ...['--mount', '--pid', '--fork', '--kill-child', '--mount-proc'],
    ...['/bin/sh', '/tmp/contained.sh'],
  ]);
  context.after(() => load.end('SIGKILL'));
  await disturb(load);
  const { status, output } = await load.finished;
  assert.equal(status, 0, `${output}\nthe daemon:\n${disk.log.slice(-2000)}`);
  assert.doesNotMatch(
    readFileSync('/proc/mounts', 'utf8'),
    /contained/,
    'the mount got out of its namespace',
  );
  return parseFio(readFileSync(resultPath, 'utf8'));
}

/** Compares the files with those of an image of the disk. */
export async function assertSameFiles(context: CheckContext, image: string): Promise<void> {
  await sh(`e2fsck -fn ${image}`);
  const unmount = await mount(context, `-o loop,ro ${image}`, '/mnt/image');
  await sh(`cd /mnt/image && sha256sum --check --quiet ${sumsPath}`);
  await unmount();
}
