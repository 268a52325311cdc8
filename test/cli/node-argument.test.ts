import assert from 'node:assert/strict';
import { linkSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { UsageError } from '../../src/cli/support/errors.js';
import { isSameImage, nodeArgument } from '../../src/cli/support/node-session.js';
import { makeTempDir } from '../support/temp-dir.js';

const directory = makeTempDir();
const inDirectory = (name: string) => join(directory, name);

describe('a NODE argument', () => {
  it('is a path, an experiment or a filename', () => {
    const drivers = [
      ['disk.img', 'file'],
      ['/dev/null', 'file'],
      ['memory:1M', 'memory'],
      ['null:1M', 'null-co'],
      ['nbd://host/export', 'nbd'],
      ['nbd+unix:///?socket=/tmp/s', 'nbd'],
      ['rbd:pool/image', 'rbd'],
      ['http://host/image', 'http'],
      ['driver=rbd,pool=p,image=i', 'rbd'],
      ['json:{"driver": "raw", "offset": 512, "file.driver": "file", "file.filename": "x"}', 'raw'],
    ];
    for (const [text, driver] of drivers) {
      assert.equal(nodeArgument(text, 'n').driver, driver, text);
      assert.equal(nodeArgument(text, 'n').nodeName, 'n');
    }
    for (const text of ['what:x', 'memory:1', 'driver=rbd', 'json:{', 'nbd://h/?x=1']) {
      assert.throws(() => nodeArgument(text, 'n'), UsageError, text);
    }
  });

  it('is the same image as another one, whatever it is called', () => {
    writeFileSync(inDirectory('a'), '');
    writeFileSync(inDirectory('b'), '');
    linkSync(inDirectory('a'), inDirectory('hard'));
    symlinkSync('a', inDirectory('soft'));
    const same = (one: string, other: string) =>
      isSameImage(nodeArgument(one, 'x'), nodeArgument(other, 'y'));
    for (const name of ['a', 'hard', 'soft']) {
      assert.ok(same(inDirectory('a'), inDirectory(name)), name);
    }
    assert.ok(same(inDirectory('a'), `driver=file,filename=${inDirectory('soft')},read-only=on`));
    assert.ok(same(inDirectory('absent'), inDirectory('absent')));
    assert.ok(same('nbd://host/x', 'nbd://host:10809/x'));
    assert.ok(same('rbd:p/i', 'driver=rbd,pool=p,image=i'));
    assert.ok(!same(inDirectory('a'), inDirectory('b')));
    assert.ok(!same('nbd://host/x', 'nbd://host/y'));
    assert.ok(!same('memory:1M', 'memory:1M'), 'two memories are two');
    const part = (offset: number) =>
      `driver=raw,offset=${offset},size=512,file.driver=file,file.filename=${inDirectory('a')}`;
    assert.ok(!same(part(0), part(512)));
    const raw = `driver=raw,file.driver=file,file.filename=${inDirectory('hard')},file.locking=off`;
    assert.ok(same(raw, inDirectory('a')));
    assert.ok(!same(raw, part(0)));
    assert.ok(
      isSameImage(nodeArgument(part(512), 'x'), nodeArgument(inDirectory('a'), 'y'), { count: true }),
    );
  });
});
