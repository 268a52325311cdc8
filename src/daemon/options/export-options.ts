/** Exports as --export and block-export-add write them (QEMU: qapi/block-export.json, BlockExportOptions). */
import { z } from 'zod';
import { parseCpuList } from '../../base/cpu-list.js';
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import { choice, compact, declare, type Scalars, struct, variants } from '../../qmp/qapi.js';
import { vringCountMax } from '../../transport/vhost-user/protocol.js';
import type { VhostUserAddress } from '../../transport/vhost-user/vhost-user-transport.js';
import type { ExportRequest, ExportRequestOf } from '../block-export.js';

const common = (s: Scalars) => ({
  id: s.str,
  'node-name': s.str,
  writable: s.bool.optional(),
  writethrough: s.bool.optional(),
  iothread: z.union([s.str, z.array(s.str)], { error: iothreadError }).optional(),
  'fixed-iothread': s.bool.optional(),
});

const iothreadError = () => "Invalid parameter type for 'iothread', expected: string or array of strings";

export const exportOptions = declare((s) =>
  variants('type', [
    struct({
      type: z.literal('vduse-blk'),
      ...common(s),
      name: s.str.optional(),
      'vduse-id': s.uint32.optional(),
      'num-queues': s.uint16.optional(),
      'queue-size': s.uint16.optional(),
      'logical-block-size': s.size.optional(),
      serial: s.str.optional(),
      attach: choice('virtio', 'vhost').optional(),
      'poll-us': s.uint16.optional(),
      'irq-affinity': s.str.optional(),
    }),
    struct({
      type: z.literal('nbd'),
      ...common(s),
      name: s.str.optional(),
      description: s.str.optional(),
      bitmaps: z.array(z.union([s.str, struct({ node: s.str, name: s.str })])).optional(),
      'allocation-depth': s.bool.optional(),
    }),
    struct({
      type: z.literal('vhost-user-blk'),
      ...common(s),
      addr: variants('type', [
        struct({ type: z.literal('unix'), path: s.str, abstract: s.bool.optional() }),
        struct({ type: z.literal('fd'), str: s.str }),
        struct({ type: z.literal('inet'), host: s.str, port: s.str }),
        struct({ type: z.literal('vsock'), cid: s.str, port: s.str }),
      ]),
      server: s.bool.optional(),
      'num-queues': s.uint16.optional(),
      'logical-block-size': s.size.optional(),
      serial: s.str.optional(),
      'poll-us': s.uint16.optional(),
    }),
  ]),
);

type ExportOptions = z.output<typeof exportOptions.json>;
type VduseBlkOptions = Extract<ExportOptions, { type: 'vduse-blk' }>;
type NbdOptions = Extract<ExportOptions, { type: 'nbd' }>;
type VhostUserBlkOptions = Extract<ExportOptions, { type: 'vhost-user-blk' }>;

const invalid = (message: string, hint?: string) => new VduseError('INVALID_ARGUMENT', message, { hint });

const isPowerOfTwo = (value: number) => value > 0 && 2 ** Math.round(Math.log2(value)) === value;

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toExportRequest(options: ExportOptions): ExportRequest {
  if (options.writethrough === true) {
    throw new VduseError('NOT_SUPPORTED', 'writethrough=on is not supported', {
      hint: 'a front-end that needs it turns its own write cache off, or flushes',
    });
  }
  switch (options.type) {
    case 'vduse-blk':
      return toVduseBlkRequest(options);
    case 'vhost-user-blk':
      return toVhostUserBlkRequest(options);
    case 'nbd':
      return toNbdRequest(options);
  }
}

function toIothreads({ iothread }: ExportOptions): readonly string[] | undefined {
  return typeof iothread === 'string' ? [iothread] : iothread;
}

function toNbdRequest(options: NbdOptions): ExportRequestOf<'nbd'> {
  if (options['allocation-depth'] === true) {
    throw new VduseError('NOT_SUPPORTED', 'allocation-depth=on is not supported', {
      hint: 'there are no backing files: what is allocated has depth 1, and base:allocation tells it',
    });
  }
  return {
    type: options.type,
    id: options.id,
    nodeName: options['node-name'],
    ...compact({
      writable: options.writable,
      iothreads: toIothreads(options),
      name: options.name,
      description: options.description,
      bitmaps: options.bitmaps?.map((bitmap) => (typeof bitmap === 'string' ? bitmap : bitmap.name)),
    }),
  };
}

function toVduseBlkRequest(options: VduseBlkOptions): ExportRequestOf<'vduse-blk'> {
  checkQueueSize(options['queue-size']);
  return {
    type: options.type,
    ...virtioBlkRequest(options, limits.queueCountMax),
    name: deviceName(options),
    ...compact({
      queueSize: options['queue-size'],
      attach: options.attach,
      irqCpus: options['irq-affinity'] === undefined ? undefined : parseCpuList(options['irq-affinity']),
    }),
  };
}

function toVhostUserBlkRequest(options: VhostUserBlkOptions): ExportRequestOf<'vhost-user-blk'> {
  return {
    type: options.type,
    ...virtioBlkRequest(options, vringCountMax),
    address: socketAddress(options),
  };
}

/** What both kinds of virtio-blk devices have. */
function virtioBlkRequest(options: VduseBlkOptions | VhostUserBlkOptions, queueCountMax: number) {
  checkQueueCount(options['num-queues'], queueCountMax);
  checkLogicalBlockSize(options);
  return {
    id: options.id,
    nodeName: options['node-name'],
    ...compact({
      writable: options.writable,
      queueCount: options['num-queues'],
      logicalBlockSize: options['logical-block-size'],
      serial: options.serial,
      pollUs: options['poll-us'],
      iothreads: toIothreads(options),
    }),
  };
}

function socketAddress({ addr, server = true }: VhostUserBlkOptions): VhostUserAddress {
  switch (addr.type) {
    case 'unix':
      return { type: 'unix', path: addr.abstract === true ? `@${addr.path}` : addr.path, server };
    case 'fd':
      if (!/^\d{1,9}$/.test(addr.str)) {
        throw invalid(
          `File descriptor named '${addr.str}' has not been found`,
          'addr.str is the number of a socket that listens',
        );
      }
      if (!server) {
        throw invalid("'server=off' is for addr.type=unix");
      }
      return { type: 'fd', fd: Number(addr.str) };
    default:
      throw invalid("Only socket address types 'unix' and 'fd' are supported");
  }
}

/**
 * The first proposals of VDUSE identified a device by a number, vduse-id, which a name then replaced. The
 * number in decimal is the name that it stands for.
 */
function deviceName(options: VduseBlkOptions): string {
  const id = options['vduse-id']?.toString();
  if (options.name === undefined) {
    if (id === undefined) {
      throw invalid("Parameter 'name' is missing", 'the VDUSE device name, which becomes /dev/vduse/NAME');
    }
    return id;
  }
  if (id !== undefined && id !== options.name) {
    throw invalid("Parameters 'name' and 'vduse-id' are mutually exclusive", 'vduse-id=1 means name=1');
  }
  return options.name;
}

function checkQueueCount(count: number | undefined, max: number): void {
  if (count === 0) {
    throw invalid('num-queues must be greater than 0');
  }
  if (count !== undefined && count > max) {
    throw invalid(`num-queues must be at most ${max}`);
  }
}

function checkQueueSize(size: number | undefined): void {
  if (size === undefined) {
    return;
  }
  if (!isPowerOfTwo(size) || size < limits.queueSizeMin || size > limits.queueSizeMax) {
    const range = `${limits.queueSizeMin} to ${limits.queueSizeMax}`;
    throw invalid('queue-size is invalid', `it must be a power of two, ${range}`);
  }
}

const LOGICAL_BLOCK_SIZE_MIN = 512;
const LOGICAL_BLOCK_SIZE_MAX = 2 << 20;

function checkLogicalBlockSize(options: VduseBlkOptions | VhostUserBlkOptions): void {
  const size = options['logical-block-size'];
  if (size === undefined) {
    return;
  }
  const property = `Property ${options.id}.logical-block-size doesn't take value`;
  if (size < LOGICAL_BLOCK_SIZE_MIN || size > LOGICAL_BLOCK_SIZE_MAX) {
    throw invalid(
      `${property} ${size} (minimum: ${LOGICAL_BLOCK_SIZE_MIN}, maximum: ${LOGICAL_BLOCK_SIZE_MAX})`,
    );
  }
  if (!isPowerOfTwo(size)) {
    throw invalid(`${property} '${size}', it's not a power of 2`);
  }
}
