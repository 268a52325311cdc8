import { test } from 'node:test';

import { runScenario } from './run-scenario.js';

const script = new URL('guest/data.js', import.meta.url);

// Four processors, so that four queues are really used, each from a processor of its own.
test('Debian stable: data', async (context) => {
  await runScenario(context, { script, kernel: 'stable', smp: 4 });
});

test('Debian unstable: data', async (context) => {
  const only = ['on four queues', 'no kick', 'online resize', 'fstrim', 'write-zeroes', 'detach', 'unbound'];
  await runScenario(context, { script, kernel: 'unstable', smp: 2, only });
});
