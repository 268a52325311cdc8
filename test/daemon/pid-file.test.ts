import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { PidFile } from '../../src/daemon/pid-file.js';
import { openFdCount } from '../support/resources.js';

let directory: string;
let path: string;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'vduse-pid-'));
  path = join(directory, 'pid');
});

afterEach(() => rmSync(directory, { recursive: true }));

describe('the file with the process id', () => {
  it('belongs to one process at a time', () => {
    const before = openFdCount();
    const file = PidFile.create(path);
    assert.equal(readFileSync(path, 'utf8'), `${process.pid}\n`);
    assert.equal(statSync(path).mode & 0o777, 0o600);
    assert.throws(() => PidFile.create(path), {
      code: 'BUSY',
      message: `cannot create PID file: '${path}' belongs to a running process`,
    });
    assert.equal(readFileSync(path, 'utf8'), `${process.pid}\n`);
    file.remove();
    file.remove();
    assert.ok(!existsSync(path));
    assert.equal(openFdCount(), before);
  });

  it('takes over a file that a dead process left, however long its text', () => {
    writeFileSync(path, '1\nand a line that is longer than any process id\n');
    const file = PidFile.create(path);
    assert.equal(readFileSync(path, 'utf8'), `${process.pid}\n`);
    file.remove();
  });

  it('says why it cannot be made', () => {
    assert.throws(() => PidFile.create(join(directory, 'no', 'pid')), {
      message: `cannot create PID file: Could not create '${directory}/no/pid': no such file or directory`,
    });
  });
});
