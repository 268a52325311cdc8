import { test } from 'node:test';

import { runScenario } from './run-scenario.js';

const script = new URL('guest/storage-daemon.js', import.meta.url);

test('Debian stable: vduse-storage-daemon', async (context) => {
  await runScenario(context, { script, kernel: 'stable', smp: 2 });
});

test('Debian unstable: vduse-storage-daemon', async (context) => {
  await runScenario(context, { script, kernel: 'unstable', smp: 2, only: ['from start to quit'] });
});
