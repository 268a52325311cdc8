/** What an IMAGE argument stands for: a path, or for experiments `null:SIZE` and `memory:SIZE`. */
import type { MemoryNodeOptions, NullNodeOptions } from '../../block/node.js';
import { checked } from './command.js';
import { UsageError } from './errors.js';
import { parseSize, sectorBytes } from './size.js';

const experimentPattern = /^(null|memory):(.*)$/s;

/** An empty text would be the current directory. Throws UsageError. */
export function checkImageName(image: string): void {
  if (image === '') {
    throw new UsageError('an image has no empty name', 'Is a variable of the shell empty?');
  }
}

/** What an experiment's device is called by default: `null` or `memory`; undefined for a path. */
export function experimentName(image: string): string | undefined {
  return experimentPattern.exec(image)?.[1];
}

/** The node of `null:SIZE` or `memory:SIZE`; undefined for a path. A file of such a name is `./null:1G`. */
export function experimentNode(
  image: string,
  nodeName: string,
): NullNodeOptions | MemoryNodeOptions | undefined {
  const match = experimentPattern.exec(image);
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
