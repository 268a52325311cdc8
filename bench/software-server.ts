/** A software disk as NBD on a Unix socket, for bench/software.ts: SOCKET IMAGE direct|bounce. */
import { createLogger } from '../src/base/log.js';
import { openBlockNode } from '../src/block/open.js';
import { SoftwareDisk } from '../src/daemon/software-disk.js';
import { QueueThreadPool } from '../src/worker/queue-thread-pool.js';

const [path, filename, mode] = process.argv.slice(2);
const logger = createLogger({ level: 'warn' });
const hosts = new QueueThreadPool();
const node = await openBlockNode({ driver: 'file', filename, nodeName: 'disk', discard: 'unmap' });
const disk = await SoftwareDisk.create({ id: 'disk', name: 'disk', node, writable: true }, { hosts, logger });
await disk.serveNbd({
  addresses: [{ type: 'unix', path }],
  exportName: '',
  zeroCopy: mode === 'direct',
});
process.once('SIGTERM', async () => {
  const { bytesCopied } = disk.disk.domain;
  const { reads, writes, readBytes, writeBytes } = disk.blockExport.statistics;
  await disk.close();
  await node.close();
  await hosts.close();
  process.stdout.write(
    `${JSON.stringify({ bytesCopied, requests: reads + writes, payload: readBytes + writeBytes })}\n`,
  );
});
