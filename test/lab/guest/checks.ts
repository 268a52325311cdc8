/**
 * What a scenario in the machine is made of: named checks, one after the other. Each outcome is a line of its own
 * on stdout, which the host turns into a test (run-scenario.ts). Everything else on stdout is for people.
 */
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { patience } from './shell.js';

/** In front of a line's JSON. */
export const outcomeMark = '##outcome ';

/** What a check measured, shown beside its name. */
export type Figures = Readonly<Record<string, number | string>>;

export type OutcomeLine =
  | { readonly kind: 'plan'; readonly names: readonly string[] }
  | { readonly kind: 'begin'; readonly name: string }
  | {
      readonly kind: 'end';
      readonly name: string;
      readonly milliseconds: number;
      readonly figures?: Figures;
      readonly error?: string;
    };

export interface CheckContext {
  /** Runs when the check is over, the last one first, whatever came of it. */
  after(undo: () => unknown): void;
}

export interface Check {
  readonly name: string;
  /** Milliseconds; what hangs longer ends the scenario, for nobody knows what it still holds. */
  readonly timeoutMs?: number;
  /** Fails where the kernel tells of an I/O error, whoever was told besides. */
  readonly noIoErrors?: true;
  readonly run: (context: CheckContext) => Promise<Figures | undefined>;
}

const defaultTimeoutMs = 90_000;

function tell(line: OutcomeLine): void {
  process.stdout.write(`${outcomeMark}${JSON.stringify(line)}\n`);
}

function describe(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error);
}

/** Marks the kernel's log, so that what follows can be found again. */
function markKernelLog(name: string): string {
  const mark = `vduse-lab: ${name}`;
  writeFileSync('/dev/kmsg', `${mark}\n`);
  return mark;
}

function kernelLogAfter(mark: string): string {
  const log = spawnSync('dmesg', { encoding: 'utf8', maxBuffer: 1 << 26 }).stdout;
  const at = log.lastIndexOf(mark);
  return log.slice(at === -1 ? 0 : at + mark.length).trim();
}

async function runUndo(undo: readonly (() => unknown)[]): Promise<unknown[]> {
  const errors: unknown[] = [];
  for (const step of [...undo].reverse()) {
    try {
      await step();
    } catch (error) {
      errors.push(error);
    }
  }
  return errors;
}

/** The check, then what it wants undone, within its time. */
async function runWithUndo(check: Check): Promise<Figures | undefined> {
  const undo: (() => unknown)[] = [];
  let figures: Figures | undefined;
  const errors: unknown[] = [];
  try {
    figures = await check.run({ after: (step) => undo.push(step) });
  } catch (error) {
    errors.push(error);
  }
  errors.push(...(await runUndo(undo)));
  if (errors.length > 0) {
    throw new Error(errors.map(describe).join('\nand afterwards: '));
  }
  return figures;
}

async function within(check: Check): Promise<Figures | undefined> {
  const done = new AbortController();
  const timeoutMs = (check.timeoutMs ?? defaultTimeoutMs) * patience;
  const timeout = async (): Promise<never> => {
    await sleep(timeoutMs, undefined, { signal: done.signal });
    throw new HangError(`not over after ${timeoutMs / 1000} s`);
  };
  try {
    return await Promise.race([runWithUndo(check), timeout()]);
  } finally {
    done.abort();
  }
}

class HangError extends Error {}

const listTasks = `
for process in /proc/[0-9]*; do
  command=$(tr '\\0' ' ' <$process/cmdline)
  [ -n "$command" ] || continue
  state=$(sed 's/.*) //' $process/stat | cut -c1)
  echo "$(basename $process) $state $command"
  [ $state != D ] || cat $process/stack
done 2>/dev/null`;

/** Who is there; and of those that wait, where in the kernel. */
function blockedTasks(): string {
  return spawnSync('/bin/sh', ['-c', listTasks], { encoding: 'utf8', timeout: 20_000 }).stdout;
}

/**
 * What a kernel says when something is wrong with the kernel or with the driver's work. I/O errors are not in
 * it: some checks cause them.
 */
const alarming = /\b(BUG|WARNING|Oops|general protection|Call Trace|hung_task|blocked for more than)\b.*/;

const ioError = /.*(I\/O error|EXT4-fs (error|warning)|JBD2.*error|Aborting journal|lost .*page write).*/;

/** The line of the kernel's log that a check must not leave; undefined where there is none. */
function findAlarm(check: Check, log: string): string | undefined {
  return (alarming.exec(log) ?? (check.noIoErrors ? ioError.exec(log) : null))?.[0];
}

/** Runs all checks, tells their outcomes, and ends the process. A check that fails doesn't keep the others from running. */
export async function runChecks(all: readonly Check[]): Promise<never> {
  const wanted = (process.env['VDUSE_LAB_ONLY'] ?? '').split('\n');
  const checks = all.filter(({ name }) => wanted.some((part) => name.includes(part)));
  tell({ kind: 'plan', names: checks.map((check) => check.name) });
  let failed = false;
  for (const check of checks) {
    const { name } = check;
    tell({ kind: 'begin', name });
    const mark = markKernelLog(name);
    const started = performance.now();
    const milliseconds = (): number => Math.round(performance.now() - started);
    try {
      const figures = await within(check);
      const alarm = findAlarm(check, kernelLogAfter(mark));
      if (alarm !== undefined) {
        throw new Error(`the kernel complains: ${alarm}`);
      }
      tell({
        kind: 'end',
        name,
        milliseconds: milliseconds(),
        ...(figures === undefined ? {} : { figures }),
      });
    } catch (error) {
      failed = true;
      const log = kernelLogAfter(mark).split('\n').slice(-40).join('\n');
      const tasks = error instanceof HangError ? `\nprocesses:\n${blockedTasks()}` : '';
      const told = `${describe(error)}${tasks}\nkernel log of this check:\n${log}`;
      tell({ kind: 'end', name, milliseconds: milliseconds(), error: told });
      if (error instanceof HangError) {
        // What it still holds would keep an orderly exit waiting.
        process.kill(process.pid, 'SIGKILL');
      }
    }
  }
  process.exit(failed ? 1 : 0);
}
