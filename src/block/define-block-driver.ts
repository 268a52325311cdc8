/** Makes a block driver of a user's functions. */
import type { BlockDevice } from './block-device.js';

export interface BlockDriver<Options> {
  /** The name that logs and queries show. */
  readonly name: string;
  /** Opens a disk. What it throws is what exportDisk throws. */
  open(options: Options): BlockDevice | Promise<BlockDevice>;
}

/** A disk that a block driver of a user's will open: what exportDisk takes. */
export interface BlockSource {
  readonly driverName: string;
  openDevice(): Promise<BlockDevice>;
}

/**
 * Defines a block driver. The result, called with the driver's options, is a source for exportDisk:
 *
 *     const zeroes = defineBlockDriver({
 *       name: 'zeroes',
 *       open: (size: number) => ({ size, read: async (_offset, buffer) => void buffer.fill(0) }),
 *     });
 *     const disk = await exportDisk(zeroes(1 << 30));
 */
export function defineBlockDriver<Options = void>(
  driver: BlockDriver<Options>,
): (options: Options) => BlockSource {
  return (options) => ({
    driverName: driver.name,
    openDevice: async () => driver.open(options),
  });
}

export function isBlockSource(source: object): source is BlockSource {
  return 'openDevice' in source;
}
