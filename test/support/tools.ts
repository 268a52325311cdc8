/** Programs that some tests compare with. */
import { spawnSync } from 'node:child_process';
import type { TestContext } from 'node:test';

/**
 * Whether the program can be run. Where it can't the test is skipped and says why; under CI it fails, so that
 * a comparison is never lost unseen.
 */
export function haveTool(t: TestContext, name: string, debianPackage: string): boolean {
  if (spawnSync(name, ['--version']).status === 0) {
    return true;
  }
  const reason = `${name} is not installed (Debian: ${debianPackage})`;
  if (process.env['CI'] === 'true') {
    throw new Error(reason);
  }
  t.skip(reason);
  return false;
}

/** The command that runs another one with mounts of its own, which go away with it; undefined where that is forbidden. */
export function privateMounts(): readonly string[] | undefined {
  const root = process.geteuid?.() === 0;
  const command = ['unshare', ...(root ? [] : ['--user', '--map-root-user']), '--mount'];
  const probe = spawnSync(command[0], [...command.slice(1), 'mount', '-t', 'tmpfs', 'none', '/mnt']);
  return probe.status === 0 ? command : undefined;
}
