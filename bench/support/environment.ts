/** What a result was measured on: without that a figure says nothing. */
import { execFileSync } from 'node:child_process';
import { cpus, release, totalmem } from 'node:os';

export interface Environment {
  readonly date: string;
  readonly processor: string;
  readonly processors: number;
  readonly memoryGib: number;
  readonly kernel: string;
  readonly node: string;
  readonly programs: Readonly<Record<string, string>>;
}

function firstLine(program: string): string {
  try {
    return execFileSync(program, ['--version'], { stdio: ['ignore', 'pipe', 'ignore'] })
      .toString()
      .split('\n')[0];
  } catch {
    return 'not there';
  }
}

export function readEnvironment(programs: readonly string[], fio: string): Environment {
  const processors = cpus();
  return {
    date: new Date().toISOString().slice(0, 10),
    processor: processors[0]?.model ?? 'unknown',
    processors: processors.length,
    memoryGib: Math.round(totalmem() / 1024 ** 3),
    kernel: release(),
    node: process.version,
    programs: { ...Object.fromEntries(programs.map((name) => [name, firstLine(name)])), fio },
  };
}

export function describeEnvironment(environment: Environment): string {
  const { processors, processor, memoryGib, kernel, node, programs, date } = environment;
  return (
    `Measured ${date} on ${processors} processors (${processor}), ${memoryGib} GiB, Linux ${kernel}, Node ${node}; ` +
    `${Object.values(programs).join('; ')}.`
  );
}
