/** Exports as --export and block-export-add write them (QEMU: qapi/block-export.json, BlockExportOptions). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import { limits } from '../../base/limits.js';
import { choice, compact, declare, struct, variants } from '../../qmp/qapi.js';
import type { ExportRequest, ExportRequestOf } from '../block-export.js';

const iothreadError = () => "Invalid parameter type for 'iothread', expected: string or array of strings";

export const exportOptions = declare((s) =>
  variants('type', [
    struct({
      type: z.literal('vduse-blk'),
      id: s.str,
      'node-name': s.str,
      writable: s.bool.optional(),
      writethrough: s.bool.optional(),
      iothread: z.union([s.str, z.array(s.str)], { error: iothreadError }).optional(),
      'fixed-iothread': s.bool.optional(),
      name: s.str.optional(),
      'vduse-id': s.uint32.optional(),
      'num-queues': s.uint16.optional(),
      'queue-size': s.uint16.optional(),
      'logical-block-size': s.size.optional(),
      serial: s.str.optional(),
      attach: choice('virtio', 'vhost').optional(),
    }),
  ]),
);

type ExportOptions = z.output<typeof exportOptions.json>;
type VduseBlkOptions = Extract<ExportOptions, { type: 'vduse-blk' }>;

const invalid = (message: string, hint?: string) =>
  new VduseError('INVALID_ARGUMENT', message, hint === undefined ? {} : { hint });

const isPowerOfTwo = (value: number) => value > 0 && 2 ** Math.round(Math.log2(value)) === value;

/** Throws INVALID_ARGUMENT or NOT_SUPPORTED. */
export function toExportRequest(options: ExportOptions): ExportRequest {
  switch (options.type) {
    case 'vduse-blk':
      return toVduseBlkRequest(options);
  }
}

function toVduseBlkRequest(options: VduseBlkOptions): ExportRequestOf<'vduse-blk'> {
  if (options.writethrough === true) {
    throw new VduseError('NOT_SUPPORTED', 'writethrough=on is not supported', {
      hint: 'a front-end that needs it turns its own write cache off, or flushes',
    });
  }
  checkQueues(options);
  checkLogicalBlockSize(options);
  const { iothread } = options;
  return {
    type: options.type,
    id: options.id,
    nodeName: options['node-name'],
    name: deviceName(options),
    ...compact({
      writable: options.writable,
      queueCount: options['num-queues'],
      queueSize: options['queue-size'],
      logicalBlockSize: options['logical-block-size'],
      serial: options.serial,
      attach: options.attach,
      iothreads: typeof iothread === 'string' ? [iothread] : iothread,
    }),
  };
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

function checkQueues(options: VduseBlkOptions): void {
  const count = options['num-queues'];
  if (count === 0) {
    throw invalid('num-queues must be greater than 0');
  }
  if (count !== undefined && count > limits.queueCountMax) {
    throw invalid(`num-queues must be at most ${limits.queueCountMax}`);
  }
  const size = options['queue-size'];
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

function checkLogicalBlockSize(options: VduseBlkOptions): void {
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
