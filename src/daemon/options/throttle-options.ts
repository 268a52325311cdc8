/** Limits of a throttle group as --object and QMP write them (QEMU: qapi/block-core.json, ThrottleLimits). */
import type { z } from 'zod';
import { VduseError } from '../../base/errors.js';
import {
  type ThrottleBucket,
  type ThrottleLimit,
  type ThrottleLimits,
  throttleBuckets,
} from '../../block/throttle-group.js';
import { type Scalars, struct } from '../../qmp/qapi.js';

const valueMax = 1e15;
const lengthMax = 0xffff_ffff;

const suffixes = ['', '-max', '-max-length'] as const;

export type LimitName = `${ThrottleBucket}${(typeof suffixes)[number]}` | 'iops-size';
type Integer = z.ZodOptional<z.ZodType<number>>;

export const limitNames: readonly LimitName[] = [
  ...throttleBuckets.flatMap((bucket) => suffixes.map((suffix): LimitName => `${bucket}${suffix}`)),
  'iops-size',
];

/** The limits as properties, the names of which QEMU's older form begins with `x-`. */
export function throttleProperties<P extends '' | 'x-'>(
  s: Scalars,
  prefix: P,
): Record<`${P}${LimitName}`, Integer> {
  return Object.fromEntries(limitNames.map((name) => [`${prefix}${name}`, s.int.optional()])) as Record<
    `${P}${LimitName}`,
    Integer
  >;
}

export function throttleLimitsStruct(s: Scalars) {
  return struct(throttleProperties(s, ''));
}

/** Limits by QEMU's names. */
export type ThrottleLimitValues = { readonly [name in LimitName]?: number | undefined };

type Values = { readonly [name: string]: unknown };

const invalid = (message: string) => new VduseError('INVALID_ARGUMENT', message);

/** Throws INVALID_ARGUMENT with QEMU's words. */
export function toThrottleLimits(options: Values & { readonly limits?: Values | undefined }): ThrottleLimits {
  const value = (name: LimitName): number | undefined => {
    const found = options.limits?.[name] ?? options[`x-${name}`];
    return typeof found === 'number' ? found : undefined;
  };
  const limit = (bucket: ThrottleBucket): ThrottleLimit => {
    const length = value(`${bucket}-max-length`);
    if (length !== undefined && (length < 0 || length > lengthMax)) {
      throw invalid(`${bucket}-max-length value must be in the range [0, ${lengthMax}]`);
    }
    return {
      average: value(bucket) ?? 0,
      burst: value(`${bucket}-max`) ?? 0,
      burstSeconds: length ?? 1,
    };
  };
  const buckets = Object.fromEntries(throttleBuckets.map((bucket) => [bucket, limit(bucket)]));
  const limits = { buckets, iopsSize: value('iops-size') ?? 0 } as ThrottleLimits;
  checkLimits(limits);
  return limits;
}

/** All of them, those that do not limit included. */
export function fromThrottleLimits({ buckets, iopsSize }: ThrottleLimits): Record<LimitName, number> {
  const values = throttleBuckets.flatMap((name) => {
    const { average, burst, burstSeconds } = buckets[name];
    return [
      [name, average],
      [`${name}-max`, burst],
      [`${name}-max-length`, burstSeconds],
    ];
  });
  return { ...Object.fromEntries(values), 'iops-size': iopsSize } as Record<LimitName, number>;
}

function checkLimits({ buckets, iopsSize }: ThrottleLimits): void {
  for (const kind of ['bps', 'iops'] as const) {
    const [total, read, write] = [
      buckets[`${kind}-total`],
      buckets[`${kind}-read`],
      buckets[`${kind}-write`],
    ];
    for (const rate of ['average', 'burst'] as const) {
      if (total[rate] !== 0 && (read[rate] !== 0 || write[rate] !== 0)) {
        throw invalid('bps/iops/max total values and read/write values cannot be used at the same time');
      }
    }
  }
  const hasIops = throttleBuckets.slice(3).some((name) => buckets[name].average !== 0);
  if (iopsSize !== 0 && !hasIops) {
    throw invalid('iops size requires an iops value to be set');
  }
  for (const name of throttleBuckets) {
    checkLimit(buckets[name]);
  }
}

function checkLimit({ average, burst, burstSeconds }: ThrottleLimit): void {
  if ([average, burst].some((value) => value < 0 || value > valueMax)) {
    throw invalid(`bps/iops/max values must be within [0, ${valueMax}]`);
  }
  if (burstSeconds === 0) {
    throw invalid('the burst length cannot be 0');
  }
  if (burstSeconds > 1 && burst === 0) {
    throw invalid('burst length set without burst rate');
  }
  if (burst !== 0 && burstSeconds > valueMax / burst) {
    throw invalid('burst length too high for this burst rate');
  }
  if (burst !== 0 && average === 0) {
    throw invalid('bps_max/iops_max require corresponding bps/iops values');
  }
  if (burst !== 0 && burst < average) {
    throw invalid('bps_max/iops_max cannot be lower than bps/iops');
  }
}
