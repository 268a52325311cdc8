/** A case of the suite: what it asks of a driver, and what it finds beside what is expected. */
import { describeErrno } from '../../src/native/errno.js';
import type { Bench, Platform, Session, SessionOptions } from './bench.js';
import { differences } from './differences.js';

export type Finding = string | number | boolean | readonly (string | number)[];

export interface CaseContext {
  readonly bench: Bench;
  /** The driver, made on first use. */
  session(options?: SessionOptions): Session;
  /** Expects an answer: Linux 7.2's, unless differences.ts has another one for this platform. */
  expect(what: string, found: Finding, expected: Finding): void;
  /** Runs when the case is over, the last one first. */
  after(undo: () => unknown): void;
}

export interface ConformanceCase {
  readonly name: string;
  readonly run: (context: CaseContext) => Promise<void>;
}

export interface CaseResult {
  readonly name: string;
  readonly milliseconds: number;
  /** What was not as expected; empty when the driver conforms. */
  readonly failures: readonly string[];
  /** Every expectation that was looked at, for the table of differences to be complete. */
  readonly looked: readonly string[];
}

/** A result of the seam as people read it: the errno's name, or the number. */
export function outcome(result: number): string | number {
  return result < 0 ? describeErrno(-result).name : result;
}

export function expectedOn(platform: Platform, key: string, expected: Finding): Finding {
  const difference = differences.find((entry) => entry.key === key && entry.platforms.includes(platform));
  return difference === undefined ? expected : difference.found;
}

const caseTimeoutMs = 30_000;

async function withinTime(work: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not over after ${caseTimeoutMs / 1000} s`)), caseTimeoutMs);
  });
  try {
    await Promise.race([work, late]);
  } finally {
    clearTimeout(timer);
  }
}

export async function runCase(bench: Bench, testCase: ConformanceCase): Promise<CaseResult> {
  const failures: string[] = [];
  const looked: string[] = [];
  const undo: (() => unknown)[] = [];
  let session: Session | undefined;
  const started = performance.now();
  const context: CaseContext = {
    bench,
    session: (options) => {
      session ??= bench.open(options ?? {});
      return session;
    },
    expect: (what, found, expected) => {
      const key = `${testCase.name}: ${what}`;
      looked.push(key);
      const wanted = expectedOn(bench.platform, key, expected);
      if (JSON.stringify(found) !== JSON.stringify(wanted)) {
        failures.push(`${key}: ${JSON.stringify(found)} instead of ${JSON.stringify(wanted)}`);
      }
    },
    after: (step) => undo.push(step),
  };
  try {
    await withinTime(testCase.run(context));
  } catch (error) {
    failures.push(`${testCase.name}: ${error instanceof Error ? error.stack : String(error)}`);
  }
  for (const step of undo.reverse()) {
    try {
      await withinTime(Promise.resolve(step()).then(() => undefined));
    } catch (error) {
      failures.push(`${testCase.name}: afterwards: ${error instanceof Error ? error.stack : String(error)}`);
    }
  }
  return { name: testCase.name, milliseconds: Math.round(performance.now() - started), failures, looked };
}
