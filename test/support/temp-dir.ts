/** A directory for one test file, gone when its tests are over. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after } from 'node:test';

export function makeTempDir(): string {
  const path = mkdtempSync(join(tmpdir(), 'vduse-test-'));
  after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}
