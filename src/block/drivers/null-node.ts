import { VduseError } from '../../base/errors.js';
import type { BlockNode, NullNodeOptions } from '../node.js';

const defaultSize = 1 << 30;

/** QEMU's null-co: a disk that stores nothing, for measurements. */
export function openNullNode(options: NullNodeOptions): BlockNode {
  let size = options.size ?? defaultSize;
  const readOnly = options.readOnly ?? false;
  checkNullSize(size);
  return {
    nodeName: options.nodeName,
    driver: 'null-co',
    filename: undefined,
    readOnly,
    cacheDirect: options.cache?.direct ?? false,
    cacheNoFlush: options.cache?.noFlush ?? false,
    detectZeroes: options.detectZeroes ?? 'off',
    features: { flush: true, discard: !readOnly, writeZeroes: !readOnly, writeZeroesMayUnmap: !readOnly },
    limits: { requestAlignment: 512, physicalBlockSize: 512, optimalIoSize: 0, discardAlignment: 512 },
    engine: { kind: 'null', readZeroes: options.readZeroes ?? false },
    get size() {
      return size;
    },
    async resize(newSize: number): Promise<void> {
      if (readOnly) {
        throw new VduseError('IMAGE_READ_ONLY', `cannot resize '${options.nodeName}': it is read-only`);
      }
      checkNullSize(newSize);
      size = newSize;
    },
    async close(): Promise<void> {},
  };
}

function checkNullSize(size: number): void {
  if (!Number.isSafeInteger(size) || size < 0 || size % 512 !== 0) {
    throw new VduseError('INVALID_ARGUMENT', `null-co of ${size} bytes: the size must be a multiple of 512`);
  }
}
