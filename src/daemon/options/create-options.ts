/** Images that blockdev-create makes, as QEMU writes them (qapi/block-core.json, BlockdevCreateOptions). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { ImageOptions } from '../../block/create.js';
import { choice, compact, jsonScalars as s, struct, variants } from '../../qmp/qapi.js';
import { rbdShape, toRbdOptions } from './remote-blockdev-options.js';

const { driver: _, ...rbdLocation } = rbdShape(s);

export const createOptions = variants('driver', [
  struct({
    driver: z.literal('file'),
    filename: s.str,
    size: s.size,
    preallocation: choice('off', 'falloc', 'full').optional(),
    nocow: s.bool.optional(),
    'extent-size-hint': s.size.optional(),
  }),
  struct({
    driver: z.literal('rbd'),
    location: struct(rbdLocation),
    size: s.size,
    'cluster-size': s.size.optional(),
    encrypt: z.unknown().optional(),
  }),
]);

/** Throws NOT_SUPPORTED for encryption. */
export function toImageOptions(options: z.output<typeof createOptions>): ImageOptions {
  if (options.driver === 'file') {
    const { driver, filename, size, preallocation, nocow } = options;
    return { driver, filename, size, ...compact({ preallocation, nocow }) };
  }
  if (options.encrypt !== undefined) {
    throw new VduseError('NOT_SUPPORTED', "Parameter 'encrypt' is not supported: RBD's own encryption", {
      hint: 'Encrypt in the guest (LUKS), or let the OSDs encrypt their disks.',
    });
  }
  const { driver, location, size, 'cluster-size': clusterSize } = options;
  return { driver, location: toRbdOptions(location), size, ...compact({ clusterSize }) };
}
