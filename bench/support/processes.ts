/** Processes that a benchmark starts and ends, and what /proc says of them. */
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

const START_LIMIT_MS = 30_000;
const END_LIMIT_MS = 10_000;
const PROGRAM_LIMIT_MS = 120_000;
const SHOWN_CHARACTERS = 1_000;

export interface Running {
  readonly pid: number;
  /** What it has printed, both streams; the end of it, if it is long. */
  readonly output: () => string;
  readonly stop: () => Promise<void>;
}

/** Starts a server and waits until its sockets are there. */
export async function startServer(command: readonly string[], sockets: readonly string[]): Promise<Running> {
  const [program, ...args] = command;
  // What a server that was killed has left would be taken for the new one's.
  for (const path of sockets) rmSync(path, { force: true });
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  const collect = (chunk: Buffer): void => {
    output = (output + chunk.toString()).slice(-16_384);
  };
  child.stdout.on('data', collect);
  child.stderr.on('data', collect);
  let failure: string | undefined;
  const ended = new Promise<void>((resolve) => {
    child.once('error', (error) => {
      failure = error.message;
      resolve();
    });
    child.once('close', (status, signal) => {
      failure ??= `it ended with ${signal ?? `status ${status}`}`;
      resolve();
    });
  });
  const stop = async (): Promise<void> => {
    if (failure === undefined) child.kill('SIGTERM');
    const force = setTimeout(() => child.kill('SIGKILL'), END_LIMIT_MS);
    await ended;
    clearTimeout(force);
  };

  const limit = Date.now() + START_LIMIT_MS;
  while (failure === undefined && !sockets.every((path) => existsSync(path))) {
    if (Date.now() > limit) failure = `no socket after ${START_LIMIT_MS / 1000} s`;
    await sleep(10);
  }
  if (failure !== undefined) {
    const reason = failure;
    child.kill('SIGKILL');
    throw new Error(`${program} could not be started: ${reason}\n  ${command.join(' ')}\n${output}`);
  }
  return { pid: child.pid as number, output: () => output, stop };
}

/** A program that failed, or that has not come to its end in time. */
export class ProgramError extends Error {
  /** In a few words. */
  readonly reason: string;

  constructor(message: string, reason = message) {
    super(message);
    this.reason = reason;
  }
}

export class TimeLimitError extends ProgramError {}

function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean).map(Number);
  } catch {
    // It has ended.
    return [];
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch {
    // Gone already.
  }
}

/**
 * Runs a program to its end and gives its standard output. A run that is aborted, that takes too long or that fails
 * ends all that it has started.
 */
export async function runProgram(
  command: readonly string[],
  { signal, limitMs }: { signal?: AbortSignal; limitMs?: number } = {},
): Promise<string> {
  signal?.throwIfAborted();
  const [program, ...args] = command;
  // A process group of its own, to end what it starts. fio's processes make sessions of their own, so its children are
  // looked up too.
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  const end = (): void => {
    if (child.pid !== undefined) for (const pid of [...childrenOf(child.pid), -child.pid]) kill(pid);
  };
  let late = false;
  const limit = setTimeout(() => {
    late = true;
    end();
  }, limitMs ?? PROGRAM_LIMIT_MS);
  signal?.addEventListener('abort', end);
  let output = '';
  let errors = '';
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk.toString();
  });
  child.stderr.on('data', (chunk: Buffer) => {
    errors += chunk.toString();
  });
  const status = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject);
    // What it leaves behind would keep its output open.
    child.once('exit', end);
    child.once('close', resolve);
  }).finally(() => {
    clearTimeout(limit);
    signal?.removeEventListener('abort', end);
  });
  signal?.throwIfAborted();
  if (late) throw new TimeLimitError(`no end within ${((limitMs ?? PROGRAM_LIMIT_MS) / 1000).toFixed(0)} s`);
  if (status !== 0) {
    const line = command.join(' ');
    const shown = line.length > SHOWN_CHARACTERS ? `${line.slice(0, SHOWN_CHARACTERS)} ...` : line;
    throw new ProgramError(
      `\`${shown}\` ended with status ${status}:\n${errors.slice(-SHOWN_CHARACTERS)}`,
      errors.trim().split('\n').at(-1) || `status ${status}`,
    );
  }
  return output;
}

/** Seconds of processor time, of all threads, those that have ended too, from the text of /proc/PID/stat. */
export function parseCpuSeconds(stat: string, ticksPerSecond: number): number {
  // The name in parentheses may hold spaces and parentheses: fields are counted from the last one that closes.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond;
}

let knownTicksPerSecond: number | undefined;

function ticksPerSecond(): number {
  knownTicksPerSecond ??= Number(execFileSync('getconf', ['CLK_TCK']).toString());
  return knownTicksPerSecond;
}

export function cpuSeconds(pid: number): number {
  return parseCpuSeconds(readFileSync(`/proc/${pid}/stat`, 'utf8'), ticksPerSecond());
}

/** Seconds of processor time of this process's children that have ended, and of theirs. */
export function childCpuSeconds(): number {
  const stat = readFileSync('/proc/self/stat', 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[13]) + Number(fields[14])) / ticksPerSecond();
}

/** Seconds that the processors did not idle, from the text of /proc/stat; what the hypervisor kept back counts too. */
export function parseBusySeconds(stat: string, ticksPerSecond: number): number {
  const [user, nice, system, , , irq, softirq, steal] = stat
    .split('\n', 1)[0]
    .split(/\s+/)
    .slice(1)
    .map(Number);
  return (user + nice + system + irq + softirq + steal) / ticksPerSecond;
}

export function busySeconds(): number {
  return parseBusySeconds(readFileSync('/proc/stat', 'utf8'), ticksPerSecond());
}

export interface MemoryUse {
  /** Everything resident. */
  readonly residentKib: number;
  /** Without memory that is shared with others, which is where a client's memory is. */
  readonly ownKib: number;
}

export function parseMemoryUse(status: string): MemoryUse {
  const field = (name: string): number =>
    Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1] ?? 0);
  return { residentKib: field('VmRSS'), ownKib: field('RssAnon') + field('RssFile') };
}

export function memoryUse(pid: number): MemoryUse {
  return parseMemoryUse(readFileSync(`/proc/${pid}/status`, 'utf8'));
}

export function threadCount(pid: number): number {
  return Number(/^Threads:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0);
}
