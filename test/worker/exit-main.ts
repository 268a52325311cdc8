/** The program of process-exit.test.ts: a process with queue threads that sleep, which ends in one way or another. */
import { openBlockNode } from '../../src/block/open.js';
import { QueueThreadPool } from '../../src/worker/queue-thread-pool.js';
import { localNode, startBlk } from '../support/blk.js';
import { MemoryDisk } from '../support/memory-disk.js';

const [how] = process.argv.slice(2);
const pool = new QueueThreadPool({ size: 4 });
const node = await openBlockNode({ driver: 'null-co', nodeName: 'n' });
const threads = await startBlk({ node, hosts: pool, device: { queueCount: 4 } });
const local = await startBlk({ node: localNode(new MemoryDisk({ size: 4096 })), hosts: pool });
await threads.client.read(0, 512, 3);
await local.client.read(0, 512);
console.log('served');
const end = performance.now();
process.on('exit', () => console.log(`exit after ${Math.round(performance.now() - end)} ms`));
switch (how) {
  case 'exit':
    process.exit(3);
    break;
  case 'throw':
    setTimeout(() => {
      throw new Error('thrown on purpose');
    });
    break;
  case 'close':
    await threads.close();
    await local.close();
    await pool.close();
    break;
  case 'idle':
    // The devices are stopped, and nobody closes the pool.
    await threads.close();
    await local.close();
    break;
}
