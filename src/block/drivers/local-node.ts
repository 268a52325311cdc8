import { VduseError } from '../../base/errors.js';
import type { BlockDevice } from '../block-device.js';
import type { BlockNode } from '../node.js';
import { registerLocalDevice, unregisterLocalDevice } from './local-engine.js';

export interface LocalNodeOptions {
  readonly nodeName: string;
  /** The name that logs and queries show for the block driver. */
  readonly driver: string;
  /** What the disk is a copy or a part of, as messages and queries show it. */
  readonly filename?: string;
  readonly device: BlockDevice;
  readonly readOnly?: boolean;
}

function checkSize(driver: string, size: number, blockSize: number): void {
  if (!Number.isSafeInteger(size) || size < 0 || size % blockSize !== 0) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `block driver '${driver}': a size of ${size} bytes is not a multiple of ${blockSize}`,
    );
  }
}

function checkBlockSize(driver: string, blockSize: number): void {
  if (![512, 1024, 2048, 4096].includes(blockSize)) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `block driver '${driver}': blockSize ${blockSize} must be 512, 1024, 2048 or 4096`,
    );
  }
}

/** Makes a node of a user's BlockDevice. Closing the node closes the device. */
export function openLocalNode(options: LocalNodeOptions): BlockNode {
  const { device, driver } = options;
  const blockSize = device.blockSize ?? 512;
  checkBlockSize(driver, blockSize);
  checkSize(driver, device.size, blockSize);
  const readOnly = options.readOnly === true || device.write === undefined;
  const key = registerLocalDevice(device);
  return {
    nodeName: options.nodeName,
    driver,
    filename: options.filename,
    readOnly,
    cacheDirect: false,
    cacheNoFlush: false,
    detectZeroes: 'off',
    features: {
      flush: device.flush !== undefined,
      discard: !readOnly && device.discard !== undefined,
      writeZeroes: !readOnly && device.writeZeroes !== undefined,
      writeZeroesMayUnmap: false,
    },
    limits: {
      requestAlignment: blockSize,
      physicalBlockSize: blockSize,
      optimalIoSize: 0,
      discardAlignment: blockSize,
    },
    engine: { kind: 'local', key },
    get size() {
      return device.size;
    },
    async resize(size: number): Promise<void> {
      if (device.resize === undefined) {
        throw new VduseError('NOT_SUPPORTED', `block driver '${driver}' has no resize`);
      }
      if (readOnly) {
        throw new VduseError('IMAGE_READ_ONLY', `cannot resize '${options.nodeName}': it is read-only`);
      }
      checkSize(driver, size, blockSize);
      await device.resize(size);
    },
    async close(): Promise<void> {
      unregisterLocalDevice(key);
      await device.close?.();
    },
  };
}
