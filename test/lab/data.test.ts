import { test } from 'node:test';

import { KERNEL_CHANNELS } from '../../lab/kernel.js';
import { runScenario } from './run-scenario.js';

// Four processors, so that four queues are really used, each from a processor of its own.
for (const kernel of KERNEL_CHANNELS) {
  test(`Debian ${kernel}: data`, async (context) => {
    await runScenario(context, { script: new URL('guest/data.js', import.meta.url), kernel, smp: 4 });
  });
}
