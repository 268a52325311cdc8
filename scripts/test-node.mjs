#!/usr/bin/env node

// Runs the unit tests on other versions of Node: `node scripts/test-node.mjs 24 26`. npm carries the programs in
// its node-linux-* packages, which are kept outside the tree.

import { existsSync, mkdirSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';

import { finish, runStep, runTask, say } from './dev-run.mjs';
import { testFiles } from './dev-tests.mjs';

const cache =
  process.env.VDUSE_CACHE ?? join(process.env.XDG_CACHE_HOME ?? join(homedir(), '.cache'), 'vduse');

async function nodeProgram(version) {
  const folder = join(cache, 'node', version);
  const name = `node-linux-${process.arch}`;
  const program = join(folder, 'node_modules', name, 'bin', 'node');
  if (!existsSync(program)) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, 'package.json'), '{"private":true}\n');
    say(`fetching Node ${version} from npm`);
    const args = [
      'install',
      '--prefix',
      folder,
      '--no-audit',
      '--no-fund',
      '--no-package-lock',
      `${name}@${version}`,
    ];
    const { status, output } = await runStep(`npm install ${name}@${version}`, 'npm', args);
    if (status !== 0) finish(69, `npm can't install Node ${version}, status ${status}:\n${output}`);
  }
  return program;
}

const versions = process.argv.slice(2);
if (versions.length === 0) finish(64, 'which versions? For example: node scripts/test-node.mjs 24 26');

const [{ files, args }] = testFiles('unit');
let worst = 0;
for (const version of versions) {
  const program = await nodeProgram(version);
  say(`unit tests on Node ${version}, ${files.length} files`);
  const status = await runTask(program, [
    '--enable-source-maps',
    '--test',
    '--test-reporter=spec',
    ...args,
    ...files,
  ]);
  worst ||= status;
}
process.exit(worst);
