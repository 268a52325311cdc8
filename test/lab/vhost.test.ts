import { test } from 'node:test';

import { runScenario } from './run-scenario.js';

const script = new URL('guest/vhost.js', import.meta.url);

test('Debian stable: vhost-vDPA', async (context) => {
  await runScenario(context, { script, kernel: 'stable', smp: 2 });
});

test('Debian unstable: vhost-vDPA', async (context) => {
  await runScenario(context, { script, kernel: 'unstable', smp: 2, only: ['transfers', 'stuck'] });
});
