/** A software disk as NBD on a Unix socket, for bench/software.ts: SOCKET IMAGE direct|bounce. */
import { createLogger } from '../src/base/log.js';
import { openSoftwareDisk } from '../src/daemon/open-software-disk.js';

const [path, image, mode] = process.argv.slice(2);
const opened = await openSoftwareDisk(image, { name: 'disk', logger: createLogger({ level: 'warn' }) });
await opened.serveNbd({ address: { type: 'unix', path }, bounce: mode === 'bounce' });
process.once('SIGTERM', async () => {
  const { bytesCopied } = opened.disk.domain;
  const { reads, writes, readBytes, writeBytes } = opened.statistics;
  await opened.close();
  const counters = { bytesCopied, requests: reads + writes, payload: readBytes + writeBytes };
  process.stdout.write(`${JSON.stringify(counters)}\n`);
});
