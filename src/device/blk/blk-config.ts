/** virtio-blk's configuration space (virtio 1.3, 5.2.4) and the features that say which fields count. */
import { RING_F } from '../../virtqueue/layout.js';
import { BLK_F, sectorBytes } from './blk-protocol.js';

export interface BlkConfig {
  readonly capacityBytes: number;
  readonly sizeMax: number;
  readonly segMax: number;
  readonly blockSize: number;
  readonly physicalBlockSize: number;
  readonly minIoSize: number;
  readonly optimalIoSize: number;
  readonly queueCount: number;
  readonly maxRangeBytes: number;
  readonly maxRangeSegments: number;
  readonly discardAlignment: number;
  readonly writeZeroesMayUnmap: boolean;
}

export interface BlkFeatureOptions {
  readonly readOnly: boolean;
  readonly flush: boolean;
  readonly discard: boolean;
  readonly writeZeroes: boolean;
  readonly multiQueue: boolean;
}

const configBytes = 60;
/** 5.2.4: offsets of struct virtio_blk_config. */
const CONFIG = {
  capacity: 0,
  sizeMax: 8,
  segMax: 12,
  blkSize: 20,
  physicalBlockExp: 24,
  alignmentOffset: 25,
  minIoSize: 26,
  optIoSize: 28,
  writeback: 32,
  numQueues: 34,
  maxDiscardSectors: 36,
  maxDiscardSeg: 40,
  discardSectorAlignment: 44,
  maxWriteZeroesSectors: 48,
  maxWriteZeroesSeg: 52,
  writeZeroesMayUnmap: 56,
} as const;

export function encodeBlkConfig(config: BlkConfig): Uint8Array {
  const bytes = new Uint8Array(configBytes);
  const view = new DataView(bytes.buffer);
  const blocks = (size: number): number => Math.max(1, Math.floor(size / config.blockSize));
  view.setBigUint64(CONFIG.capacity, BigInt(Math.floor(config.capacityBytes / sectorBytes)), true);
  view.setUint32(CONFIG.sizeMax, config.sizeMax, true);
  view.setUint32(CONFIG.segMax, config.segMax, true);
  view.setUint32(CONFIG.blkSize, config.blockSize, true);
  // Topology counts in logical blocks; 0 says that there is nothing to say.
  view.setUint8(CONFIG.physicalBlockExp, Math.log2(blocks(config.physicalBlockSize)));
  view.setUint8(CONFIG.alignmentOffset, 0);
  view.setUint16(
    CONFIG.minIoSize,
    config.minIoSize === 0 ? 0 : Math.min(0xffff, blocks(config.minIoSize)),
    true,
  );
  view.setUint32(CONFIG.optIoSize, config.optimalIoSize === 0 ? 0 : blocks(config.optimalIoSize), true);
  view.setUint8(CONFIG.writeback, 1);
  view.setUint16(CONFIG.numQueues, config.queueCount, true);
  const rangeSectors = config.maxRangeBytes / sectorBytes;
  view.setUint32(CONFIG.maxDiscardSectors, rangeSectors, true);
  view.setUint32(CONFIG.maxDiscardSeg, config.maxRangeSegments, true);
  view.setUint32(CONFIG.discardSectorAlignment, config.discardAlignment / sectorBytes, true);
  view.setUint32(CONFIG.maxWriteZeroesSectors, rangeSectors, true);
  view.setUint32(CONFIG.maxWriteZeroesSeg, config.maxRangeSegments, true);
  view.setUint8(CONFIG.writeZeroesMayUnmap, config.writeZeroesMayUnmap ? 1 : 0);
  return bytes;
}

/** Features are offered from what the block node can do. */
export function blkFeatures(options: BlkFeatureOptions): bigint {
  const bits: number[] = [
    BLK_F.SIZE_MAX,
    BLK_F.SEG_MAX,
    BLK_F.BLK_SIZE,
    BLK_F.TOPOLOGY,
    RING_F.INDIRECT_DESC,
    RING_F.EVENT_IDX,
    RING_F.VERSION_1,
  ];
  const optional: [boolean, number][] = [
    [options.readOnly, BLK_F.RO],
    [options.flush, BLK_F.FLUSH],
    [options.discard, BLK_F.DISCARD],
    [options.writeZeroes, BLK_F.WRITE_ZEROES],
    [options.multiQueue, BLK_F.MQ],
  ];
  for (const [offered, bit] of optional) {
    if (offered) {
      bits.push(bit);
    }
  }
  return bits.reduce((features, bit) => features | (1n << BigInt(bit)), 0n);
}
