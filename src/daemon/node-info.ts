/** A block node as query-named-block-nodes tells it (QEMU: qapi/block-core.json, BlockDeviceInfo). */

import { fstatSync } from 'node:fs';
import type { NbdServerAddress } from '../block/drivers/nbd-client/nbd-address.js';
import type { BlockNode } from '../block/node.js';
import { formatJson, type JsonObject } from '../qmp/json-value.js';
import type { GraphNode } from './graph/graph-node.js';

/** stat(2) counts st_blocks in these, whatever the file system's block size. */
const STAT_BLOCK_BYTES = 512;

/** There is no I/O throttling; QMP clients expect its members all the same. */
const noThrottling = { iops: 0, iops_rd: 0, iops_wr: 0, bps: 0, bps_rd: 0, bps_wr: 0 } as const;

export function nodeInfo(node: GraphNode): JsonObject {
  const filename = filenameOf(node);
  const image: JsonObject = {
    filename,
    format: node.driver,
    'virtual-size': node.size,
    'actual-size': allocatedBytes(node),
  };
  if (leafOf(node).driver !== 'null-co') {
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
  const { engine } = leafOf(node);
  return engine.kind === 'file' ? fstatSync(engine.fd).blocks * STAT_BLOCK_BYTES : 0;
}

function leafOf(node: BlockNode): BlockNode {
  return node.child === undefined ? node : leafOf(node.child);
}

/** QEMU names a node that has no file by the options that would open it again. */
function filenameOf(node: GraphNode): string {
  const { options } = node;
  const isPlainNull =
    options.driver === 'null-co' && options.readZeroes === undefined && options.size === undefined;
  return node.filename ?? (isPlainNull ? 'null-co://' : `json:${formatJson(describe(node))}`);
}

function describe({ options, childNode, filename }: GraphNode): JsonObject {
  const file = childNode === undefined ? {} : { file: describe(childNode) };
  switch (options.driver) {
    case 'null-co':
      return { driver: options.driver, size: options.size, 'read-zeroes': options.readZeroes };
    case 'memory':
      return { driver: options.driver, size: options.size };
    case 'raw':
      return { driver: options.driver, offset: options.offset, size: options.size, ...file };
    case 'fault':
      return { driver: options.driver, seed: options.seed, ...file };
    case 'throttle':
      return { driver: options.driver, 'throttle-group': options.throttleGroup, ...file };
    case 'nbd': {
      const { server, exportName, tlsCreds } = options;
      return {
        driver: options.driver,
        server: describeAddress(server),
        export: exportName,
        'tls-creds': tlsCreds,
      };
    }
    case 'file':
    case 'host_device':
      return { driver: options.driver, filename: options.filename };
    case 'rbd': {
      const { driver, pool, namespace, image, snapshot } = options;
      return { driver, pool, namespace, image, snapshot };
    }
    case 'http':
    case 'https':
      // The name, not the option: that may hold a password.
      return { driver: options.driver, url: filename };
  }
}

/** SocketAddress, whose numbers are text. */
function describeAddress(address: NbdServerAddress): JsonObject {
  switch (address.type) {
    case 'unix':
      return { ...address };
    case 'inet':
      return { ...address, port: `${address.port}` };
    case 'fd':
      return { type: address.type, str: `${address.fd}` };
  }
}
