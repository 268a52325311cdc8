import { VduseError } from '../../base/errors.js';
import type { BlockDevice } from '../block-device.js';
import type { BlockNode } from '../node.js';
import { registerLocalDevice, unregisterLocalDevice } from './local-engine.js';

export interface LocalNodeOptions {
  readonly nodeName: string;
  /** The name that logs and queries show for the block driver. */
  readonly driver: string;
  readonly device: BlockDevice;
  readonly readOnly?: boolean;
}

function checkDevice(options: LocalNodeOptions, blockSize: number): void {
  const { size } = options.device;
  if (!Number.isSafeInteger(size) || size < 0 || size % blockSize !== 0) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `block driver '${options.driver}': its size of ${size} bytes is not a multiple of ${blockSize}`,
    );
  }
  if (![512, 1024, 2048, 4096].includes(blockSize)) {
    throw new VduseError(
      'INVALID_ARGUMENT',
      `block driver '${options.driver}': blockSize ${blockSize} must be 512, 1024, 2048 or 4096`,
    );
  }
}

/** Makes a node of a user's BlockDevice. Closing the node closes the device. */
export function openLocalNode(options: LocalNodeOptions): BlockNode {
  const { device } = options;
  const blockSize = device.blockSize ?? 512;
  checkDevice(options, blockSize);
  const readOnly = options.readOnly === true || device.write === undefined;
  const key = registerLocalDevice(device);
  return {
    nodeName: options.nodeName,
    driver: options.driver,
    filename: undefined,
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
        throw new VduseError('NOT_SUPPORTED', `block driver '${options.driver}' has no resize`);
      }
      await device.resize(size);
    },
    async close(): Promise<void> {
      unregisterLocalDevice(key);
      await device.close?.();
    },
  };
}
