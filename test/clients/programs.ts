/** Other people's programs, run beside this process, which serves them. */
import { spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { closeSync, openSync, writeSync } from 'node:fs';

const mebibyte = 1 << 20;

export function makeRandom(path: string, mib: number): void {
  const block = Buffer.alloc(mebibyte);
  const fd = openSync(path, 'w');
  for (let n = 0; n < mib; n++) {
    randomFillSync(block);
    writeSync(fd, block);
  }
  closeSync(fd);
}

/** Resolves with what the program printed; rejects when it fails. */
export function runProgram(program: string, args: readonly string[], cwd?: string): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    const collect = (chunk: Buffer): void => {
      output += chunk.toString();
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    child.once('error', reject);
    child.once('close', (status) =>
      status === 0 ? resolve(output) : reject(new Error(`${program} ended with ${status}: ${output}`)),
    );
  });
}
