/** Runs a scenario of test/lab/guest in the machine, and shows its checks as tests of their own. */
import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { fileURLToPath } from 'node:url';

import { LabError } from '../../lab/errors.js';
import { type LabOptions, runInLab } from '../../lab/run.js';
import { type OutcomeLine, outcomeMark } from './guest/checks.js';

export interface Scenario
  extends Pick<LabOptions, 'kernel' | 'smp' | 'memoryMib' | 'sharedMemory' | 'qemuArguments' | 'onOutput'> {
  /** The compiled script. */
  readonly script: URL;
  /** Only the checks whose names have one of these. */
  readonly only?: readonly string[];
  readonly timeoutMs?: number;
  /** Variables of the script's environment. */
  readonly env?: Readonly<Record<string, string>>;
}

/** The lines of people's output that a failure shows. */
const lastLines = 60;

interface Outcome {
  end: Extract<OutcomeLine, { kind: 'end' }> | undefined;
  /** What was said besides, from the check's begin to its end. */
  readonly said: string[];
}

/** The outcomes by name in the order of the plan, and what was said outside of checks. */
function readOutput(output: string): { outcomes: Map<string, Outcome>; said: string[] } {
  const outcomes = new Map<string, Outcome>();
  const outside: string[] = [];
  let said = outside;
  for (const text of output.split('\n')) {
    if (!text.startsWith(outcomeMark)) {
      said.push(text);
      continue;
    }
    const line = JSON.parse(text.slice(outcomeMark.length)) as OutcomeLine;
    if (line.kind === 'plan') {
      for (const name of line.names) {
        outcomes.set(name, { end: undefined, said: [] });
      }
      continue;
    }
    const outcome = outcomes.get(line.name);
    assert(outcome !== undefined, `a check that was not announced: ${line.name}`);
    said = outcome.said;
    if (line.kind === 'end') {
      outcome.end = line;
    }
  }
  return { outcomes, said: outside };
}

function tail(lines: readonly string[]): string {
  return lines.slice(-lastLines).join('\n').trim();
}

interface Run {
  readonly output: string;
  /** Why the machine's work did not end as it should; undefined where it did. */
  readonly failure: string | undefined;
}

async function run(scenario: Scenario): Promise<Run> {
  const { script, only, timeoutMs = 1_200_000, env: own, ...machine } = scenario;
  const command = ['node', '--enable-source-maps', fileURLToPath(script)];
  const env = { ...own, ...(only === undefined ? {} : { VDUSE_LAB_ONLY: only.join('\n') }) };
  try {
    const { exitStatus, output, consoleTail } = await runInLab({ ...machine, command, timeoutMs, env });
    // 1: a check failed, and tells so itself.
    const failure = exitStatus <= 1 ? undefined : `exit status ${exitStatus}; console:\n${consoleTail}`;
    return { output, failure };
  } catch (error) {
    if (!(error instanceof LabError) || error.output === '') {
      throw error;
    }
    return { output: error.output, failure: `${error.message}\nconsole:\n${error.consoleTail}` };
  }
}

function formatFigures(figures: Readonly<Record<string, number | string>>): string {
  return Object.entries(figures)
    .map(([name, value]) => `${name}: ${value}`)
    .join(', ');
}

/** A test for every check of the scenario. */
export async function runScenario(test: TestContext, scenario: Scenario): Promise<void> {
  const { output, failure } = await run(scenario);
  const { outcomes, said } = readOutput(output);
  for (const [name, { end, said: saidInCheck }] of outcomes) {
    await test.test(name, (check) => {
      if (end === undefined) {
        assert.fail(`this check did not come to its end\n${tail(saidInCheck)}\n${failure ?? ''}`);
      }
      if (end.error !== undefined) {
        assert.fail(`${end.error}\nsaid meanwhile:\n${tail(saidInCheck)}`);
      }
      const seconds = `${(end.milliseconds / 1000).toFixed(1)} s`;
      check.diagnostic(end.figures === undefined ? seconds : `${seconds}; ${formatFigures(end.figures)}`);
    });
  }
  assert(outcomes.size > 0, `the scenario announced no checks:\n${tail(said)}\n${failure ?? ''}`);
  assert.equal(failure, undefined, `the scenario did not end well:\n${tail(said)}`);
}
