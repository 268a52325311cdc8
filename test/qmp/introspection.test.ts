import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { z } from 'zod';
import { schemaInfo } from '../../src/qmp/introspection.js';
import { choice, jsonScalars as s, struct, variants } from '../../src/qmp/qapi.js';

const infosOf = (type: z.ZodType) => {
  const infos = schemaInfo([{ name: 'c', arguments: type }], []);
  const byName = new Map(infos.map((info) => [info['name'] as string, info]));
  return { infos, argument: byName.get(infos[0]['arg-type'] as string)!, byName };
};

describe('the schema that clients are told', () => {
  it('has commands, events, and each type once', () => {
    const color = () => choice('red', 'green');
    const infos = schemaInfo(
      [
        { name: 'a', arguments: struct({ color: color(), x: s.int.optional() }) },
        { name: 'b', arguments: struct({}), returns: z.array(struct({ color: color() })) },
      ],
      [{ name: 'E', data: struct({ id: s.str }) }],
    );
    const isEnum = (info: object) => 'meta-type' in info && info['meta-type'] === 'enum';
    assert.deepEqual(infos.slice(0, 3), [
      { name: 'a', 'meta-type': 'command', 'arg-type': '1', 'ret-type': '0' },
      { name: 'b', 'meta-type': 'command', 'arg-type': '0', 'ret-type': '[4]' },
      { name: 'E', 'meta-type': 'event', 'arg-type': '6' },
    ]);
    assert.deepEqual(infos.filter(isEnum), [
      {
        name: '2',
        'meta-type': 'enum',
        members: [{ name: 'red' }, { name: 'green' }],
        values: ['red', 'green'],
      },
    ]);
    const names = infos.map(({ name }) => name);
    assert.equal(new Set(names).size, names.length);
  });

  it('tells optional members by a default', () => {
    const { argument } = infosOf(struct({ a: s.bool, b: s.size.optional() }));
    assert.deepEqual(argument['members'], [
      { name: 'a', type: 'bool' },
      { name: 'b', type: 'int', default: null },
    ]);
  });

  it('tells variants by what is common and what is of a case', () => {
    const { argument, byName } = infosOf(
      variants('driver', [
        struct({ driver: z.literal(['file', 'disk']), id: s.str, path: s.str }),
        struct({ driver: z.literal('null'), id: s.str }),
      ]),
    );
    assert.equal(argument['tag'], 'driver');
    const [tag, id] = argument['members'] as { name: string; type: string }[];
    assert.deepEqual(byName.get(tag.type)!['values'], ['file', 'disk', 'null']);
    assert.deepEqual(id, { name: 'id', type: 'str' });
    const cases = argument['variants'] as { case: string; type: string }[];
    assert.deepEqual(
      cases.map((one) => one.case),
      ['file', 'disk', 'null'],
    );
    assert.deepEqual(byName.get(cases[0].type)!['members'], [{ name: 'path', type: 'str' }]);
    assert.equal(cases[0].type, cases[1].type);
    assert.deepEqual(byName.get(cases[2].type)!['members'], []);
  });

  it('tells alternates, and anything for what it does not know', () => {
    const { argument, byName } = infosOf(struct({ a: z.union([s.str, z.array(s.str)]), b: z.unknown() }));
    const [a, b] = argument['members'] as { type: string }[];
    assert.deepEqual(byName.get(a.type)!['members'], [{ type: 'str' }, { type: '[str]' }]);
    assert.equal(b.type, 'any');
  });
});
