import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { type KeyvalValue, parseKeyval } from '../../src/qmp/keyval.js';
import { propertyRuns } from '../support/property.js';

/** The text of a value, the other way round. */
function formatKeyval(options: { [key: string]: KeyvalValue }): string {
  const pairs: string[] = [];
  const add = (key: string, value: KeyvalValue): void => {
    if (typeof value === 'string') {
      pairs.push(`${key}=${value.replaceAll(',', ',,')}`);
      return;
    }
    for (const [below, member] of Object.entries(value)) {
      add(`${key}.${below}`, member);
    }
  };
  for (const [key, value] of Object.entries(options)) {
    add(key, value);
  }
  return pairs.join(',');
}

const name = fc.stringMatching(/^(__com\.example-x_)?[A-Za-z][A-Za-z0-9_-]{0,8}$/);
const text = fc.oneof(fc.string(), fc.stringMatching(/^[a,=.{}"' ]{0,8}$/));
const tree: fc.Arbitrary<{ [key: string]: KeyvalValue }> = fc.letrec<{
  value: KeyvalValue;
  object: { [key: string]: KeyvalValue };
}>((tie) => ({
  value: fc.oneof(
    { depthSize: 'small' },
    text,
    tie('object'),
    fc.array(tie('value'), { minLength: 1, maxLength: 12 }),
  ),
  object: fc.dictionary(name, tie('value'), { minKeys: 1, maxKeys: 4, noNullPrototype: true }),
})).object;

const options = (input: string, impliedKey?: string) =>
  parseKeyval(input, impliedKey === undefined ? {} : { impliedKey }).options;

describe('KEY=VALUE text', () => {
  it('says what it was made of', () => {
    fc.assert(
      fc.property(tree, fc.boolean(), (value, trailing) => {
        assert.deepEqual(options(`${formatKeyval(value)}${trailing ? ',' : ''}`), value);
      }),
      propertyRuns(1000),
    );
  });

  it('is taken or refused, whatever it is', () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[ab.,=019?_-]{0,20}$/), (input) => {
        try {
          parseKeyval(input, { impliedKey: 'driver', flags: ['a'] });
        } catch (error) {
          assert.equal((error as { code?: string }).code, 'INVALID_ARGUMENT');
        }
      }),
      propertyRuns(2000),
    );
  });

  it("is QEMU's", () => {
    assert.deepEqual(options('a=b,c.d=e,c.f=,list.1=y,list.0=x'), {
      a: 'b',
      c: { d: 'e', f: '' },
      list: ['x', 'y'],
    });
    assert.deepEqual(options('file,filename=a,,b=c,node-name=n', 'driver'), {
      driver: 'file',
      filename: 'a,b=c',
      'node-name': 'n',
    });
    assert.deepEqual(options('driver=file', 'driver'), { driver: 'file' });
    assert.deepEqual(options('a=1,a=2'), { a: '2' });
    assert.deepEqual(options('a=x,,,b=y'), { a: 'x,', b: 'y' });
    assert.deepEqual(options(''), {});
    assert.deepEqual(options('a.0.b=1,a.1.b=2'), { a: [{ b: '1' }, { b: '2' }] });
    assert.deepEqual(options('constructor=a,toString.x=b'), { constructor: 'a', toString: { x: 'b' } });
  });

  it('has help among its words', () => {
    assert.deepEqual(parseKeyval('help', { impliedKey: 'driver' }), { options: {}, help: true });
    assert.deepEqual(parseKeyval('file,?', { impliedKey: 'driver' }), {
      options: { driver: 'file' },
      help: true,
    });
    assert.deepEqual(parseKeyval('file=help', {}), { options: { file: 'help' }, help: false });
  });

  it('sets flags by a word', () => {
    const syntax = { impliedKey: 'backend', flags: ['server', 'wait', 'pretty'] };
    assert.deepEqual(parseKeyval('socket,server,nowait', syntax).options, {
      backend: 'socket',
      server: 'on',
      wait: 'off',
    });
    assert.throws(() => parseKeyval('socket,telnet', syntax), /Expected '=' after parameter 'telnet'/);
    assert.throws(() => parseKeyval('socket,nopath', syntax), /Expected '=' after parameter 'nopath'/);
  });

  it("is refused in QEMU's words", () => {
    const cases: [string, string][] = [
      ['a', "Expected '=' after parameter 'a'"],
      ['a=1,b', "Expected '=' after parameter 'b'"],
      [',', "Invalid parameter ''"],
      ['=x', "Invalid parameter ''"],
      ['9=3', "Invalid parameter '9'"],
      ['a..b=3', "Invalid parameter 'a..b'"],
      ['a.=3', "Invalid parameter 'a.'"],
      ['a.9b=3', "Invalid parameter 'a.9b'"],
      ['a b=3', "Invalid parameter 'a b'"],
      ['a=1,a.b=2', "Parameters 'a.*' used inconsistently"],
      ['a.b=1,a=2', "Parameters 'a.*' used inconsistently"],
      ['a.b.c=1,a.b=2', "Parameters 'a.b.*' used inconsistently"],
      ['a.0=1,a.x=2', "Parameters 'a.*' used inconsistently"],
      ['a.0=1,a.2=2', "Parameter 'a.1' missing"],
      ['a.1=1', "Parameter 'a.0' missing"],
      ['a.99999999999999999999=1', "Parameter 'a.0' missing"],
      ['a.b.1=1', "Parameter 'a.b.0' missing"],
      [`${'k'.repeat(128)}=1`, `Parameter '${'k'.repeat(128)}' is too long`],
      [`a.${'k'.repeat(128)}=1`, `Parameter fragment '${'k'.repeat(128)}' is too long`],
    ];
    for (const [input, message] of cases) {
      assert.throws(() => options(input), { code: 'INVALID_ARGUMENT', message }, input);
    }
    assert.throws(() => options(`a${'.a'.repeat(100_000)}=1`), /is nested too deeply$/);
  });
});
