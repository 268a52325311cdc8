/** The tests of the file engine once more, with system calls in io_uring's place. */
import { ringVariable } from '../../src/native/open-ring.js';

process.env[ringVariable] = 'system-calls';
await import('./file-engine.test.js');
