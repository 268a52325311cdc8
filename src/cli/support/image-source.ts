/** What an IMAGE argument stands for: a path, or for experiments `null:SIZE` and `memory:SIZE`. */
import type { MemoryNodeOptions, NullNodeOptions } from '../../block/node.js';
import { checked } from './command.js';
import { UsageError } from './errors.js';
import { parseSize, sectorBytes } from './size.js';

/** The node of `null:SIZE` or `memory:SIZE`; undefined for a path. A file of such a name is `./null:1G`. */
export function experimentNode(
  image: string,
  nodeName: string,
): NullNodeOptions | MemoryNodeOptions | undefined {
  const match = /^(null|memory):(.*)$/s.exec(image);
  if (match === null) {
    return undefined;
  }
  const size = checked(image, () => parseSize(match[2]));
  if (size === 0 || size % sectorBytes !== 0) {
    throw new UsageError(`${image}: the size must be a multiple of ${sectorBytes} bytes`);
  }
  return match[1] === 'null'
    ? { driver: 'null-co', nodeName, size, readZeroes: true }
    : { driver: 'memory', nodeName, size };
}
