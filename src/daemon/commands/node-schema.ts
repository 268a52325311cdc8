/** The answer of query-named-block-nodes (QEMU: qapi/block-core.json, BlockDeviceInfo), as far as it is given here. */
import { choice, jsonScalars as s, struct } from '../../qmp/qapi.js';

const imageInfo = struct({
  filename: s.str,
  format: s.str,
  'virtual-size': s.int,
  'actual-size': s.int.optional(),
  'dirty-flag': s.bool.optional(),
});

const throttling = {
  iops: s.int,
  iops_rd: s.int,
  iops_wr: s.int,
  bps: s.int,
  bps_rd: s.int,
  bps_wr: s.int,
};

export const blockNodeInfo = struct({
  'node-name': s.str.optional(),
  drv: s.str,
  ro: s.bool,
  file: s.str,
  image: imageInfo,
  cache: struct({ writeback: s.bool, direct: s.bool, 'no-flush': s.bool }),
  detect_zeroes: choice('off', 'on', 'unmap'),
  backing_file_depth: s.int,
  encrypted: s.bool,
  write_threshold: s.int,
  ...throttling,
});
