// Which compiled tests make up a suite.

import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';

import { checkout } from './dev-run.mjs';

export const testSuites = ['unit', 'software', 'programs', 'clients', 'lab', 'all'];

/** From the sources: the compiler leaves the output of deleted files where it was. */
function compiledTests(directory) {
  if (!existsSync(checkout(directory))) return [];
  return readdirSync(checkout(directory), { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const path = join(directory, entry.name);
      if (entry.isDirectory()) return compiledTests(path);
      return path.endsWith('.test.ts') ? [checkout('build', path.replace(/\.ts$/, '.js'))] : [];
    });
}

/** The runs of node's test runner for a suite, in order. */
export function testFiles(suite) {
  const all = compiledTests('test');
  const isIn = (name) => (path) => path.startsWith(`${checkout('build/test', name)}/`);
  // Tests wait more than they work, so a few at a time also on few processors; one that hangs is named, not waited for.
  const unitArgs = ['--test-concurrency=4', '--test-timeout=300000'];
  const unit = {
    title: 'unit',
    files: all.filter((path) => !['programs', 'clients', 'lab'].some((name) => isIn(name)(path))),
    args: unitArgs,
    needsLab: false,
  };
  const software = {
    title: 'software',
    files: all.filter((path) => isIn('software')(path) || isIn('software-vduse')(path)),
    args: unitArgs,
    needsLab: false,
  };
  // Our own commands as processes, dozens of them: half a second each.
  const programs = { title: 'program', files: all.filter(isIn('programs')), args: unitArgs };
  // Programs of Debian's on disks of ours: slower than units, and in need of packages.
  const clients = {
    title: 'client',
    files: all.filter(isIn('clients')),
    args: ['--test-timeout=600000'],
    needsClients: true,
  };
  // One machine at a time: two would take each other's processor away and run into time limits.
  const lab = {
    title: 'lab',
    files: all.filter(isIn('lab')),
    args: ['--test-concurrency=1', '--test-timeout=1200000'],
    needsLab: true,
  };
  const suites = { unit, software, programs, clients, lab };
  return suite === 'all' ? [unit, programs, clients, lab] : [suites[suite]];
}
