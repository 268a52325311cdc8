/** Filenames in every form, and that what was written comes out again. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { openSource } from '../../src/daemon/export-disk.js';
import { filenameOptions, parseFilename } from '../../src/daemon/options/filename.js';
import { propertyRuns } from '../support/property.js';

const text = fc.string({ minLength: 1, maxLength: 12 });

describe('a filename', () => {
  test('is a path, unless a protocol stands before its first slash', () => {
    for (const path of ['disk.img', '/a/b:c', './nbd:x', 'a,b=c', '../x', '9:a', '']) {
      assert.equal(parseFilename(path), undefined, path);
    }
    assert.throws(() => parseFilename('qcow3:a'), {
      message: "Unknown protocol 'qcow3'",
      hint: /\.\/qcow3:a/,
    });
    assert.deepEqual(parseFilename('file:a:b'), { driver: 'file', filename: 'a:b' });
    assert.deepEqual(parseFilename('host_device:/dev/sdb'), { driver: 'host_device', filename: '/dev/sdb' });
    assert.deepEqual(parseFilename('null-co://'), { driver: 'null-co' });
    assert.deepEqual(parseFilename('https://h/a?b:c'), { driver: 'https', url: 'https://h/a?b:c' });
  });

  test('is an NBD URL', () => {
    const inet = (host: string, port = '10809') => ({ type: 'inet', host, port });
    const cases: [string, object][] = [
      ['nbd://host', { server: inet('host') }],
      ['nbd://host:1234/', { server: inet('host', '1234') }],
      ['nbd+tcp://[::1]:5/a%2Fb/c', { server: inet('::1', '5'), export: 'a/b/c' }],
      ['nbd:///x', { server: inet('localhost'), export: 'x' }],
      ['nbd+unix:///?socket=/run/s', { server: { type: 'unix', path: '/run/s' } }],
      ['nbd+unix:///e%20f?socket=/a%3Fb', { server: { type: 'unix', path: '/a?b' }, export: 'e f' }],
      ['nbds://h/e?tls-creds=t', { server: inet('h'), export: 'e', 'tls-creds': 't' }],
      ['nbd:host:10:exportname=a:b', { server: inet('host', '10'), export: 'a:b' }],
      ['nbd:unix:/s', { server: { type: 'unix', path: '/s' } }],
    ];
    for (const [filename, options] of cases) {
      assert.deepEqual(parseFilename(filename), { driver: 'nbd', ...options }, filename);
    }
    for (const wrong of [
      'nbd://u@h',
      'nbd://h?socket=/s',
      'nbd://h:x',
      'nbd+unix://h/?socket=/s',
      'nbd+unix:///x',
      'nbds://h',
      'nbd://h?tls-creds=t',
      'nbd://h?x=1',
      'nbd://h/%zz',
      'nbd:h',
      'nbd:',
    ]) {
      assert.throws(() => parseFilename(wrong), { code: 'INVALID_ARGUMENT' }, wrong);
    }
  });

  test('of an NBD export comes out as it went in, whatever its name', () => {
    fc.assert(
      fc.property(text, fc.webPath(), (name, socket) => {
        fc.pre(!name.startsWith('/'));
        const url = `nbd+unix:///${encodeURIComponent(name)}?socket=${encodeURIComponent(`/${socket}`)}`;
        assert.deepEqual(parseFilename(url), {
          driver: 'nbd',
          server: { type: 'unix', path: `/${socket}` },
          export: name,
        });
      }),
      propertyRuns(200),
    );
  });

  test('is an RBD image', () => {
    const cases: [string, object][] = [
      ['rbd:p/i', { pool: 'p', image: 'i' }],
      ['rbd:p/n/i@s', { pool: 'p', namespace: 'n', image: 'i', snapshot: 's' }],
      ['rbd:p/i:conf=/e/c.conf:id=u', { pool: 'p', image: 'i', conf: '/e/c.conf', user: 'u' }],
      ['rbd:p\\/q/i\\@j@s\\:t', { pool: 'p/q', image: 'i@j', snapshot: 's:t' }],
      [
        'rbd:p/i:mon_host=10.0.0.1\\:3300\\;[\\:\\:1]',
        {
          pool: 'p',
          image: 'i',
          server: [
            { host: '10.0.0.1', port: '3300' },
            { host: '::1', port: '6789' },
          ],
        },
      ],
    ];
    for (const [filename, options] of cases) {
      assert.deepEqual(parseFilename(filename), { driver: 'rbd', ...options }, filename);
    }
    assert.throws(() => parseFilename('rbd:'), { message: 'Pool name is required' });
    assert.throws(() => parseFilename('rbd:p'), { message: /^Image name is required/ });
    assert.throws(() => parseFilename('rbd:p/i:conf'), { message: 'conf option conf has no value' });
    assert.throws(() => parseFilename('rbd:p/i:x=1'), { hint: /known: conf/ });
  });

  test('of an RBD image comes out as it went in, whatever its parts', () => {
    const escaped = (part: string) => part.replace(/[\\/:@=]/g, '\\$&');
    fc.assert(
      fc.property(text, text, text, text, (pool, image, snapshot, conf) => {
        const filename = `rbd:${escaped(pool)}/${escaped(image)}@${escaped(snapshot)}:conf=${escaped(conf)}`;
        assert.deepEqual(parseFilename(filename), { driver: 'rbd', pool, image, snapshot, conf });
      }),
      propertyRuns(200),
    );
  });

  test('is options, with dots or as JSON', () => {
    const expected = { driver: 'raw', offset: 512, file: { driver: 'file', filename: 'a,b' } };
    assert.deepEqual(filenameOptions('driver=raw,offset=512,file.driver=file,file.filename=a,,b'), expected);
    assert.deepEqual(filenameOptions(`json:${JSON.stringify(expected)}`), expected);
    assert.deepEqual(
      filenameOptions('json:{"driver":"raw","offset":512,"file.driver":"file","file":{"filename":"a,b"}}'),
      expected,
    );
    assert.throws(() => filenameOptions('json:5'), { message: 'Invalid JSON object given' });
    assert.throws(() => filenameOptions('json:{'), { message: /Could not parse the JSON options/ });
    assert.throws(() => filenameOptions('json:{"driver":"qcow3"}'), { hint: /supported: file/ });
    assert.throws(() => filenameOptions('json:{"driver":"raw","file":"a","file.driver":"file"}'), {
      code: 'INVALID_ARGUMENT',
    });
  });

  test('opens what it stands for', async () => {
    const filename = 'driver=raw,offset=1M,file.driver=memory,file.size=4M';
    const { node, name } = await openSource(filename, { name: 'disk', readOnly: true });
    assert.deepEqual([name, node.driver, node.size, node.readOnly], ['disk', 'raw', 3 << 20, true]);
    await node.close();
    await assert.rejects(openSource('driver=raw,file=other', {}), { code: 'NOT_FOUND' });
    await assert.rejects(openSource('foo:bar', {}), { message: "Unknown protocol 'foo'" });
  });

  test('that is anything at all is a path, options, or an error that says why', () => {
    const prefix = fc.constantFrom(
      'nbd:',
      'nbd://',
      'nbd+unix://',
      'nbds://',
      'rbd:',
      'json:',
      'driver=',
      '',
    );
    fc.assert(
      fc.property(prefix, fc.string({ maxLength: 40 }), (start, rest) => {
        try {
          filenameOptions(start + rest);
        } catch (error) {
          assert.equal((error as { code?: string }).code, 'INVALID_ARGUMENT', String(error));
        }
      }),
      propertyRuns(500),
    );
  });
});
