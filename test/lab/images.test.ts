import { test } from 'node:test';

import { runScenario } from './run-scenario.js';

test('Debian stable: images', async (context) => {
  const script = new URL('guest/images.js', import.meta.url);
  await runScenario(context, { script, kernel: 'stable', smp: 2 });
});
