/** Authorization objects: who they let in. */
import assert from 'node:assert/strict';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import fc from 'fast-check';
import { openBlockNode } from '../../src/block/open.js';
import { matchesGlob } from '../../src/daemon/access-list.js';
import { createCommands } from '../../src/daemon/commands/commands.js';
import { ObjectTable } from '../../src/daemon/object-table.js';
import { objectOptions, toUserObject } from '../../src/daemon/options/object-options.js';
import { StorageDaemon } from '../../src/daemon/storage-daemon.js';
import type { JsonValue } from '../../src/qmp/json-value.js';
import { parseKeyval } from '../../src/qmp/keyval.js';
import { checkOptions } from '../../src/qmp/qapi.js';
import { propertyRuns } from '../support/property.js';
import { makeTempDir } from '../support/temp-dir.js';

const name = 'C=GB,O=Example\\, Org,CN=laptop.example.com';

function tableOf(...options: Record<string, unknown>[]): ObjectTable {
  const table = new ObjectTable();
  for (const one of options) {
    table.add(toUserObject(checkOptions(objectOptions.json, { id: 'a', ...one })));
  }
  return table;
}

const list = (rules: object[], policy?: string) =>
  tableOf({ 'qom-type': 'authz-list', rules, ...(policy === undefined ? {} : { policy }) });

describe('authorization', () => {
  const dir = makeTempDir();

  test('authz-simple lets one name in, exactly', () => {
    const table = tableOf({ 'qom-type': 'authz-simple', identity: name });
    assert.equal(table.authorize('a', name), true);
    for (const other of ['', 'C=GB', `${name} `, name.toLowerCase(), `${name},CN=x`]) {
      assert.equal(table.authorize('a', other), false);
    }
  });

  test('authz-list: the first rule that matches decides, and nobody comes in by none', () => {
    assert.equal(list([]).authorize('a', name), false);
    assert.equal(list([], 'allow').authorize('a', name), true);
    const rules = [
      { match: name, policy: 'deny' },
      { match: '*,CN=laptop.example.com', policy: 'allow', format: 'glob' },
      { match: '*', policy: 'allow', format: 'exact' },
    ];
    const table = list(rules);
    assert.equal(table.authorize('a', name), false);
    assert.equal(table.authorize('a', 'C=DE,CN=laptop.example.com'), true);
    assert.equal(table.authorize('a', 'C=DE,CN=laptop.example.com,EMAIL=x'), false);
    assert.equal(table.authorize('a', '*'), true);
    assert.equal(list(rules, 'allow').authorize('a', 'CN=other'), true);
  });

  test('the rules as a command line writes them', () => {
    const text =
      'authz-list,id=a,policy=deny,rules.0.match=C=GB,,CN=*,rules.0.format=glob,rules.0.policy=allow';
    const { options } = parseKeyval(text, { impliedKey: 'qom-type' });
    const table = new ObjectTable();
    table.add(toUserObject(checkOptions(objectOptions.keyval, options)));
    assert.equal(table.authorize('a', 'C=GB,CN=x'), true);
    assert.equal(table.authorize('a', 'C=DE,CN=x'), false);
  });

  test('authz-list-file is read for each client, and without it nobody comes in', () => {
    const filename = join(dir, 'rules.json');
    const rules = (policy: string) =>
      writeFileSync(filename, JSON.stringify({ rules: [{ match: 'x', policy }] }));
    rules('allow');
    const live = tableOf({ 'qom-type': 'authz-list-file', filename });
    const fixed = tableOf({ 'qom-type': 'authz-list-file', filename, refresh: false });
    assert.equal(live.authorize('a', 'x'), true);
    rules('deny');
    assert.equal(live.authorize('a', 'x'), false);
    assert.equal(fixed.authorize('a', 'x'), true);
    rmSync(filename);
    assert.throws(() => live.authorize('a', 'x'), /Unable to read '.*rules.json'/);
    assert.equal(fixed.authorize('a', 'x'), true);
  });

  test('a file that is no list of rules is refused', () => {
    const filename = join(dir, 'bad.json');
    const cases: [string, RegExp][] = [
      ['[]', /must contain a JSON object/],
      ['{', /Unable to read/],
      ['{"rules":[{"match":"a"}]}', /Parameter .rules\[0\].policy. is missing/],
      ['{"rulez":[]}', /Parameter 'rulez' is unexpected/],
      ['{"policy":"maybe"}', /Parameter 'policy' does not accept value 'maybe'/],
      [' '.repeat((1 << 20) + 1), /longer than/],
    ];
    for (const [content, message] of cases) {
      writeFileSync(filename, content);
      assert.throws(() => tableOf({ 'qom-type': 'authz-list-file', filename }), { message });
    }
  });

  test('an id that is not there, or not of such an object, lets nobody in', () => {
    const table = tableOf({ 'qom-type': 'iothread' });
    assert.throws(() => table.authorize('zz', name), { message: 'Cannot find QAuthZ object ID zz' });
    assert.throws(() => table.authorize('a', name), { message: "Object 'a' is not a QAuthZ subclass" });
    assert.throws(() => tableOf({ 'qom-type': 'authz-pam', service: 'x' }), {
      code: 'NOT_SUPPORTED',
      message: 'invalid object type: authz-pam',
    });
  });

  test('qom-set changes the rules of an object, and a wrong one changes nothing', async (t) => {
    const daemon = new StorageDaemon({ openBlockNode, exportCreators: {} });
    t.after(() => daemon.close());
    const commands = createCommands(daemon);
    const path = '/objects/a';
    const rule = { match: 'x', policy: 'allow' };
    await commands.execute('object-add', { 'qom-type': 'authz-list', id: 'a', rules: [rule] });
    const allows = (name: string): boolean => {
      const [object] = daemon.objects;
      assert.ok('isAllowed' in object);
      return object.isAllowed(name);
    };
    const set = (property: string, value: JsonValue) =>
      commands.execute('qom-set', { path, property, value });
    assert.deepEqual([allows('x'), allows('y')], [true, false]);
    await set('rules', [{ match: 'y', policy: 'allow' }]);
    assert.deepEqual([allows('x'), allows('y')], [false, true]);
    await assert.rejects(set('rules', [{ match: 'z' }]), {
      message: "Parameter 'rules[0].policy' is missing",
    });
    await assert.rejects(set('policy', 'maybe'), {
      message: "Parameter 'policy' does not accept value 'maybe'",
    });
    assert.deepEqual([allows('x'), allows('y')], [false, true]);
    await set('policy', 'allow');
    assert.deepEqual([allows('x'), allows('y')], [true, true]);
  });

  test('patterns match as a regular expression would', () => {
    const translations = new Map([
      ['*', '.*'],
      ['?', '.'],
      ['.', '\\.'],
    ]);
    const pieces = fc.constantFrom('a', 'b', '*', '?', '.', '\u{1f600}');
    const text = fc.array(fc.constantFrom('a', 'b', '.', '\n', '\u{1f600}'), { maxLength: 12 });
    fc.assert(
      fc.property(fc.array(pieces, { maxLength: 10 }), text, (pattern, characters) => {
        const source = pattern.map((piece) => translations.get(piece) ?? piece).join('');
        const expected = new RegExp(`^${source}$`, 'su').test(characters.join(''));
        assert.equal(matchesGlob(pattern.join(''), characters.join('')), expected);
      }),
      propertyRuns(2000),
    );
    // What would be exponential takes a moment.
    assert.equal(matchesGlob('*a'.repeat(50), 'a'.repeat(2000).concat('b')), false);
  });
});
