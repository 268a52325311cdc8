/** A block node as query-named-block-nodes tells it (QEMU: qapi/block-core.json, BlockDeviceInfo). */
import { fstatSync } from 'node:fs';
import type { BlockNode } from '../block/node.js';
import { formatJson, type JsonObject } from '../qmp/json-value.js';
import type { NodeEntry } from './node-table.js';

/** stat(2) counts st_blocks in these, whatever the file system's block size. */
const STAT_BLOCK_BYTES = 512;

/** There is no I/O throttling; QMP clients expect its members all the same. */
const noThrottling = { iops: 0, iops_rd: 0, iops_wr: 0, bps: 0, bps_rd: 0, bps_wr: 0 } as const;

export function nodeInfo({ node, options }: NodeEntry): JsonObject {
  const filename = node.filename ?? pseudoFilename(options);
  const image: JsonObject = {
    filename,
    format: node.driver,
    'virtual-size': node.size,
    'actual-size': allocatedBytes(node),
  };
  if (node.driver !== 'null-co') {
    image['dirty-flag'] = false;
  }
  return {
    'node-name': node.nodeName,
    drv: node.driver,
    ro: node.readOnly,
    file: filename,
    image,
    cache: { writeback: true, direct: node.cacheDirect, 'no-flush': node.cacheNoFlush },
    detect_zeroes: node.detectZeroes,
    backing_file_depth: 0,
    encrypted: false,
    write_threshold: 0,
    ...noThrottling,
  };
}

function allocatedBytes(node: BlockNode): number {
  return node.engine.kind === 'file' ? fstatSync(node.engine.fd).blocks * STAT_BLOCK_BYTES : 0;
}

/** QEMU names a node that has no file by the options that would open it again. */
function pseudoFilename(options: NodeEntry['options']): string {
  const readZeroes = options.driver === 'null-co' ? options.readZeroes : undefined;
  const size = options.driver === 'null-co' || options.driver === 'memory' ? options.size : undefined;
  if (options.driver === 'null-co' && readZeroes === undefined && size === undefined) {
    return 'null-co://';
  }
  return `json:${formatJson({ driver: options.driver, size, 'read-zeroes': readZeroes })}`;
}
