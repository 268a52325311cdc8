/**
 * A process that exports an image and, when told so by SIGTERM, closes it. It ends by itself then, or something was
 * left open. Prints the disk's path, or the code of the error.
 *
 *   node attach-and-close.js IMAGE NAME [detached]
 */
import { once } from 'node:events';
import { VduseError } from '../../../src/base/errors.js';
import { exportDisk } from '../../../src/daemon/export-disk.js';

const [image, name, detached] = process.argv.slice(2);
try {
  const disk = await exportDisk(image, { name, attach: detached === undefined ? 'virtio' : false });
  const keepAlive = setInterval(() => {}, 1000);
  const terminated = once(process, 'SIGTERM');
  process.stdout.write(`exported ${disk.path}\n`);
  await terminated;
  clearInterval(keepAlive);
  await disk.close();
  process.stdout.write('closed\n');
} catch (error) {
  process.stdout.write(`refused ${error instanceof VduseError ? error.code : error}\n`);
}
