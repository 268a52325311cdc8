/** Block nodes as --blockdev and blockdev-add write them (QEMU: qapi/block-core.json, BlockdevOptions). */
import { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import type {
  BlockNodeOptions,
  FaultRuleOptions,
  NodeReference,
  UnnamedNodeOptions,
} from '../../block/node.js';
import {
  choice,
  compact,
  type Declaration,
  declare,
  jsonScalars,
  nameOr,
  type Scalars,
  struct,
  variants,
} from '../../qmp/qapi.js';
import { nbdNodeOptions, toNbdNodeOptions } from './nbd-blockdev-options.js';
import { httpShape, httpsShape, rbdShape, toHttpOptions, toRbdOptions } from './remote-blockdev-options.js';

const common = (s: Scalars) => ({
  'node-name': s.str.optional(),
  'read-only': s.bool.optional(),
  'auto-read-only': s.bool.optional(),
  discard: choice('unmap', 'ignore').optional(),
  'detect-zeroes': choice('off', 'on', 'unmap').optional(),
  cache: struct({ direct: s.bool.optional(), 'no-flush': s.bool.optional() }).optional(),
});

const leaves = (s: Scalars) =>
  [
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
    struct({ ...common(s), ...rbdShape(s) }),
    struct({ ...common(s), ...httpShape(s) }),
    struct({ ...common(s), ...httpsShape(s) }),
    nbdNodeOptions(s, common(s)),
  ] as const;

/** When and how the filter for tests fails. */
const faultRule = (s: Scalars) =>
  struct({
    on: choice('any', 'read', 'write', 'flush', 'discard', 'write-zeroes').optional(),
    effect: choice('error', 'delay', 'late-error', 'disconnect'),
    errno: s.uint16.optional(),
    'delay-ms': s.uint32.optional(),
    'one-in': s.uint32.optional(),
    after: s.uint32.optional(),
    times: s.uint32.optional(),
  });

/** Nodes that work on another node. Their types are written out, for a type can't follow from itself. */
const filters = (s: Scalars) => {
  const child = nameOr<BlockdevOptions>('BlockdevRef', () =>
    s === jsonScalars ? blockdevOptions.json : blockdevOptions.keyval,
  );
  return [
    struct({
      driver: z.literal('raw'),
      ...common(s),
      offset: s.size.optional(),
      size: s.size.optional(),
      file: child,
    }),
    struct({
      driver: z.literal('fault'),
      ...common(s),
      file: child,
      seed: s.uint32.optional(),
      rules: z.array(faultRule(s)).optional(),
    }),
    struct({ driver: z.literal('throttle'), ...common(s), 'throttle-group': s.str, file: child }),
  ] as const;
};

type CommonOptions = z.output<z.ZodObject<ReturnType<typeof common>>>;
type LeafOptions = z.output<ReturnType<typeof leaves>[number]>;

/** The name of a node, or the options of one. */
type BlockdevRef = string | BlockdevOptions;

interface RawOptions extends CommonOptions {
  readonly driver: 'raw';
  readonly offset?: number | undefined;
  readonly size?: number | undefined;
  readonly file: BlockdevRef;
}

interface FaultOptions extends CommonOptions {
  readonly driver: 'fault';
  readonly file: BlockdevRef;
  readonly seed?: number | undefined;
  readonly rules?: readonly z.output<ReturnType<typeof faultRule>>[] | undefined;
}

interface ThrottleOptions extends CommonOptions {
  readonly driver: 'throttle';
  readonly 'throttle-group': string;
  readonly file: BlockdevRef;
}

export type BlockdevOptions = LeafOptions | RawOptions | FaultOptions | ThrottleOptions;

export const blockdevOptions: Declaration<BlockdevOptions> = declare(
  (s): z.ZodType<BlockdevOptions> => variants('driver', [...leaves(s), ...filters(s)]),
);

/** Throws INVALID_ARGUMENT on options that do not go together. */
export function toBlockNodeOptions(options: BlockdevOptions): BlockNodeOptions {
  const nodeName = options['node-name'];
  if (nodeName === undefined) {
    throw new VduseError('INVALID_ARGUMENT', "'node-name' must be specified for the root node");
  }
  return { ...toUnnamedOptions(options), nodeName };
}

/** The options of a node that is there. Throws INVALID_ARGUMENT. */
export function toReopenOptions(options: BlockdevOptions): BlockNodeOptions {
  if (options['node-name'] === undefined) {
    throw new VduseError('INVALID_ARGUMENT', 'node-name not specified');
  }
  return toBlockNodeOptions(options);
}

function toReference(reference: BlockdevRef): NodeReference {
  if (typeof reference === 'string') {
    return reference;
  }
  const nodeName = reference['node-name'];
  return { ...toUnnamedOptions(reference), ...(nodeName === undefined ? {} : { nodeName }) };
}

function toCommonOptions(options: BlockdevOptions) {
  if (options['detect-zeroes'] === 'unmap' && options.discard !== 'unmap') {
    throw new VduseError(
      'INVALID_ARGUMENT',
      'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
      { hint: 'add discard=unmap' },
    );
  }
  return compact({
    readOnly: options['read-only'],
    discard: options.discard,
    detectZeroes: options['detect-zeroes'],
    cache:
      options.cache === undefined
        ? undefined
        : compact({ direct: options.cache.direct, noFlush: options.cache['no-flush'] }),
  });
}

function toUnnamedOptions(options: BlockdevOptions): UnnamedNodeOptions {
  const common = toCommonOptions(options);
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
    // None of the others can be refused for writing, so auto-read-only changes nothing there.
    case 'null-co':
      return {
        ...common,
        driver: options.driver,
        ...compact({ size: options.size, readZeroes: options['read-zeroes'] }),
      };
    case 'memory':
      return { ...common, driver: options.driver, size: options.size };
    case 'nbd':
      return { ...common, ...toNbdNodeOptions(options) };
    case 'fault':
      return {
        ...common,
        driver: options.driver,
        file: toReference(options.file),
        ...compact({ seed: options.seed, rules: options.rules?.map(toFaultRule) }),
      };
    case 'throttle':
      return {
        ...common,
        driver: options.driver,
        throttleGroup: options['throttle-group'],
        file: toReference(options.file),
      };
    case 'raw':
      return {
        ...common,
        driver: options.driver,
        file: toReference(options.file),
        ...compact({ offset: options.offset, size: options.size }),
      };
    case 'rbd':
      return { ...common, ...toRbdOptions(options), ...compact({ autoReadOnly: options['auto-read-only'] }) };
    case 'http':
    case 'https':
      return {
        ...common,
        ...toHttpOptions(options),
        ...compact({ autoReadOnly: options['auto-read-only'] }),
      };
  }
}

function toFaultRule(rule: z.output<ReturnType<typeof faultRule>>): FaultRuleOptions {
  return {
    effect: rule.effect,
    ...compact({
      on: rule.on,
      errno: rule.errno,
      delayMs: rule['delay-ms'],
      oneIn: rule['one-in'],
      after: rule.after,
      times: rule.times,
    }),
  };
}
