import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { silentLogger } from '../../src/base/log.js';

const logModule = fileURLToPath(new URL('../../src/base/log.js', import.meta.url));

/** Logs in a process of its own and ends it at once: the logger owns standard error. */
function linesOf(settings: object): { stdout: string; lines: string[] } {
  const program = `
    import { createLogger } from ${JSON.stringify(logModule)};
    const logger = createLogger(${JSON.stringify(settings)});
    logger.debug('too fine');
    logger.info({ device: 'disk0' }, 'attached');
    logger.child({ queue: 1 }).error('the last line');
    process.exit(3);
  `;
  const result = spawnSync(process.execPath, ['--input-type=module', '--eval', program], {
    encoding: 'utf8',
  });
  assert.equal(result.status, 3, result.stderr);
  return { stdout: result.stdout, lines: result.stderr.split('\n').filter((line) => line !== '') };
}

describe('log', () => {
  it('writes JSON to standard error, and the last line before an exit too', () => {
    const { stdout, lines } = linesOf({ format: 'json' });
    assert.equal(stdout, '');
    const entries = lines.map((line) => JSON.parse(line) as Record<string, unknown>);
    assert.deepEqual(
      entries.map((entry) => entry['msg']),
      ['attached', 'the last line'],
    );
    assert.equal(entries[0]['device'], 'disk0');
    assert.equal(entries[1]['queue'], 1);
    assert.ok(!Number.isNaN(Date.parse(String(entries[0]['time']))));
    assert.equal('pid' in entries[0], false);
  });

  it('writes lines for people, without colours where nobody sees them', () => {
    const { stdout, lines } = linesOf({ level: 'debug' });
    assert.equal(stdout, '');
    const text = lines.join('\n');
    assert.match(text, /too fine/);
    assert.match(text, /disk0/);
    assert.match(lines.at(-1) ?? '', /the last line|queue/);
    assert.equal(text.includes('\u001b['), false);
  });

  it('is silent for a library unless asked', () => {
    assert.equal(silentLogger.isLevelEnabled('fatal'), false);
  });
});
