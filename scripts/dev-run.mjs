// Starting programs: with progress while something is prepared, and with everything passed on for the task itself.

import { spawn } from 'node:child_process';
import { constants } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** A path in the checkout, wherever the command was typed. */
export function checkout(...parts) {
  return join(root, ...parts);
}

export function say(line) {
  process.stderr.write(`dev: ${line}\n`);
}

export function finish(status, message) {
  say(message);
  process.exit(status);
}

const QUIET_MS = 2_000;
const LINE_EVERY_MS = 10_000;

/** Shows what is being waited for and since when, from the third second on. Gives the function that ends it. */
function startProgress(label) {
  const started = Date.now();
  const onTerminal = process.stderr.isTTY === true;
  let lastLine = started + QUIET_MS - LINE_EVERY_MS;
  const timer = setInterval(() => {
    const now = Date.now();
    if (now - started < QUIET_MS) return;
    const text = `dev: ${label} … ${Math.round((now - started) / 1000)} s`;
    if (onTerminal) process.stderr.write(`\r\x1b[K${text}`);
    else if (now - lastLine >= LINE_EVERY_MS) {
      lastLine = now;
      process.stderr.write(`${text}\n`);
    }
  }, 250);
  return () => {
    clearInterval(timer);
    if (onTerminal && Date.now() - started >= QUIET_MS) process.stderr.write('\r\x1b[K');
  };
}

/** Runs a preparation step to its end, keeping what it prints for the case that it fails. */
export async function runStep(label, program, args, env = {}) {
  const stop = startProgress(label);
  try {
    return await new Promise((done) => {
      const child = spawn(program, args, {
        cwd: root,
        env: { ...process.env, ...env },
        stdio: ['ignore', 'pipe', 'pipe'],
      });
      let output = '';
      const collect = (chunk) => {
        output += chunk;
      };
      child.stdout.on('data', collect);
      child.stderr.on('data', collect);
      child.on('error', (error) => done({ status: 127, output: error.message }));
      child.on('close', (status) => done({ status: status ?? 1, output }));
    });
  } finally {
    stop();
  }
}

/** Runs the task itself: same terminal, signals passed on, its exit status given back. */
export async function runTask(program, args) {
  const child = spawn(program, args, { stdio: 'inherit', cwd: resolve('.') });
  const forward = (signal) => child.kill(signal);
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'];
  // Ctrl-C reaches the task by itself, as the terminal sends it to all; this process must outlive it to report.
  for (const signal of signals) process.on(signal, forward);
  // `npm run` hands SIGTERM to the shell that it puts in between, which dies of it without a word to this process.
  const parent = process.ppid;
  const orphaned = setInterval(() => {
    if (process.ppid !== parent) forward('SIGTERM');
  }, 500);
  try {
    return await new Promise((done) => {
      child.on('error', (error) => finish(70, `${program} can't be started: ${error.message}`));
      child.on('close', (status, signal) => done(status ?? 128 + (constants.signals[signal] ?? 0)));
    });
  } finally {
    clearInterval(orphaned);
    for (const signal of signals) process.off(signal, forward);
  }
}
