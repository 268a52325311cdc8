import { test } from 'node:test';

import { runScenario } from './run-scenario.js';

test('Debian stable: vduse', async (context) => {
  const script = new URL('guest/command.js', import.meta.url);
  await runScenario(context, { script, kernel: 'stable', smp: 2 });
});
