#!/usr/bin/env node

// Packs the package, installs it into an empty project and uses it as its users do: both commands, and the typed
// imports compiled by a strict TypeScript project.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { checkout, say } from './dev-run.mjs';

const folder = mkdtempSync(join(tmpdir(), 'vduse-package-'));

function run(program, args, cwd = folder) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { cwd, encoding: 'utf8' });
  if (status !== 0) {
    throw new Error(
      `${program} ${args.join(' ')}: status ${status}${error ? ` (${error.message})` : ''}\n${stdout}${stderr}`,
    );
  }
  return stdout;
}

function expect(text, pattern, what) {
  if (!pattern.test(text)) throw new Error(`${what}: ${pattern} is not in\n${text}`);
  say(`${what}: as it should be`);
}

const program = `
import { type BlockDevice, defineBlockDriver, exportDisk, VduseError } from 'vduse';

const zeroes = defineBlockDriver({
  name: 'zeroes',
  open: (size: number): BlockDevice => ({ size, read: async (_offset, buffer) => void buffer.fill(0) }),
});
try {
  const disk = await exportDisk(zeroes(1 << 20), { name: 'package-test', attach: false });
  await disk.close();
  console.log('exported');
} catch (error) {
  if (!(error instanceof VduseError)) throw error;
  console.log(error.code, error.message);
}
`;

const tsconfig = {
  compilerOptions: {
    strict: true,
    module: 'nodenext',
    target: 'es2023',
    types: ['node'],
    skipLibCheck: false,
  },
  include: ['program.ts'],
};

try {
  const [{ filename }] = JSON.parse(run('npm', ['pack', '--json', '--pack-destination', folder], checkout()));
  writeFileSync(join(folder, 'package.json'), '{"name":"empty","private":true,"type":"module"}\n');
  run('npm', ['install', '--no-audit', '--no-fund', join(folder, filename)]);
  expect(run('npx', ['--no-install', 'vduse', '--version']), /^vduse \d+\.\d+\.\d+$/m, 'vduse --version');
  expect(run('npx', ['--no-install', 'vduse', 'export', '--help']), /--read-only/, 'vduse export --help');
  const daemon = ['--no-install', 'vduse-storage-daemon'];
  expect(run('npx', [...daemon, '--version']), /\d+\.\d+\.\d+/, 'vduse-storage-daemon --version');
  expect(run('npx', [...daemon, '--help']), /--blockdev/, 'vduse-storage-daemon --help');

  writeFileSync(join(folder, 'program.ts'), program);
  writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(tsconfig));
  const typeRoots = ['--typeRoots', checkout('node_modules/@types')];
  run(checkout('node_modules/.bin/tsc'), ['-p', folder, ...typeRoots]);
  say('typed imports compile');
  expect(
    run(process.execPath, ['program.js']),
    /^(exported|MODULE_MISSING|PERMISSION_DENIED)/m,
    'the library runs',
  );
} finally {
  rmSync(folder, { recursive: true, force: true });
}
