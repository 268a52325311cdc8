// What has to be there before a task can start, put there if it's missing.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

import { checkout, finish, runStep, say } from './dev-run.mjs';

function modified(path) {
  return statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

/** npm leaves its own copy of the lock file in node_modules, dated at the installation. */
export async function ensureDependencies() {
  const installed = modified(checkout('node_modules/.package-lock.json'));
  if (installed >= modified(checkout('package-lock.json'))) return;
  say(installed === 0 ? 'installing the npm dependencies' : 'package-lock.json has changed: npm ci');
  const flags = ['--no-audit', '--no-fund', '--loglevel=error'];
  let { status, output } = await runStep('npm ci', 'npm', ['ci', ...flags]);
  if (status !== 0 && output.includes('EUSAGE')) {
    // `npm ci` wants the optional packages of every platform in the lock file, even those that npm left out when
    // it wrote it. `npm install` takes the locked versions of those that are there.
    say('npm ci finds the lock file incomplete; npm install instead');
    ({ status, output } = await runStep('npm install', 'npm', ['install', '--no-save', ...flags]));
  }
  if (status !== 0) finish(69, `npm can't install the dependencies, status ${status}:\n${output}`);
}

/** The newest change among the sources; a directory's own date tells of files that came or went. */
function newestSource(directory) {
  let newest = modified(directory);
  for (const entry of readdirSync(directory, { withFileTypes: true })) {
    const path = join(directory, entry.name);
    if (entry.isDirectory()) newest = Math.max(newest, newestSource(path));
    else if (entry.name.endsWith('.ts')) newest = Math.max(newest, modified(path));
  }
  return newest;
}

export async function ensureBuilt() {
  const sources = ['src', 'test', 'examples', 'bench', 'lab', 'tour']
    .map((name) => checkout(name))
    .filter(existsSync);
  const inputs = ['tsconfig.json', 'package-lock.json'].map((name) => modified(checkout(name)));
  const newest = Math.max(...inputs, ...sources.map(newestSource));
  const stamp = checkout('build/.dev-stamp');
  if (modified(stamp) >= newest && existsSync(checkout('build/.tsbuildinfo'))) return;

  // Sources that change while the compiler reads them must look newer than this build.
  const started = new Date();
  say('compiling (npx tsc -p tsconfig.json)');
  const { status, output } = await runStep('tsc', 'npx', [
    '--no-install',
    'tsc',
    '-p',
    checkout('tsconfig.json'),
  ]);
  if (status !== 0) {
    process.stderr.write(`${output.trimEnd()}\n`);
    if (!process.env.VDUSE_IGNORE_TYPE_ERRORS) {
      finish(70, 'the compiler found errors (above). VDUSE_IGNORE_TYPE_ERRORS=1 runs the rest regardless.');
    }
    say('going on in spite of the compiler errors, as VDUSE_IGNORE_TYPE_ERRORS says');
    return;
  }
  mkdirSync(checkout('build'), { recursive: true });
  writeFileSync(stamp, `${started.toISOString()}\n`);
  utimesSync(stamp, started, started);
}

const PACKAGE_QUERY = 'dpkg-query';

function isInstalled(name) {
  const { stdout } = spawnSync(PACKAGE_QUERY, ['--status', name], { encoding: 'utf8' });
  return /^Status: .* installed$/m.test(stdout);
}

function has(program) {
  return spawnSync(program, ['--version'], { stdio: 'ignore' }).error === undefined;
}

/**
 * Debian packages, a name and a reason each. Where they can't be installed from here, says what to type; and
 * stops there if the task can't do without.
 */
export async function ensurePackages(packages, required) {
  if (!has(PACKAGE_QUERY)) {
    // Another distribution: the task itself finds out which programs are missing.
    say(
      `this isn't a Debian; the programs of these packages should be there: ${Object.keys(packages).join(', ')}`,
    );
    return;
  }
  const missing = Object.keys(packages).filter((name) => !isInstalled(name));
  if (missing.length === 0) return;

  const command = ['apt-get', 'install', '--yes', '--no-install-recommends', ...missing];
  for (const name of missing) say(`missing: ${name}, which ${packages[name]}`);
  if (process.getuid() !== 0 || !has('apt-get')) {
    const advice = `install them with:\n  sudo ${command.join(' ')}`;
    if (required) finish(69, advice);
    say(advice);
    return;
  }
  const [program, ...args] = command;
  const quiet = { DEBIAN_FRONTEND: 'noninteractive' };
  say(`installing ${missing.join(' ')}`);
  const install = () => runStep(`${program} install`, program, args, quiet);
  let { status, output } = await install();
  if (status !== 0) {
    // Package lists that are absent or out of date are the usual reason.
    say('that failed; once more after apt-get update');
    await runStep('apt-get update', 'apt-get', ['update'], quiet);
    ({ status, output } = await install());
  }
  if (status === 0) return;
  const message = `\`${command.join(' ')}\` failed with status ${status}:\n${output}`;
  if (required) finish(69, message);
  say(message);
}
