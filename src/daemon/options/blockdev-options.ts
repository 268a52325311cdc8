/** Block nodes as --blockdev and blockdev-add write them (QEMU: qapi/block-core.json, BlockdevOptions). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type { BlockNodeOptions } from '../../block/node.js';
import { choice, compact, declare, type Scalars, struct, variants } from '../../qmp/qapi.js';

const common = (s: Scalars) => ({
  'node-name': s.str.optional(),
  'read-only': s.bool.optional(),
  'auto-read-only': s.bool.optional(),
  discard: choice('unmap', 'ignore').optional(),
  'detect-zeroes': choice('off', 'on', 'unmap').optional(),
  cache: struct({ direct: s.bool.optional(), 'no-flush': s.bool.optional() }).optional(),
});

export const blockdevOptions = declare((s) =>
  variants('driver', [
    struct({
      driver: z.literal(['file', 'host_device']),
      ...common(s),
      filename: s.str,
      aio: choice('threads', 'native', 'io_uring').optional(),
      locking: choice('auto', 'on', 'off').optional(),
    }),
    struct({
      driver: z.literal('null-co'),
      ...common(s),
      size: s.size.optional(),
      'read-zeroes': s.bool.optional(),
    }),
    struct({ driver: z.literal('memory'), ...common(s), size: s.size }),
  ]),
);

type BlockdevOptions = z.output<typeof blockdevOptions.json>;

/** Throws INVALID_ARGUMENT on options that do not go together. */
export function toBlockNodeOptions(options: BlockdevOptions): BlockNodeOptions {
  const nodeName = options['node-name'];
  if (nodeName === undefined) {
    throw new VduseError('INVALID_ARGUMENT', "'node-name' must be specified for the root node");
  }
  if (options['detect-zeroes'] === 'unmap' && options.discard !== 'unmap') {
    throw new VduseError(
      'INVALID_ARGUMENT',
      'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
      { hint: 'add discard=unmap' },
    );
  }
  const common = {
    nodeName,
    ...compact({
      readOnly: options['read-only'],
      discard: options.discard,
      detectZeroes: options['detect-zeroes'],
      cache:
        options.cache === undefined
          ? undefined
          : compact({ direct: options.cache.direct, noFlush: options.cache['no-flush'] }),
    }),
  };
  switch (options.driver) {
    case 'file':
    case 'host_device':
      return {
        ...common,
        driver: options.driver,
        filename: options.filename,
        ...compact({
          autoReadOnly: options['auto-read-only'],
          aio: options.aio,
          locking: options.locking,
        }),
      };
    // Neither of the others can be refused for writing, so auto-read-only changes nothing there.
    case 'null-co':
      return {
        ...common,
        driver: options.driver,
        ...compact({ size: options.size, readZeroes: options['read-zeroes'] }),
      };
    case 'memory':
      return { ...common, driver: options.driver, size: options.size };
  }
}
