import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  CommandWords,
  hintForCommand,
  parseCommand,
  parseLine,
  splitWords,
} from '../../src/cli/support/qmp-words.js';

describe('QMP commands as people write them', () => {
  it('are a name and KEY=VALUE words', () => {
    assert.deepEqual(
      parseCommand(['blockdev-add', 'driver=file', 'cache.direct=on', 'size=1024', 'list=[1,"a"]', 'a=b=c']),
      {
        name: 'blockdev-add',
        arguments: { driver: 'file', cache: { direct: true }, size: 1024, list: [1, 'a'], a: 'b=c' },
      },
    );
    assert.deepEqual(parseCommand(['x', '__proto__.y=1', 'z="1"']).arguments['z'], '1');
  });

  it('or JSON', () => {
    assert.deepEqual(parseCommand(['x', '{"a": {"b": null}}']), { name: 'x', arguments: { a: { b: null } } });
    assert.throws(() => parseCommand(['x', '{"a"']), { code: 'INVALID_ARGUMENT' });
    assert.throws(() => parseCommand(['x', 'word']), { message: "'word' is no KEY=VALUE" });
  });

  it('or a whole request', () => {
    const request = '{"execute": "x", "arguments": {"a": "b c"}, "id": 1}';
    assert.deepEqual(parseCommand([request]), { name: 'x', arguments: { a: 'b c' } });
    assert.deepEqual(parseLine('{"execute": "x"}'), { name: 'x', arguments: {} });
    for (const none of ['{}', '{"execute": 1}', '{"execute": "x", "arguments": []}']) {
      assert.throws(() => parseLine(none), { message: 'the JSON object is no request' });
    }
  });

  it('are lines of a shell, where JSON keeps its quotes', () => {
    assert.deepEqual(parseLine(`x {"a": "b c"}`), { name: 'x', arguments: { a: 'b c' } });
    assert.deepEqual(parseLine(`x '{"a": "b c"}'`), { name: 'x', arguments: { a: 'b c' } });
    assert.deepEqual(parseLine('x a="b c"'), { name: 'x', arguments: { a: 'b c' } });
  });

  it('are of the types that the server says', () => {
    const schema = new CommandWords([
      { name: 'add', 'meta-type': 'command', 'arg-type': '1' },
      {
        name: '1',
        'meta-type': 'object',
        members: [
          { name: 'port', type: 'str' },
          { name: 'size', type: 'int' },
          { name: 'locking', type: '2' },
          { name: 'read-only', type: 'bool' },
          { name: 'server', type: '3' },
        ],
      },
      { name: '2', 'meta-type': 'enum', values: ['auto', 'on', 'off'] },
      { name: '3', 'meta-type': 'object', members: [{ name: 'port', type: 'str' }] },
    ]);
    const typed = (...words: string[]) => parseCommand(['add', ...words], schema).arguments;
    assert.deepEqual(typed('port=80', 'server.port=81', 'locking=on', 'read-only=on', 'else=1'), {
      port: '80',
      server: { port: '81' },
      locking: 'on',
      'read-only': true,
      else: 1,
    });
    assert.deepEqual(typed('port="80"', 'size=1.5G'), { port: '80', size: 1_610_612_736 });
    assert.deepEqual(typed('size=512', 'size=none'), { size: 'none' });
    assert.deepEqual(parseLine('add port=80', schema).arguments, { port: '80' });
    assert.deepEqual(parseCommand(['add', 'port=80', 'size=1K']).arguments, { port: 80, size: '1K' });
  });

  it('have a hint where there is no such command', () => {
    assert.equal(hintForCommand('query-jobs', ['query-jobs']), undefined);
    assert.equal(hintForCommand('query-job', ['query-jobs']), 'Did you mean query-jobs?');
    assert.equal(hintForCommand('what', ['query-jobs']), 'query-commands lists what there is.');
  });

  it('are split as a shell does it', () => {
    assert.deepEqual(splitWords(` a  'b c' d"e \\" f"g h\\ i '' `), ['a', 'b c', 'de " fg', 'h i', '']);
    assert.deepEqual(splitWords('it"s'), ['it"s']);
  });

  it('are completed by what the server says there is', () => {
    const words = new CommandWords([
      { name: 'query-a', 'meta-type': 'command', 'arg-type': '0' },
      { name: 'add', 'meta-type': 'command', 'arg-type': '1' },
      { name: '0', 'meta-type': 'object', members: [] },
      {
        name: '1',
        'meta-type': 'object',
        members: [
          { name: 'mode', type: '2' },
          { name: 'on', type: 'bool' },
          { name: 'cache', type: '4' },
          { name: 'file', type: '5' },
        ],
        variants: [{ case: 'a', type: '3' }],
      },
      { name: '2', 'meta-type': 'enum', values: ['safe', 'hard'] },
      { name: '3', 'meta-type': 'object', members: [{ name: 'more', type: 'str' }] },
      { name: '4', 'meta-type': 'object', members: [{ name: 'direct', type: 'bool' }] },
      { name: '5', 'meta-type': 'alternate', members: [{ type: 'str' }, { type: '1' }] },
    ]);
    assert.deepEqual(words.complete(''), [['add', 'query-a'], '']);
    assert.deepEqual(words.complete('  q'), [['query-a '], 'q']);
    assert.deepEqual(words.complete('add m'), [['mode=', 'more='], 'm']);
    assert.deepEqual(words.complete('add mode='), [['mode=safe', 'mode=hard'], 'mode=']);
    assert.deepEqual(words.complete('add mode=safe on=t'), [['on=true '], 'on=t']);
    assert.deepEqual(words.complete('add c'), [['cache.'], 'c']);
    assert.deepEqual(words.complete('add cache.'), [['cache.direct='], 'cache.']);
    assert.deepEqual(words.complete('add cache.direct=f'), [['cache.direct=false '], 'cache.direct=f']);
    assert.deepEqual(words.complete('add f'), [['file=', 'file.'], 'f']);
    assert.deepEqual(words.complete('add file.file.m'), [
      ['file.file.mode=', 'file.file.more='],
      'file.file.m',
    ]);
    assert.deepEqual(words.complete('add none.x'), [[], 'none.x']);
    assert.deepEqual(words.complete('nothing x'), [[], 'x']);
    assert.deepEqual(new CommandWords({}).complete('a'), [[], 'a']);
  });
});
