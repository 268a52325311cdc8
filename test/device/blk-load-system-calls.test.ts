/** The tests of the load on virtio-blk once more, with system calls in io_uring's place. */
import { ringVariable } from '../../src/native/open-ring.js';

process.env[ringVariable] = 'system-calls';
await import('./blk-load.test.js');
