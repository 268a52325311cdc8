/** The life of `vduse serve`: a software disk, its NBD servers, and the signal that ends both. */
import { once } from 'node:events';
import { openSoftwareDisk } from '../../daemon/open-software-disk.js';
import type { NbdAddress } from '../../nbd/nbd-server.js';
import type { ServeFlags } from '../commands/serve.js';
import type { CommandContext } from './command.js';
import { checkImageName, experimentNode } from './image-source.js';
import { terminalLogger } from './logger.js';

/** How clients name an address: the URI that nbdinfo, qemu-img and fio take. */
function nbdUri(address: NbdAddress, exportName: string): string {
  const name = encodeURIComponent(exportName);
  return address.type === 'unix'
    ? `nbd+unix:///${name}?socket=${encodeURI(address.path)}`
    : `nbd://127.0.0.1:${address.port}/${name}`;
}

/** Serves until SIGINT, SIGTERM or SIGHUP; requests in flight end first. */
export async function runServe(image: string, flags: ServeFlags, context: CommandContext): Promise<void> {
  checkImageName(image);
  // Before anything is there to be cleaned up: a signal is kept until the disk can be taken down.
  const stop = Promise.race(['SIGINT', 'SIGTERM', 'SIGHUP'].map((signal) => once(process, signal)));
  const { name, queues, queueSize, exportName, bounce = false } = flags;
  const opened = await openSoftwareDisk(experimentNode(image, name ?? 'disk') ?? image, {
    logger: terminalLogger(context.terminal, flags),
    readOnly: flags.readOnly ?? false,
    ...(name === undefined ? {} : { name }),
    ...(queues === undefined ? {} : { queues }),
    ...(queueSize === undefined ? {} : { queueSize }),
  });
  try {
    for (const address of flags.nbd) {
      const uri = nbdUri(await opened.serveNbd({ address, exportName, bounce }), exportName);
      const { size, readOnly } = opened.disk;
      context.print(
        flags.json === true
          ? `${JSON.stringify({ event: 'ready', uri, name: opened.name, size, readOnly, image, pid: process.pid })}\n`
          : `${uri}\n`,
      );
    }
    await stop;
  } finally {
    await opened.close();
  }
  if (flags.json === true) {
    context.print(`${JSON.stringify({ event: 'closed', statistics: opened.statistics })}\n`);
  }
}
