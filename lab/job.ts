import { existsSync } from 'node:fs';
import { dirname } from 'node:path';

import type { Machine } from './machine.js';

export interface Job {
  /** Program and arguments; or a line for the shell. */
  command: readonly string[] | string;
  cwd: string;
  env: Readonly<Record<string, string>>;
  results: string | undefined;
  /** Run on a terminal of this size instead of with its output on a pipe. */
  terminal: { rows: number; columns: number } | undefined;
}

export function shellQuote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`;
}

function jobEnvironment(job: Job): Record<string, string> {
  const path = ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];
  return {
    // The node that runs the lab is also the job's, wherever it is installed.
    PATH: [...new Set([dirname(process.execPath), ...path])].join(':'),
    HOME: '/root',
    USER: 'root',
    LOGNAME: 'root',
    SHELL: existsSync('/bin/bash') ? '/bin/bash' : '/bin/sh',
    LANG: 'C.UTF-8',
    TERM: job.terminal === undefined ? 'dumb' : (process.env['TERM'] ?? 'vt100'),
    VDUSE_LAB: '1',
    ...(job.results === undefined ? {} : { VDUSE_LAB_RESULTS: job.results }),
    ...job.env,
  };
}

function jobScript(job: Job): string {
  const words = typeof job.command === 'string' ? ['/bin/sh', '-c', job.command] : job.command;
  const environment = Object.entries(jobEnvironment(job)).map(
    ([name, value]) => `${name}=${shellQuote(value)}`,
  );
  return [
    `export ${environment.join(' ')}`,
    `cd ${shellQuote(job.cwd)} || exit 126`,
    `exec ${words.map(shellQuote).join(' ')}`,
    '',
  ].join('\n');
}

function settings(job: Job): string {
  // A tmpfs there would hide a checkout below it; the overlay makes the directory writable all the same.
  const tmpfs = ['/tmp'].filter((path) => !`${job.cwd}/`.startsWith(`${path}/`));
  return [
    `now=${Math.round(Date.now() / 1000)}`,
    `tmpfs=${shellQuote(tmpfs.join(' '))}`,
    `results=${shellQuote(job.results ?? '')}`,
    `terminal=${job.terminal === undefined ? 0 : 1}`,
    `rows=${job.terminal?.rows ?? 24} columns=${job.terminal?.columns ?? 80}`,
    '',
  ].join('\n');
}

/** Answers the guest's "ready": see the end of lab/guest/session.sh's first part. */
export function sendJob(machine: Machine, job: Job): void {
  for (const script of [settings(job), jobScript(job)]) {
    machine.send(Buffer.from(script).toString('base64'));
  }
}
