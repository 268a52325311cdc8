import fc from 'fast-check';

const punctuation = ['{', '}', '[', ']', ',', ':', '"', "'", '\\', '/', ' ', '\n', '\t', '-', '+', '.'];
const numbers = [
  '0',
  '1',
  '12',
  'e',
  '9007199254740993',
  '-9223372036854775809',
  '18446744073709551616',
  '1.5e3',
];
const words = ['true', 'null', 'fal', 'A', '"a"', "'a\"b'", '"id"', '"execute"'];
const characters = ['\\u00e9', '\\ud83d\\ude00', '\\ud800', 'é', '\\n', '\\q', '\x1f', '\x7f'];
const objects = ['{"a":1}', '{"a":1,"a":2}', '[1,{}]'];
const commands = ['{"execute":"query-version"}', '{"execute":"nope","id":', '{"execute":5}'];

/** What JSON is made of, and what it breaks at: in a row, they are texts that nearly are some. */
export const jsonPiece: fc.Arbitrary<Buffer> = fc
  .constantFrom(...punctuation, ...numbers, ...words, ...characters, ...objects, ...commands)
  .map((text) => Buffer.from(text));
